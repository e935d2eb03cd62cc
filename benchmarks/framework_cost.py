"""What Ray adds to voting: the vote stage with one actor beside a plain loop over the same parts.

Start: python benchmarks/framework_cost.py                 (five minutes; for wall times nothing else should run)
       python benchmarks/framework_cost.py --seconds 10    (a quick look)
Result: a table, and benchmarks/results/framework_cost.json
Stop: Ctrl-C; the file is written at the end.

Loop and stage take turns. Both read the same prepared images, score them with the same network on one thread and write
the same parts. What happens once (Ray, actor, model, preparation of the network) is reported apart: rates are those
from the first finished part to the end, which for the stage is the verified table. Processor time is that of the whole
process tree: driver, actor and Ray's own processes. ``cores_of_others`` says what else the machine did meanwhile.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as in the stage's actors

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

from patchcert.data import DataConfig, PreparedDataset, prepare
from patchcert.data.storage import Folder
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.provenance import environment
from patchcert.recipes import Recipe, find_recipe
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources
from patchcert.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "framework_cost.json"
RECIPE = "column4-cifar10"
ROWS_PER_GROUP = 100
PROBE_IMAGES = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    seconds: float = 60.0
    """What a run of the loop should take; decides on the number of images."""
    width: float = 0.25
    """Width of the ResNet18: wider means more computing an image."""
    repeats: int = 2
    """Runs of the loop and of the stage, in turn."""
    images_per_part: int = 0
    """Images of a part; 0: what the stage chooses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """A moment: wall clock, processor time by role in this process tree and of the whole machine, and images done."""

    wall: float
    roles: dict[str, float]
    machine_cpu: float
    images: int

    @classmethod
    def now(cls, images: int = 0) -> "Clock":
        """Reads all clocks; takes a few milliseconds."""
        return cls(wall=time.perf_counter(), roles=seconds_of_roles(), machine_cpu=machine_seconds(), images=images)

    def until(self, end: "Clock") -> dict[str, Any]:
        """Rates between two moments."""
        wall, images = end.wall - self.wall, end.images - self.images
        roles = {role: end.roles[role] - self.roles.get(role, 0.0) for role in end.roles}
        cpu = sum(roles.values())
        return {
            "seconds": wall,
            "images": images,
            "wall_ms_per_image": 1e3 * wall / images,
            "cpu_ms_per_image": 1e3 * cpu / images,
            **{f"{role}_cpu_ms_per_image": 1e3 * seconds / images for role, seconds in roles.items()},
            "cores_of_others": max(0.0, (end.machine_cpu - self.machine_cpu - cpu) / wall),
        }


def machine_seconds() -> float:
    """Processor time that all processes of this machine have used."""
    user, nice, system, _idle, _waiting, irq, soft_irq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def process_tree() -> dict[int, float]:
    """Numbers of this process and of everything it has started: seconds of processor time, buried children included."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            process = int(stat.parent.name)
            parents[process], used[process] = int(fields[1]), sum(map(int, fields[11:15])) / ticks

    def is_ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return {process: seconds for process, seconds in used.items() if is_ours(process)}


def seconds_of_roles() -> dict[str, float]:
    """Processor time of this process (in a stage: the driver), of voting actors and of Ray's other processes."""
    roles: dict[str, float] = {}
    for process, seconds in process_tree().items():
        role = "own" if process == os.getpid() else "actors" if is_actor(process) else "rays"
        roles[role] = roles.get(role, 0.0) + seconds
    return roles


def is_actor(process: int) -> bool:
    """Whether a process is an actor of a vote stage; Ray writes that into its title."""
    with contextlib.suppress(OSError):
        return "VoteWorker" in Path(f"/proc/{process}/cmdline").read_text()
    return False


def noise_dataset(num_images: int, recipe: Recipe, folder: Path) -> PreparedDataset:
    """Prepared noise: what is on an image does not change the time that voting takes."""
    rng = np.random.default_rng(0)
    files = []
    for pixels_HWC in rng.integers(0, 256, (num_images, *recipe.views.image_size, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=0)
        files.append({"bytes": buffer.getvalue(), "path": None})
    source = folder / "source"
    source.mkdir(parents=True)
    labels = pa.array(rng.integers(0, 10, num_images), pa.int64())
    pq.write_table(pa.table({"img": files, "label": labels}), source / "test-00000-of-00001.parquet")
    config = DataConfig(dataset="cifar10", source=str(source), allow_subset=True, rows_per_group=ROWS_PER_GROUP)
    return prepare(config, recipe.views.image_size, str(folder / "data"), splits=["test"])["test"]


def start_model(recipe: Recipe, dataset: PreparedDataset, folder: Path) -> Folder:
    """A checkpoint of start weights."""
    classifier = initial_classifier(recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, 0)
    model = Folder(str(folder))
    save_checkpoint(classifier, model, {})
    return model


def loop(recipe: Recipe, dataset: PreparedDataset, model: Folder, folder: Path, images_per_part: int) -> dict[str, Any]:
    """Loads the model, then reads, scores and writes part by part, in this process."""
    import torch

    from patchcert.models.checkpoint import load_checkpoint, read_checkpoint_config
    from patchcert.prediction.scoring import ViewScorer
    from patchcert.votes.identity import vote_identity
    from patchcert.votes.table import VotePart, part_name, write_part

    torch.set_num_threads(1)
    begun = time.perf_counter()
    classifier = load_checkpoint(model, classifier=recipe.classifier, views=recipe.views)
    loaded = time.perf_counter()
    scorer = ViewScorer(classifier, recipe.prediction, torch.device("cpu"))
    prepared = time.perf_counter()
    identity = vote_identity(
        recipe.voted_views,
        dataset,
        model_digest=read_checkpoint_config(model)["digest"],
        score_floor=recipe.prediction.score_floor,
        precision=recipe.prediction.precision,
    )
    table, parts = Folder(str(folder)), dataset.parts(images_per_part)
    start = end = Clock.now()
    for index, (first, stop) in enumerate(parts):
        images = dataset.read(first, stop)
        scored = scorer.score(images.images_NHWC, images.image_ids.tolist())
        part = VotePart(
            image_ids=images.image_ids,
            labels_N=images.labels_N,
            num_classes=dataset.num_classes,
            score_floor=recipe.prediction.score_floor,
            first_row=first,
            **vars(scored),
        )
        write_part(table, part_name(index, len(parts)), identity, first, part)
        if index == 0:
            start = Clock.now(stop)
        elif index == len(parts) - 1:
            end = Clock.now(stop)
    return {
        **start.until(end),
        "start": {"model_seconds": loaded - begun, "preparation_seconds": prepared - loaded},
        "images_per_part": images_per_part,
    }


def stage(recipe: Recipe, dataset: PreparedDataset, model: Folder, work: Path, resources: Resources) -> dict[str, Any]:
    """Runs the vote stage on the connected Ray."""
    from patchcert.stages.vote import VoteProgress, vote
    from patchcert.stages.vote_worker import Receipt

    marks: list[Clock] = []
    first_seconds: list[float] = []
    worker_seconds = 0.0

    def mark(receipt: Receipt, progress: VoteProgress) -> None:
        nonlocal worker_seconds
        if receipt.part < 0:
            return
        if not marks:
            marks.append(Clock.now(progress.images_done))
            first_seconds.append(receipt.seconds)
        else:
            worker_seconds += receipt.seconds

    begun = time.perf_counter()
    vote(recipe, dataset, model, Workspace(str(work)), resources, on_part=mark)
    end = Clock.now(dataset.num_rows)
    rates = marks[0].until(end)
    return {
        **rates,
        "worker_seconds_per_second": worker_seconds / rates["seconds"],
        "start": {"until_the_first_part_began": marks[0].wall - begun - first_seconds[0]},
    }


def main(settings: Settings) -> None:
    """Measures in turn, prints and stores."""
    from patchcert.stages.vote import images_per_part

    recipe = find_recipe(RECIPE)
    recipe = dataclasses.replace(recipe, classifier=dataclasses.replace(recipe.classifier, width=settings.width))
    resources = Resources(workers=1, images_per_part=settings.images_per_part)
    runs: dict[str, list[dict[str, Any]]] = {"loop": [], "stage": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few = noise_dataset(2 * PROBE_IMAGES, recipe, folder / "few")
        model = start_model(recipe, few, folder / "model")
        probe = loop(recipe, few, model, folder / "probe", PROBE_IMAGES)
        num_images = max(200, round(1e3 * settings.seconds / probe["cpu_ms_per_image"]))
        dataset = noise_dataset(num_images, recipe, folder)
        size = images_per_part(recipe, dataset.num_rows, resources)
        for repeat in range(settings.repeats):
            runs["loop"].append(loop(recipe, dataset, model, folder / f"loop-{repeat}", size))
            print("loop ", json.dumps(runs["loop"][-1]), flush=True)
            begun = time.perf_counter()
            # A Ray for each run, so that none of its processes runs beside the loop.
            with connected(resources):
                connect_seconds = time.perf_counter() - begun
                found = stage(recipe, dataset, model, folder / f"stage-{repeat}", resources)
                left = time.perf_counter()
            found["start"] |= {"ray_seconds": connect_seconds}
            found["ray_ends_seconds"] = time.perf_counter() - left
            runs["stage"].append(found)
            print("stage", json.dumps(found), flush=True)
    ratios = {
        clock: statistics.mean(run[clock] for run in runs["stage"])
        / statistics.mean(run[clock] for run in runs["loop"])
        for clock in ("wall_ms_per_image", "cpu_ms_per_image")
    }
    summary = {
        "stage_adds_to_wall_time": ratios["wall_ms_per_image"] - 1,
        "stage_adds_to_processor_time": ratios["cpu_ms_per_image"] - 1,
        "stage_start_seconds": statistics.mean(sum(run["start"].values()) for run in runs["stage"]),
        "loop_start_seconds": statistics.mean(sum(run["start"].values()) for run in runs["loop"]),
    }
    about = {
        "recipe": f"{RECIPE}, resnet18-small of width {settings.width:g}",
        "images": num_images,
        "views": recipe.views.num_views,
        "images_per_part": size,
        "threads": 1,
        "load_average_of_the_machine": os.getloadavg()[0],
    }
    found = {"environment": environment(), "about": about, "summary": summary, "runs": runs}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
