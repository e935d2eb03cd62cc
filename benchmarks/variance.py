"""The variance study at full size: seconds with one and two processes and peak memory, beside drawing single views.

200 repeats x 10,000 images x 529 crops x 10 classes x 64, 128, 256 and 512 draws, with and without replacement, five
patches, from a vote table on disk that is simulated first.

Start: python benchmarks/variance.py            (about two minutes on two idle cores)
Result: a table, and benchmarks/results/variance.json
Stop: Ctrl-C; the file is written at the end.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import concurrent.futures
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from patchcert.data.storage import Folder
from patchcert.geometry import CropViews
from patchcert.provenance import environment
from patchcert.stages.variance import IMAGES_PER_TASK, draw_rows
from patchcert.studies.config import VarianceConfig
from patchcert.studies.subject import Subject
from patchcert.studies.variance import DrawnImages, VarianceAccumulator, draw_questions
from patchcert.votes import VotePart, VoteTable, draw_views
from patchcert.votes.table import SCHEMA_VERSION, finish_table, part_name, write_part

RESULTS = Path(__file__).parent / "results" / "variance.json"
VIEWS = CropViews(image_size=(32, 32), crop_size=10)
CONFIG = VarianceConfig(patches=("1x1", "2x2", "3x3", "4x4", "5x5"))
NUM_IMAGES, NUM_CLASSES, PART = 10_000, 10, 2_500
BY_VIEWS_IMAGES, BY_VIEWS_REPEATS = 500, 5


def simulate_table(location: str) -> None:
    """One class with a random share of the votes, a second with half of the rest, noise: like a trained model."""
    identity = {
        "schema_version": SCHEMA_VERSION,
        "views": VIEWS.identity(),
        "votes": {"rule": "top_class", "score_floor": 0.0, "precision": "float32"},
        "model": "",
        "num_classes": NUM_CLASSES,
        "dataset": {"name": "simulated", "variant": "original", "split": "test", "digest": ""}
        | {"num_images": NUM_IMAGES, "num_quarantined": 0},
        "preprocessing": {"resize": "none", "interpolation": None},
    }
    rng, folder = np.random.default_rng(0), Folder(location)
    borders = [(start, start + PART) for start in range(0, NUM_IMAGES, PART)]
    for index, (start, stop) in enumerate(borders):
        first, second = rng.integers(0, NUM_CLASSES, (2, PART, 1))
        share, dice = rng.random((PART, 1)), rng.random((PART, VIEWS.num_views))
        noise = rng.integers(0, NUM_CLASSES, dice.shape)
        classes = np.where(dice < share, first, np.where(dice < (1 + share) / 2, second, noise))
        part = VotePart(
            image_ids=np.array([f"{row:05d}" for row in range(start, stop)]),
            labels_N=first[:, 0].astype(np.int64),
            top_classes_NV=classes.astype(np.uint16),
            num_classes=NUM_CLASSES,
            first_row=start,
        )
        write_part(folder, part_name(index, len(borders)), identity, start, part)
    finish_table(folder, identity, borders)


def draw_task(location: str, start: int) -> list[DrawnImages]:
    """One task of the stage, as a process of the pool runs it."""
    return draw_rows(location, start, start + IMAGES_PER_TASK, CONFIG, draw_questions(CONFIG, VIEWS))


def whole_study(location: str, num_processes: int) -> dict[str, float]:
    """Draws for all images and makes all tables; run in a process of its own, so that its memory is its own."""
    started, before = time.perf_counter(), cpu_seconds()
    accumulator = VarianceAccumulator(draw_questions(CONFIG, VIEWS))
    starts = range(0, NUM_IMAGES, IMAGES_PER_TASK)
    context = multiprocessing.get_context("spawn")
    if num_processes == 1:
        for start in starts:
            for piece in draw_task(location, start):
                accumulator.add(piece)
    else:
        with concurrent.futures.ProcessPoolExecutor(num_processes, context) as pool:
            for pieces in pool.map(draw_task, [location] * len(starts), starts):
                for piece in pieces:
                    accumulator.add(piece)
    accumulator.tables(Subject.of_table(VoteTable.open(location), "simulated"))
    workers = num_processes if num_processes > 1 else 0
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "processes": num_processes,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds() - before,
        "peak_MiB_of_all_processes": (own + workers * child) / 1024,
    }


def cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def drawing_views_cpu_seconds(location: str) -> float:
    """What the same draws cost view by view, to the counted tallies only, scaled up from a slice."""
    classes_NV = VoteTable.open(location).read_part(0).top_classes_NV[:BY_VIEWS_IMAGES].astype(np.int64)
    rows, offsets = range(len(classes_NV)), np.arange(len(classes_NV))[:, None] * NUM_CLASSES
    started = time.process_time()
    for replacement in (True, False):
        for num_draws in CONFIG.num_draws:
            for repeat in range(BY_VIEWS_REPEATS):
                drawn_ND = draw_views(VIEWS.num_views, num_draws, rows, replacement=replacement, seed=0, repeat=repeat)
                cells_ND = np.take_along_axis(classes_NV, drawn_ND, axis=1) + offsets
                np.bincount(cells_ND.ravel(), minlength=len(classes_NV) * NUM_CLASSES)
    scale = NUM_IMAGES / BY_VIEWS_IMAGES * CONFIG.repeats / BY_VIEWS_REPEATS
    return (time.process_time() - started) * scale


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        simulate_table(folder)
        for num_processes in (1, 2):
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                rows.append(alone.submit(whole_study, folder, num_processes).result())
        by_views = drawing_views_cpu_seconds(folder)
    for row in rows:
        row["ratio_to_drawing_views"] = by_views / row["cpu_seconds"]
        print(
            f"{row['processes']} processes: {row['seconds']:6.1f} s ({row['cpu_seconds']:.1f} s of CPU), "
            f"{row['peak_MiB_of_all_processes']:.0f} MiB, drawing single views costs {by_views:.0f} s of CPU "
            f"({row['ratio_to_drawing_views']:.1f}x)"
        )
    record = {
        "environment": environment(),
        "load_average": os.getloadavg()[0],
        "images": NUM_IMAGES,
        "views": VIEWS.num_views,
        "repeats": CONFIG.repeats,
        "num_draws": list(CONFIG.num_draws),
        "replacement": list(CONFIG.replacement),
        "patches": list(CONFIG.patches),
        "rows": rows,
        "drawing_views_cpu_seconds": by_views,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
