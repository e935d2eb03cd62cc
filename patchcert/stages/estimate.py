"""A recipe and a few of its images in, what voting on all of them would cost out; nothing is kept."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray

from patchcert.data import PreparedDataset
from patchcert.data.storage import Folder
from patchcert.models.checkpoint import load_checkpoint
from patchcert.prediction.config import PredictionConfig
from patchcert.stages.resources import Resources
from patchcert.stages.vote import plan_table
from patchcert.stages.vote_worker import node_name
from patchcert.votes.table import VotePart, write_part
from patchcert.workspace import Workspace

_PROBE_SECONDS = 5.0
_PROBE_IMAGES = 16
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteEstimate:
    """What voting would cost.

    Attributes:
        name: of the recipe.
        num_images: images to vote on, those of finished parts not counted.
        num_views: views of an image.
        num_parts: parts to be computed.
        parts_done: parts that are there already.
        workers: actors that would compute.
        cpus_per_worker: cores of each.
        gpus_per_worker: GPUs of each, 0 for none.
        hardware: what was measured on: processor or GPU, and machine.
        probe_images: images that were scored to measure.
        probe_seconds: how long that took, start and warming up left out.
        table_bytes: size of the whole table.
        note: what makes the estimate rough, or empty.
    """

    name: str
    num_images: int
    num_views: int
    num_parts: int
    parts_done: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    hardware: str
    probe_images: int
    probe_seconds: float
    table_bytes: int
    note: str = ""

    @property
    def views_per_second(self) -> float:
        """Rate of one worker."""
        return self.probe_images * self.num_views / self.probe_seconds

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together, actors' start not counted."""
        return self.num_images * self.num_views / self.views_per_second / 3600

    @property
    def hours(self) -> float:
        """Wall-clock hours with these workers: the last parts leave some of them idle."""
        if not self.num_parts:
            return 0.0
        rounds = -(-self.num_parts // self.workers)
        return self.worker_hours * rounds / self.num_parts

    def describe(self) -> str:
        """A few lines for the reader."""
        amount = (
            f"{self.worker_hours * self.gpus_per_worker:,.3g} GPU-hours"
            if self.gpus_per_worker
            else f"{self.worker_hours * self.cpus_per_worker:,.3g} core-hours"
        )
        share = f"{self.cpus_per_worker} cores" + (f", {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "")
        lines = [
            f"{self.name}: {self.num_images:,} images x {self.num_views:,} views = "
            f"{self.num_images * self.num_views:,} views",
            f"parts     {self.num_parts:,} to compute, {self.parts_done:,} there already",
            f"table     {self.table_bytes / _GIB:.3f} GiB",
            f"measured  {self.views_per_second:,.0f} views a second and worker ({self.probe_images} images in "
            f"{self.probe_seconds:.1f} s on {self.hardware})",
            f"work      {amount}",
            f"time      {_duration(self.hours)} on {self.workers} workers ({share} each)",
        ]
        return "\n".join(lines + ([f"note      {self.note}"] if self.note else []))


def estimate_vote(
    recipe: Any,
    dataset: PreparedDataset,
    model_folder: Folder,
    workspace: Workspace,
    resources: Resources,
    *,
    num_images: int | None = None,
    note: str = "",
    say: Callable[[str], object] | None = None,
) -> VoteEstimate:
    """Scores a few images as a voting actor would, on the connected Ray cluster, and multiplies.

    Args:
        recipe: views, classifier and prediction settings.
        dataset: prepared split, or a few images of it.
        model_folder: checkpoint.
        workspace: where the table would go, and where its finished parts are.
        resources: actors and devices.
        num_images: images of the whole split, if the dataset holds only a few of them.
        note: what makes the estimate rough.
        say: takes lines for the reader while GPUs are waited for.

    Raises:
        PatchcertError: as ``vote`` would, before any part is computed.
    """
    plan = plan_table(recipe, dataset, model_folder, workspace, resources, say)
    is_whole = num_images is None or num_images == dataset.num_rows
    if is_whole:
        missing = plan.missing()
        todo, num_parts = sum(row["stop"] - row["start"] for row in missing), len(missing)
    else:
        todo, num_parts = num_images, -(-num_images // plan.images_per_part)
    images = dataset.read(0, min(_PROBE_IMAGES, dataset.num_rows))
    classifier = load_checkpoint(model_folder, classifier=recipe.classifier, views=recipe.views)
    task = ray.remote(max_retries=0, **plan.share.ray_options())(_probe)
    scored, seconds, hardware = ray.get(
        task.remote(classifier, images.images_NHWC, recipe.prediction, plan.job.device, plan.share.num_cpus)
    )
    probe = VotePart(
        image_ids=images.image_ids[: len(scored.top_classes_NV)],
        labels_N=images.labels_N[: len(scored.top_classes_NV)],
        top_classes_NV=scored.top_classes_NV,
        num_entries_NV=scored.num_entries_NV,
        entry_classes=scored.entry_classes,
        entry_scores=scored.entry_scores,
        num_classes=dataset.num_classes,
        score_floor=recipe.prediction.score_floor or None,
    )
    total = dataset.num_rows if is_whole else num_images
    return VoteEstimate(
        name=recipe.name,
        num_images=todo,
        num_views=recipe.voted_views.num_views,
        num_parts=num_parts,
        parts_done=len(plan.rows_of_parts) - num_parts if is_whole else 0,
        workers=min(plan.share.num_workers, max(1, num_parts)),
        cpus_per_worker=plan.share.num_cpus,
        gpus_per_worker=plan.share.num_gpus,
        hardware=hardware,
        probe_images=len(probe.labels_N),
        probe_seconds=seconds,
        table_bytes=_stored_bytes(probe, plan.job.identity) * total // len(probe.labels_N),
        note=note,
    )


def _probe(
    classifier: Any, images_NHWC: Any, prediction: PredictionConfig, device_name: str, num_threads: int
) -> tuple[Any, float, str]:
    """Runs where an actor would: scores images until some seconds have passed, after warming up with one."""
    import torch

    from patchcert.prediction.devices import find_device
    from patchcert.prediction.scoring import ViewScorer
    from patchcert.provenance import environment

    device = find_device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(num_threads)
    scorer = ViewScorer(classifier.to(device), prediction, device)

    def timed(num_images: int) -> tuple[Any, float]:
        started = time.perf_counter()
        scored = scorer.score(images_NHWC[:num_images])
        return scored, time.perf_counter() - started

    # The first call also pays for kernels that are chosen and memory that is taken: it only says how many images fit.
    _, seconds = timed(1)
    scored, seconds = timed(max(1, min(len(images_NHWC), int(_PROBE_SECONDS / max(seconds, 1e-6)))))
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else environment()["processor"]
    return scored, seconds, f"{chip}, {node_name()}"


def _stored_bytes(part: VotePart, identity: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(scratch)
        write_part(folder, "part.parquet", identity, 0, part)
        return folder.files()["part.parquet"]


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.0f} seconds"
