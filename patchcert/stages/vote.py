"""A checkpoint and prepared images in, a finished vote table out: Ray Data actors, descriptors in, receipts back."""

import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

import patchcert.errors
from patchcert.data import PreparedDataset
from patchcert.data.reading_ahead import read_ahead
from patchcert.data.storage import Folder
from patchcert.errors import PatchcertError, VoteTableError
from patchcert.models.checkpoint import load_checkpoint, read_checkpoint_config
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import ONE_PASS_NETWORKS
from patchcert.prediction.config import PredictionConfig
from patchcert.stages.cluster import thread_variables, worker_share
from patchcert.stages.resources import Resources
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import (
    RUN,
    SUCCESS,
    Identity,
    VotePart,
    VoteTable,
    finish_table,
    part_name,
    part_problem,
    write_part,
)
from patchcert.workspace import Workspace, canonical_settings

_LAYOUT = "layout.json"
_MAX_ATTEMPTS = 3
_TARGET_PARTS = 64
_LARGE_IMAGE_PIXELS = 4_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteJob:
    """Everything a voting actor needs, picklable.

    Attributes:
        identity: identity of the table.
        table_folder: where the parts go.
        dataset_folder: prepared split.
        model_folder: checkpoint.
        model_digest: digest the checkpoint must have.
        classifier: expected network and encoding.
        views: expected view set.
        prediction: floor, precision, chunk size.
        num_parts: number of parts of the table.
        num_threads: torch threads on CPUs.
        device: cpu or cuda.
    """

    identity: Identity
    table_folder: str
    dataset_folder: str
    model_folder: str
    model_digest: str
    classifier: ClassifierConfig
    views: Any
    prediction: PredictionConfig
    num_parts: int
    num_threads: int
    device: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one part.

    Attributes:
        part: its number.
        rows: images in it.
        seconds: time spent on it.
        error_kind: name of an error class of ``patchcert.errors``, or empty.
        error: message, or empty.
    """

    part: int
    rows: int
    seconds: float
    error_kind: str = ""
    error: str = ""


class VoteWorker:
    """Loads the model once and turns part descriptors into parts; works the same inside and outside of Ray."""

    def __init__(self, job: VoteJob) -> None:
        """Loads checkpoint and dataset description; an error is kept for the receipts."""
        import torch

        from patchcert.prediction.devices import find_device
        from patchcert.prediction.scoring import ViewScorer

        self._job = job
        self._folder = Folder(job.table_folder)
        self._problem: PatchcertError | None = None
        try:
            if job.device == "cpu":
                torch.set_num_threads(job.num_threads)
            self._device = find_device(job.device)
            folder = Folder(job.model_folder)
            found = read_checkpoint_config(folder)["digest"]
            if found != job.model_digest:
                raise VoteTableError(
                    f"{folder} has digest {found[:12]} on this node, the table is for {job.model_digest[:12]}.\n"
                    "  Keep models on storage that all nodes share."
                )
            self._classifier = load_checkpoint(folder, classifier=job.classifier, views=job.views).to(self._device)
            self._dataset = PreparedDataset.open(job.dataset_folder)
            self._scorer = ViewScorer(self._classifier, job.prediction, self._device)
        except PatchcertError as error:
            self._problem = error

    def __call__(self, descriptors: pa.Table) -> pa.Table:
        """Computes the parts named by a batch of descriptors; never raises, so that one bad part ends no other."""
        receipts = [self._receipt(row) for row in descriptors.to_pylist()]
        return pa.Table.from_pylist([dataclasses.asdict(receipt) for receipt in receipts], schema=_RECEIPT_SCHEMA)

    def _receipt(self, row: dict[str, int]) -> Receipt:
        started = time.perf_counter()
        part, rows = row["part"], row["stop"] - row["start"]
        try:
            if self._problem is not None:
                raise self._problem
            self._compute(part, row["start"], row["stop"])
        except PatchcertError as error:
            kind, message = type(error).__name__, str(error)
        except Exception as error:
            kind = "VoteTableError"
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = (
                f"part {part} failed: {type(error).__name__}: {error} ({where.name}, line {where.lineno}).\n"
                "  Repeat the command; --verbose shows the workers' output."
            )
        else:
            return Receipt(part=part, rows=rows, seconds=time.perf_counter() - started)
        return Receipt(part=part, rows=rows, seconds=time.perf_counter() - started, error_kind=kind, error=message)

    def _compute(self, part: int, start: int, stop: int) -> None:
        from patchcert.prediction.scoring import ScoredViews

        job = self._job
        name = part_name(part, job.num_parts)
        if part_problem(self._folder, name, job.identity, (start, stop)) is None:
            return
        attempt = self._mark_attempt(part)
        image_ids, labels, scores = [], [], []
        first_row = start
        for images in read_ahead(self._dataset, start, stop):
            names = images.image_ids.tolist()
            scores.append(self._scorer.score(images.images_NHWC, names, first_row=first_row))
            first_row += len(names)
            image_ids.append(images.image_ids)
            labels.append(images.labels_N)
        scored = ScoredViews.joined(scores)
        votes = VotePart(
            image_ids=np.concatenate(image_ids),
            labels_N=np.concatenate(labels),
            top_classes_NV=scored.top_classes_NV,
            num_entries_NV=scored.num_entries_NV,
            entry_classes=scored.entry_classes,
            entry_scores=scored.entry_scores,
            num_classes=self._classifier.num_classes,
            score_floor=job.prediction.score_floor or None,
            first_row=start,
        )
        write_part(self._folder, name, job.identity, start, votes)
        for number in range(1, attempt + 1):
            self._folder.remove(_attempt_name(part, number))

    def _mark_attempt(self, part: int) -> int:
        """Leaves a mark before the work: a part that kills its process again and again is given up after three."""
        for number in range(1, _MAX_ATTEMPTS + 1):
            if not self._folder.exists(_attempt_name(part, number)):
                self._folder.write(_attempt_name(part, number), b"")
                return number
        raise VoteTableError(
            f"part {part} ended its worker process {_MAX_ATTEMPTS} times (out of memory?).\n"
            "  Lower --prediction.chunk-views or --resources.images-per-part, then repeat the command."
        )


_RECEIPT_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("rows", pa.int64()),
        ("seconds", pa.float64()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
    ]
)


def vote(
    recipe: Any,
    dataset: PreparedDataset,
    model_folder: Folder,
    workspace: Workspace,
    resources: Resources,
    *,
    on_part: Callable[[Receipt, int], None] | None = None,
) -> VoteTable:
    """Scores all views of a prepared split on the connected Ray cluster.

    Parts that are there already are kept: the same call after a kill computes what is missing. The finished table
    does not depend on the number of actors, on failures or on order.

    Args:
        recipe: views, classifier and prediction settings.
        dataset: prepared split.
        model_folder: checkpoint.
        workspace: where the table goes.
        resources: actors and devices.
        on_part: called in this process with (receipt, images still missing) for every part that is ready.

    Raises:
        PatchcertError: what a worker reported (unreadable data, scores that are not finite, full disk ...).
    """
    # Fails early, here, with both values when the checkpoint was made for something else.
    load_checkpoint(model_folder, classifier=recipe.classifier, views=recipe.views, num_classes=dataset.num_classes)
    digest = read_checkpoint_config(model_folder)["digest"]
    identity = vote_identity(
        recipe.voted_views,
        dataset,
        model_digest=digest,
        score_floor=recipe.prediction.score_floor,
        precision=recipe.prediction.precision,
    )
    folder = workspace.votes(recipe.name, identity)
    share = worker_share(ray, resources, training=False)
    device = "cuda" if share.num_gpus else "cpu"
    rows_of_parts = _layout(folder, recipe, dataset, resources, device)
    todo = [
        {"part": index, "start": start, "stop": stop}
        for index, (start, stop) in enumerate(rows_of_parts)
        if part_problem(folder, part_name(index, len(rows_of_parts)), identity, (start, stop)) is not None
    ]
    missing = sum(row["stop"] - row["start"] for row in todo)
    if on_part is not None:
        on_part(Receipt(part=-1, rows=dataset.num_rows - missing, seconds=0.0), missing)
    started = time.time()
    if todo:
        for row in todo:
            for number in range(1, _MAX_ATTEMPTS + 1):
                folder.remove(_attempt_name(row["part"], number))
        job = VoteJob(
            identity=identity,
            table_folder=str(folder),
            dataset_folder=str(dataset.folder),
            model_folder=str(model_folder),
            model_digest=digest,
            classifier=recipe.classifier,
            views=recipe.views,
            prediction=recipe.prediction,
            num_parts=len(rows_of_parts),
            num_threads=share.num_cpus,
            device=device,
        )
        pool = ray.data.ActorPoolStrategy(size=min(share.num_workers, len(todo)), max_tasks_in_flight_per_actor=2)
        worker_seconds = 0.0
        receipts = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            VoteWorker,
            fn_constructor_kwargs={"job": job},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus or None,
            compute=pool,
            runtime_env={"env_vars": thread_variables(share)},
        )
        for values in receipts.iter_rows():
            receipt = Receipt(**values)
            if receipt.error_kind:
                raise getattr(patchcert.errors, receipt.error_kind, VoteTableError)(receipt.error)
            missing -= receipt.rows
            worker_seconds += receipt.seconds
            if on_part is not None:
                on_part(receipt, missing)
        seconds = time.time() - started
        done = sum(row["stop"] - row["start"] for row in todo)
        _record_run(folder, recipe, dataset, share, done, seconds, worker_seconds)
    return finish_table(folder, identity, rows_of_parts)


def images_per_part(recipe: Any, num_images: int, resources: Resources) -> int:
    """Images of one part: asked for, or about 64 parts of 25 to 1,000 images (at most 50 large ones)."""
    if resources.images_per_part:
        return resources.images_per_part
    height, width = recipe.views.view_size
    most = 50 if recipe.voted_views.num_views * height * width > _LARGE_IMAGE_PIXELS else 1000
    return max(25, min(most, -(-num_images // _TARGET_PARTS)))


def _layout(
    folder: Folder, recipe: Any, dataset: PreparedDataset, resources: Resources, device: str
) -> list[tuple[int, int]]:
    """Borders of the parts; a table that was begun keeps its borders, and its kind of device.

    Raises:
        VoteTableError: the table was begun on another kind of device, whose scores differ in the last digits.
    """
    if not folder.exists(_LAYOUT):
        size = images_per_part(recipe, dataset.num_rows, resources)
        folder.write(_LAYOUT, json.dumps({"images_per_part": size, "device": device}).encode())
        return dataset.parts(size)
    layout = json.loads(folder.read(_LAYOUT))
    if layout["device"] != device and not folder.exists(SUCCESS):
        raise VoteTableError(
            f"{folder} was begun on {layout['device']}, but this run would go on with {device}.\n"
            f"  Use --resources.device {layout['device']}, or delete the folder to start over."
        )
    return dataset.parts(int(layout["images_per_part"]))


def _attempt_name(part: int, number: int) -> str:
    return f"attempts/part-{part:05d}-{number}"


def _record_run(
    folder: Folder,
    recipe: Any,
    dataset: PreparedDataset,
    share: Any,
    num_images: int,
    seconds: float,
    worker_seconds: float,
) -> None:
    """Writes run.json: what was measured on the way; not part of the table's identity."""
    from patchcert.provenance import environment

    record = {
        "recipe": recipe.name,
        "prediction": canonical_settings(recipe.prediction),
        "dataset": f"{dataset.name}/{dataset.split}",
        "images": num_images,
        "views": num_images * recipe.voted_views.num_views,
        "seconds": round(seconds, 3),
        "worker_seconds": round(worker_seconds, 3),
        "one_pass": recipe.classifier.network in ONE_PASS_NETWORKS,
        "views_per_second": round(num_images * recipe.voted_views.num_views / max(seconds, 1e-9), 1),
        "workers": share.num_workers,
        "cpus_per_worker": share.num_cpus,
        "gpus_per_worker": share.num_gpus,
        "environment": environment(),
    }
    folder.write(RUN, json.dumps(record, indent=1, sort_keys=True).encode())
