"""How the vote stage scales: one and two workers, the driver's cost of 5,000 parts, and a simulation of 1 to 100 nodes.

Start: python benchmarks/scaling.py                    (all of it, about 5 minutes on two free cores)
       python benchmarks/scaling.py --pieces driver simulation
Result: benchmarks/results/scaling.json; a piece that is not asked for keeps its old figures
Stop: Ctrl-C; finished pieces are kept.

The machine may be shared: efficiency is counted in processor time of the whole process tree, which a busy neighbour
hardly changes, and the wall clock and the load average stand beside it.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import dataclasses
import heapq
import json
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from patchcert.data import prepare
from patchcert.data.storage import Folder
from patchcert.geometry import BandViews, CropViews
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.provenance import environment
from patchcert.recipes import find_recipe
from patchcert.stages.cluster import WorkerShare, connected
from patchcert.stages.resources import Resources
from patchcert.stages.vote_worker import Receipt, VoteJob
from patchcert.views.encoding import EncodingConfig
from patchcert.votes.table import VotePart, finish_table, part_name, write_part
from patchcert.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "scaling.json"
STUB_PARTS = 5000
IMAGENET_IMAGES = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    pieces: tuple[str, ...] = ("efficiency", "driver", "rates", "simulation")
    """efficiency, driver, rates, simulation."""
    images: int = 500
    """Images of the efficiency runs."""
    width: float = 0.5
    """Width of the network of the efficiency runs: wider means more computing a part."""
    stub_parts: int = STUB_PARTS
    """Parts of the driver's piece."""


def tree_seconds() -> float:
    """Processor time of this process and of everything it has started and not yet buried."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        process = int(stat.parent.name)
        parents[process], used[process] = int(fields[1]), sum(map(int, fields[11:15])) / ticks

    def is_ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return sum(seconds for process, seconds in used.items() if is_ours(process))


def measure_efficiency(settings: Settings) -> dict[str, Any]:
    """Processor seconds an image: by a plain loop in this process, and by the stage with one and with two workers."""
    import torch

    from patchcert.prediction.scoring import score_views
    from patchcert.stages.vote import VoteProgress, vote

    torch.set_num_threads(1)
    recipe = find_recipe("column4-digits")
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, limit=settings.images),
        classifier=dataclasses.replace(recipe.classifier, width=settings.width),
    )
    result: dict[str, Any] = {"images": settings.images, "views": recipe.views.num_views}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = prepare(recipe.data, recipe.views.image_size, scratch + "/data", splits=["test"])["test"]
        classifier = initial_classifier(recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, 0)
        model = Folder(scratch + "/model")
        save_checkpoint(classifier, model, {})
        images = dataset.read_all().images_NHWC
        score_views(classifier.eval(), images[:20], recipe.prediction, torch.device("cpu"))
        started = time.process_time()
        score_views(classifier, images, recipe.prediction, torch.device("cpu"))
        ideal = (time.process_time() - started) / len(images)
        result["plain_loop_cpu_ms_per_image"] = 1e3 * ideal
        with connected(Resources()):
            for workers in (1, 2):
                marks: list[tuple[float, float, int]] = []

                def mark(receipt: Receipt, progress: VoteProgress, marks: list = marks) -> None:
                    # Actors are up when the first part is ready, and begin to leave when few are left.
                    if receipt.part >= 0 and progress.parts_done <= progress.num_parts - 4:
                        marks.append((tree_seconds(), time.perf_counter(), progress.images_done))

                resources = Resources(workers=workers, images_per_part=max(5, settings.images // 50))
                vote(recipe, dataset, model, Workspace(f"{scratch}/{workers}"), resources, on_part=mark)
                (cpu, wall, done), (cpu_end, wall_end, done_end) = marks[4], marks[-1]
                per_image = (cpu_end - cpu) / (done_end - done)
                result[f"workers_{workers}"] = {
                    "cpu_ms_per_image": 1e3 * per_image,
                    "efficiency": ideal / per_image,
                    "wall_images_per_second": (done_end - done) / (wall_end - wall),
                    "images_between_marks": done_end - done,
                }
    one, two = result["workers_1"], result["workers_2"]
    result["efficiency_of_2_relative_to_1"] = one["cpu_ms_per_image"] / two["cpu_ms_per_image"]
    result["wall_speedup_of_2"] = two["wall_images_per_second"] / one["wall_images_per_second"]
    return result


class StubWorker:
    """Writes a part of one image without asking any model, as fast as storage takes it."""

    def __init__(self, job: VoteJob) -> None:
        self._job, self._folder = job, Folder(job.table_folder)

    def __call__(self, descriptors: Any) -> Any:
        from patchcert.stages.vote_worker import _RECEIPT_SCHEMA

        (row,) = descriptors.to_pylist()
        part = VotePart(
            image_ids=np.array([f"image-{row['start']}"]),
            labels_N=np.zeros(1, np.int64),
            top_classes_NV=np.zeros((1, self._job.views.num_views), np.uint16),
            num_classes=10,
        )
        write_part(self._folder, part_name(row["part"], self._job.num_parts), self._job.identity, row["start"], part)
        receipt = Receipt(part=row["part"], rows=1, seconds=0.0, attempts=1)
        import pyarrow as pa

        return pa.Table.from_pylist([dataclasses.asdict(receipt)], schema=_RECEIPT_SCHEMA)


def measure_driver(settings: Settings) -> dict[str, Any]:
    """What the driver spends on a part whose work is nothing: planning, dispatch, receipts, verification."""
    from patchcert.stages import vote as stage

    recipe, num_parts = find_recipe("column4-digits"), settings.stub_parts
    identity = {
        "schema_version": 1,
        "views": recipe.views.identity(),
        "votes": {"rule": "top_class", "score_floor": 0.0, "precision": "float32"},
        "num_classes": 10,
        "dataset": {"name": "stub", "num_images": num_parts, "num_quarantined": 0},
    }
    with tempfile.TemporaryDirectory() as scratch:
        job = VoteJob(
            identity=identity,
            table_folder=scratch + "/table",
            dataset_folder="",
            model_folder="",
            model_digest="",
            classifier=recipe.classifier,
            views=recipe.views,
            prediction=recipe.prediction,
            num_parts=num_parts,
            num_threads=1,
            device="cpu",
        )
        plan = stage.TablePlan(
            folder=Folder(job.table_folder),
            rows_of_parts=[(row, row + 1) for row in range(num_parts)],
            images_per_part=1,
            share=WorkerShare(num_workers=2, num_cpus=1, num_gpus=0),
            job=job,
        )
        stage.VoteWorker = StubWorker  # type: ignore[misc]
        with connected(Resources()) as ray:
            started, cpu = time.perf_counter(), time.process_time()
            rows = plan.missing()
            planned = time.perf_counter()
            count = sum(not receipt.error for receipt in stage._receipts_of_pool(plan, rows, {}, Resources()))
            ran, ran_cpu = time.perf_counter(), time.process_time()
            finish_table(plan.folder, identity, plan.rows_of_parts)
            finished = time.perf_counter()
            store = ray.cluster_resources().get("object_store_memory", 0)
            left = ray.available_resources().get("object_store_memory", 0)
    return {
        "parts": count,
        "driver_cpu_ms_per_part": 1e3 * (ran_cpu - cpu) / num_parts,
        "wall_ms_per_part": 1e3 * (ran - planned) / num_parts,
        "plan_ms_per_part": 1e3 * (planned - started) / num_parts,
        "verify_ms_per_part": 1e3 * (finished - ran) / num_parts,
        "driver_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "object_store_gib": store / 2**30,
        "object_store_in_use_afterwards_mib": (store - left) / 2**20,
    }


CASES = {
    "all 224 columns of width 25, ResNet50": (
        BandViews(image_size=(224, 224), width=25),
        ClassifierConfig(network="torchvision:resnet50"),
    ),
    "all 21,025 crops of 80x80, ResNet34": (
        CropViews(image_size=(224, 224), crop_size=(80, 80)),
        ClassifierConfig(network="torchvision:resnet34", encoding=EncodingConfig(removed="cut")),
    ),
}


def measure_rates(settings: Settings) -> dict[str, Any]:
    """Views a second of one core, from the fastest of a few chunks of views of one ImageNet-sized image."""
    import torch

    torch.set_num_threads(1)
    rates = {}
    for name, (views, config) in CASES.items():
        classifier = initial_classifier(config, views, 3, 1000, 0).eval()
        pixels = classifier.cutter.encode(torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8))
        chunk, seconds = 4, []
        with torch.inference_mode():
            for first in range(0, 4 * chunk, chunk):
                started = time.process_time()
                classifier.some_views(pixels, torch.arange(first, first + chunk)[None])
                seconds.append((time.process_time() - started) / chunk)
        rates[name] = {"views": views.num_views, "core_ms_per_view": 1e3 * min(seconds)}
    return rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is simulated.

    Attributes:
        nodes: machines.
        workers_per_node: actors on each.
        seconds_per_part: median time of a part.
        spread: standard deviation of the logarithm of a part's time.
        slow_share: share of nodes that are slow.
        slow_factor: how much longer parts take there.
        losses_per_node_hour: rate at which nodes are lost.
        replacement_seconds: until a lost node's successor computes.
        start_seconds: until a node's actors have loaded the model.
        driver_seconds_per_part: what the driver spends on a part, one after the other.
    """

    nodes: int
    workers_per_node: int
    seconds_per_part: float
    spread: float = 0.1
    slow_share: float = 0.02
    slow_factor: float = 3.0
    losses_per_node_hour: float = 0.05
    replacement_seconds: float = 300.0
    start_seconds: float = 60.0
    driver_seconds_per_part: float = 0.01


class Node:
    """The times at which one machine computes: from a start to a loss, again and again."""

    def __init__(self, cluster: Cluster, random: np.random.Generator) -> None:
        self._cluster, self._random = cluster, random
        self._periods: list[tuple[float, float]] = []
        self._add(0.0)

    def _add(self, ordered: float) -> None:
        rate = self._cluster.losses_per_node_hour
        start = ordered + self._cluster.start_seconds
        life = float(self._random.exponential(3600 / rate)) if rate else math.inf
        self._periods.append((start, start + life))

    def period(self, moment: float) -> tuple[float, float]:
        """The first period that has not ended at a moment."""
        while self._periods[-1][1] <= moment:
            self._add(self._periods[-1][1] + self._cluster.replacement_seconds)
        return next(period for period in self._periods if period[1] > moment)


def simulate(cluster: Cluster, num_parts: int, seed: int = 0) -> dict[str, float]:
    """Plays a vote stage through: parts go to whichever worker is free; a lost node's parts go back into the queue."""
    random = np.random.default_rng(seed)
    slow = random.random(cluster.nodes) < cluster.slow_share
    nodes = [Node(cluster, random) for _ in range(cluster.nodes)]
    free = [(0.0, node) for node in range(cluster.nodes) for _ in range(cluster.workers_per_node)]
    heapq.heapify(free)
    waiting, finish_time, driver_free, lost_seconds, lost_parts = num_parts, 0.0, 0.0, 0.0, 0
    returned: list[float] = []  # moments at which lost parts come back
    while waiting or returned:
        moment, node = heapq.heappop(free)
        start, end = nodes[node].period(moment)
        if start > moment:
            heapq.heappush(free, (start, node))
            continue
        while returned and returned[0] <= moment:
            heapq.heappop(returned)
            waiting += 1
        if not waiting:
            heapq.heappush(free, (returned[0], node))
            continue
        driver_free = max(driver_free, moment) + cluster.driver_seconds_per_part
        begin = driver_free
        took = cluster.seconds_per_part * float(np.exp(random.normal(0, cluster.spread)))
        took *= cluster.slow_factor if slow[node] else 1
        waiting -= 1
        if begin + took > end:
            lost_parts += 1
            lost_seconds += max(0.0, end - begin)
            heapq.heappush(returned, end + NOTICE_SECONDS)
            heapq.heappush(free, (max(begin, end), node))
        else:
            finish_time = max(finish_time, begin + took)
            heapq.heappush(free, (begin + took, node))
    work = num_parts * cluster.seconds_per_part / cluster.workers_per_node / cluster.nodes
    return {
        "hours": finish_time / 3600,
        "machine_hours": finish_time / 3600 * cluster.nodes,
        "efficiency": work / finish_time,
        "lost_parts": lost_parts,
        "lost_share": lost_seconds / (num_parts * cluster.seconds_per_part),
    }


NODE_CORES = 32
NOTICE_SECONDS = 20.0
"""Until Ray takes a silent node for dead."""
ASSUMED_GPU_VIEWS_PER_SECOND = 4000
"""Not measured: a round number for one data-centre GPU; ``patchcert vote RECIPE --dry-run`` measures yours."""
PART_SECONDS, MOST_PARTS, PARTS_PER_WORKER = 20.0, 5000, 6


def run_simulation(rates: dict[str, Any], driver: dict[str, Any]) -> dict[str, Any]:
    """Hours of the two ImageNet tables on 1 to 100 nodes, of 32 cores at the measured rate or of one GPU as assumed."""
    result: dict[str, Any] = {
        "images": IMAGENET_IMAGES,
        "seconds_per_part": PART_SECONDS,
        "node_cores": NODE_CORES,
        "assumed_gpu_views_per_second": ASSUMED_GPU_VIEWS_PER_SECOND,
        "assumptions": dataclasses.asdict(Cluster(nodes=1, workers_per_node=1, seconds_per_part=PART_SECONDS)),
        "tables": {},
    }
    driver_seconds = driver["wall_ms_per_part"] / 1e3
    for name, rate in rates.items():
        for kind, workers, views_per_second in (
            (f"nodes of {NODE_CORES} cores, rate measured", NODE_CORES, 1e3 / rate["core_ms_per_view"]),
            ("nodes of 1 GPU, rate assumed", 1, float(ASSUMED_GPU_VIEWS_PER_SECOND)),
        ):
            seconds = IMAGENET_IMAGES * rate["views"] / views_per_second
            rows = []
            for nodes in (1, 2, 4, 8, 16, 32, 64, 100):
                # Parts of about 20 seconds; more than 5,000 of them only to give every worker several, so that the
                # last ones keep nobody waiting for long.
                few = min(MOST_PARTS, math.ceil(seconds / PART_SECONDS))
                num_parts = min(IMAGENET_IMAGES, max(few, PARTS_PER_WORKER * workers * nodes))
                cluster = Cluster(
                    nodes=nodes,
                    workers_per_node=workers,
                    seconds_per_part=seconds / num_parts,
                    driver_seconds_per_part=driver_seconds,
                )
                runs = [simulate(cluster, num_parts, seed) for seed in range(5)]
                mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
                rows.append({"nodes": nodes, "parts": num_parts, "part_seconds": cluster.seconds_per_part, **mean})
            result["tables"][f"{name}; {kind}"] = rows
    return result


def main(settings: Settings) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def keep(piece: str, values: dict[str, Any]) -> None:
        results[piece] = values
        results.setdefault("about", {})[piece] = {
            "load_average": os.getloadavg()[0],
            "environment": environment(),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(piece, json.dumps(values, indent=1), flush=True)

    if "rates" in settings.pieces:
        keep("rates", measure_rates(settings))
    if "efficiency" in settings.pieces:
        keep("efficiency", measure_efficiency(settings))
    if "driver" in settings.pieces:
        keep("driver", measure_driver(settings))
    if "simulation" in settings.pieces:
        keep("simulation", run_simulation(results["rates"], results["driver"]))


if __name__ == "__main__":
    main(tyro.cli(Settings))
