"""How the vote stage scales: workers, memory, the driver's cost of 5,000 parts, and a simulation of 1 to 100 nodes.

Start: python benchmarks/scaling.py                    (all of it, about 12 minutes on two free cores)
       python benchmarks/scaling.py --pieces driver simulation
Result: benchmarks/results/scaling.json; a piece that is not asked for keeps its old figures
Stop: Ctrl-C; finished pieces are kept.

Efficiency by the wall clock is only worth reading from a machine that does nothing else: ``cores_of_others`` says what
it did. By processor time it is the work of the whole process tree on an image, and the time that actors were at work.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import dataclasses
import functools
import heapq
import json
import math
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from framework_cost import Clock, is_actor, loop, noise_dataset, process_tree, start_model

from patchcert.data.storage import Folder
from patchcert.geometry import BandViews, CropViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import ONE_PASS_NETWORKS
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

    pieces: tuple[str, ...] = ("efficiency", "memory", "driver", "rates", "simulation")
    """efficiency, memory, driver, rates, simulation."""
    images: int = 4_000
    """Images of the efficiency runs."""
    images_per_part: int = 50
    """Images of a part of the efficiency runs."""
    width: float = 0.25
    """Width of the network of the efficiency runs: wider means more computing a part."""
    stub_parts: int = STUB_PARTS
    """Parts of the driver's piece."""


def measure_efficiency(settings: Settings) -> dict[str, Any]:
    """Images a second of one and of two workers, and what one and two plain loops reach without any framework."""
    recipe = find_recipe("column4-cifar10")
    recipe = dataclasses.replace(recipe, classifier=dataclasses.replace(recipe.classifier, width=settings.width))
    resources = Resources(images_per_part=settings.images_per_part)
    result: dict[str, Any] = {
        "recipe": f"column4-cifar10, resnet18-small of width {settings.width:g}",
        "views": recipe.views.num_views,
        "images_per_part": settings.images_per_part,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = noise_dataset(settings.images, recipe, folder)
        model = start_model(recipe, dataset, folder / "model")
        for count in (1, 2):
            # Two loops do twice the images, so that all runs take equally long.
            run = functools.partial(_loop, recipe, dataset, model, folder, settings.images_per_part)
            with multiprocessing.get_context("spawn").Pool(count) as pool:
                rates = pool.map(run, [f"loop-{count}-{index}" for index in range(count)], chunksize=1)
            result[f"loops_{count}"] = {
                "images_per_second": sum(1e3 / rate["wall_ms_per_image"] for rate in rates),
                "cpu_ms_per_image": float(np.mean([rate["cpu_ms_per_image"] for rate in rates])),
                "cores_of_others": float(np.mean([rate["cores_of_others"] for rate in rates])) - count + 1,
            }
        with connected(resources):
            for workers in (1, 2):
                share = dataclasses.replace(resources, workers=workers)
                result[f"workers_{workers}"] = _steady(recipe, dataset, model, folder / f"{workers}", share)
    for kind in ("loops", "workers"):
        one, two = (result[f"{kind}_{count}"]["images_per_second"] for count in (1, 2))
        result[f"efficiency_of_2_{kind}"] = two / one / 2
    one, two = (result[f"workers_{count}"]["seconds_in_all"] for count in (1, 2))
    result["efficiency_of_2_workers_in_all"] = one / two / 2
    # What a busy neighbour hardly changes: work of the whole process tree on an image, and whether actors ever wait.
    for count in (1, 2):
        found = result[f"workers_{count}"]
        found["cpu_of_loops"] = result["loops_1"]["cpu_ms_per_image"] / found["cpu_ms_per_image"]
        found["efficiency_by_processor_time"] = found["cpu_of_loops"] * min(1.0, found["share_of_time_at_work"])
    return result


def _loop(recipe: Any, dataset: Any, model: Folder, folder: Path, images_per_part: int, name: str) -> dict[str, Any]:
    return loop(recipe, dataset, model, folder / name, images_per_part)


def _steady(recipe: Any, dataset: Any, model: Folder, work: Path, resources: Resources) -> dict[str, Any]:
    """Rates while all workers have something to do: without the first parts of all and the last ones."""
    from patchcert.stages.vote import VoteProgress, vote

    marks: list[Clock] = []
    skipped, done, at_work = 2 * resources.workers, 0, 0.0

    def mark(receipt: Receipt, progress: VoteProgress) -> None:
        nonlocal done, at_work
        done += receipt.part >= 0
        if len(marks) == 1:
            at_work += receipt.seconds
        if done in (skipped, progress.num_parts - skipped):
            marks.append(Clock.now(progress.images_done))

    begun = time.perf_counter()
    vote(recipe, dataset, model, Workspace(str(work)), resources, on_part=mark)
    in_all = time.perf_counter() - begun
    first, last = marks[0], marks[-1]
    return {
        **first.until(last),
        "images_per_second": (last.images - first.images) / (last.wall - first.wall),
        "share_of_time_at_work": at_work / (last.wall - first.wall) / resources.workers,
        "seconds_in_all": in_all,
        "seconds_until_steady": first.wall - begun,
        "seconds_after": begun + in_all - last.wall,
    }


MEMORY_IMAGES = (500, 2_000, 8_000)
MEMORY_CASES = {
    "bandnet4-cifar10, one pass": ("bandnet4-cifar10", 0.25, ({}, {"chunk_views": 32}, {"chunk_views": 2048})),
    "column4-cifar10, chunks of views": ("column4-cifar10", 0.0625, ({}, {"chunk_views": 64}, {"chunk_views": 512})),
}


def measure_memory(settings: Settings) -> dict[str, Any]:
    """Most memory that the actor of a vote stage held: by images, by images of a part, by views of a chunk."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = noise_dataset(MEMORY_IMAGES[-1], find_recipe("bandnet4-cifar10"), folder)
        with connected(Resources()):
            for case, (name, width, predictions) in MEMORY_CASES.items():
                recipe = find_recipe(name)
                recipe = dataclasses.replace(recipe, classifier=dataclasses.replace(recipe.classifier, width=width))
                model = start_model(recipe, dataset, folder / name)
                one_pass = recipe.classifier.network in ONE_PASS_NETWORKS
                runs = [(num_images, 100, {}) for num_images in (MEMORY_IMAGES if one_pass else MEMORY_IMAGES[:2])]
                runs += [(2_000, 1_000, {})] + [(500, 100, prediction) for prediction in predictions if prediction]
                rows = []
                for index, (num_images, images_per_part, prediction) in enumerate(runs):
                    changed = dataclasses.replace(
                        recipe, prediction=dataclasses.replace(recipe.prediction, **prediction)
                    )
                    rows.append(
                        {
                            "images": num_images,
                            "images_per_part": images_per_part,
                            "chunk_views": changed.prediction.chunk_views,
                            "actor_peak_mebibytes": _actor_peak(
                                changed,
                                _first_rows(dataset, num_images),
                                model,
                                folder / f"{name}-{index}",
                                Resources(workers=1, images_per_part=images_per_part),
                            ),
                        }
                    )
                    print(case, rows[-1], flush=True)
                result[case] = rows
    return result


def _first_rows(dataset: Any, num_rows: int) -> Any:
    """The same files with fewer rows; the stage reads no others."""
    return dataclasses.replace(dataset, num_rows=num_rows)


def _actor_peak(recipe: Any, dataset: Any, model: Folder, work: Path, resources: Resources) -> float:
    from patchcert.stages.vote import VoteProgress, vote

    peaks: list[float] = []

    def look(receipt: Receipt, progress: VoteProgress) -> None:
        if progress.parts_done == progress.num_parts:
            peaks.extend(filter(None, map(_peak_of_actor, process_tree())))

    vote(recipe, dataset, model, Workspace(str(work)), resources, on_part=look)
    return max(peaks)


def _peak_of_actor(process: int) -> float:
    """MiB that a process held at most (VmHWM), 0 when it is no actor of a vote stage."""
    if not is_actor(process):
        return 0.0
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


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
    if "memory" in settings.pieces:
        keep("memory", measure_memory(settings))
    if "driver" in settings.pieces:
        keep("driver", measure_driver(settings))
    if "simulation" in settings.pieces:
        keep("simulation", run_simulation(results["rates"], results["driver"]))


if __name__ == "__main__":
    main(tyro.cli(Settings))
