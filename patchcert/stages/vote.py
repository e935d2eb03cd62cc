"""Fills a vote table: Ray Data actors get descriptors of parts, write the parts to storage and return receipts."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.data

import patchcert.errors
from patchcert.data import PreparedDataset
from patchcert.data.storage import Folder
from patchcert.data.untrusted import read_json
from patchcert.errors import PatchcertError, ResourceError, VoteTableError
from patchcert.models.checkpoint import load_checkpoint, read_checkpoint_config
from patchcert.models.networks import ONE_PASS_NETWORKS
from patchcert.prediction.config import PredictionConfig
from patchcert.stages.cluster import WorkerShare, worker_share
from patchcert.stages.resources import Resources
from patchcert.stages.retries import with_retries
from patchcert.stages.vote_worker import ATTEMPTS, Receipt, VoteJob, VoteWorker, computed_once
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import RUN, SUCCESS, QuarantinedPart, VoteTable, finish_table, missing_parts
from patchcert.workspace import Workspace, canonical_settings

_LAYOUT = "layout.json"
_TARGET_PARTS = 64
_LARGE_IMAGE_PIXELS = 4_000_000
# More bad parts than these are no bad parts: then the model, the storage or the cluster is at fault.
_MOST_BAD_PARTS, _MOST_BAD_SHARE = 3, 0.1
# One is computed, the next one waits for it.
_PARTS_PER_ACTOR = 2
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_GRACE = 30.0

Row = dict[str, int]


@dataclasses.dataclass(kw_only=True)
class VoteProgress:
    """How far a vote stage is.

    Attributes:
        num_parts: parts of the table.
        parts_done: parts that are ready.
        num_images: images of the table.
        images_done: images that are ready.
        num_views: views of an image.
        failures: attempts at a part that came to nothing.
        views_per_second: since the first part of this run was ready, 0 before the second one is.
    """

    num_parts: int
    parts_done: int
    num_images: int
    images_done: int
    num_views: int
    failures: int = 0
    views_per_second: float = 0.0
    _first: tuple[float, int] | None = None

    def add(self, receipt: Receipt) -> None:
        """Counts a finished part. What the first one took holds the start of the actors and is no rate."""
        self.parts_done += 1
        self.images_done += receipt.rows
        self.failures += max(0, receipt.attempts - 1)
        now = time.monotonic()
        if self._first is None:
            self._first = (now, self.images_done)
        elif now > self._first[0]:
            self.views_per_second = (self.images_done - self._first[1]) * self.num_views / (now - self._first[0])

    def describe(self) -> str:
        """Parts, rate and failures, for a progress line."""
        words = [f"part {self.parts_done} of {self.num_parts}"]
        if self.views_per_second:
            words.append(f"{self.views_per_second:,.0f} views/s")
        if self.failures:
            words.append(f"{self.failures} attempts lost")
        return ", ".join(words)


@dataclasses.dataclass(kw_only=True)
class _Failure:
    """A part that failed so far: its last receipt and the machines that tried it."""

    receipt: Receipt
    nodes: tuple[str, ...] = ()

    def error(self) -> PatchcertError:
        kind = getattr(patchcert.errors, self.receipt.error_kind, VoteTableError)
        return kind(self.receipt.error)


def vote(
    recipe: Any,
    dataset: PreparedDataset,
    model_folder: Folder,
    workspace: Workspace,
    resources: Resources,
    *,
    on_part: Callable[[Receipt, VoteProgress], None] | None = None,
    say: Callable[[str], object] | None = None,
) -> VoteTable:
    """Scores all views of a prepared split on the connected Ray cluster.

    Parts that are there already are kept: the same call after a kill computes what is missing. The finished table
    does not depend on the number of actors, on failures or on order. A part that fails in a way that another node may
    mend is tried up to ``resources.part_attempts`` times, on different nodes where there are some.

    Args:
        recipe: views, classifier and prediction settings.
        dataset: prepared split.
        model_folder: checkpoint.
        workspace: where the table goes.
        resources: actors and devices, and what failures mean.
        on_part: called in this process with (receipt, progress) for every part that is ready, and once before.
        say: takes lines for the reader: waiting, failures and their repair.

    Raises:
        PatchcertError: what a worker reported (unreadable data, scores that are not finite, full disk ...), or parts
            that failed wherever they were tried, unless they are to be quarantined.
    """
    say = say or (lambda text: None)
    retried = _retrying(resources)
    plan = retried(lambda: plan_table(recipe, dataset, model_folder, workspace, resources, say))
    folder = plan.folder
    todo = retried(plan.missing)
    progress = VoteProgress(
        num_parts=len(plan.rows_of_parts),
        parts_done=len(plan.rows_of_parts) - len(todo),
        num_images=dataset.num_rows,
        images_done=dataset.num_rows - sum(row["stop"] - row["start"] for row in todo),
        num_views=recipe.voted_views.num_views,
    )
    if on_part is not None:
        on_part(Receipt(part=-1, rows=progress.images_done, seconds=0.0), progress)
    if not todo:
        return retried(lambda: finish_table(folder, plan.job.identity, plan.rows_of_parts))
    retried(lambda: plan.keep_layout())
    computed = {row["part"] for row in todo}
    started, worker_seconds, images_before = time.time(), 0.0, progress.images_done
    failures: dict[int, _Failure] = {}
    most_bad = max(_MOST_BAD_PARTS, math.floor(_MOST_BAD_SHARE * len(plan.rows_of_parts)))
    for attempt in range(resources.part_attempts):
        waiting = [row for row in todo if row["part"] not in failures or failures[row["part"]].receipt.remedy != "none"]
        if not waiting:
            break
        retried(lambda: _clear_attempts(folder))
        if attempt:
            say(f"{len(waiting)} parts failed and are tried again: {_first_line(failures)}")
        receipts = _receipts_of_pool if attempt == 0 else _receipts_of_tasks
        done = set()
        with contextlib.closing(receipts(plan, waiting, failures, resources)) as stream:
            for receipt in stream:
                worker_seconds += receipt.seconds
                if not receipt.error_kind:
                    done.add(receipt.part)
                    failures.pop(receipt.part, None)
                    progress.add(receipt)
                    if on_part is not None:
                        on_part(receipt, progress)
                    continue
                progress.failures += 1
                failure = failures.setdefault(receipt.part, _Failure(receipt=receipt))
                failure.receipt, failure.nodes = receipt, (*failure.nodes, *([receipt.node] if receipt.node else []))
                is_final = receipt.remedy == "none" and resources.on_bad_part == "error"
                if receipt.remedy == "stop" or is_final:
                    raise failure.error()
                if len(failures) > most_bad:
                    raise _too_many(failures, len(plan.rows_of_parts), failure)
        todo = [row for row in todo if row["part"] not in done]
    retried(lambda: _clear_attempts(folder))
    bad = [
        QuarantinedPart(part=part, reason=failure.receipt.error, nodes=tuple(dict.fromkeys(failure.nodes)))
        for part, failure in sorted(failures.items())
    ]
    if bad and resources.on_bad_part == "error":
        raise _given_up(failures, resources)
    record = _run_record(recipe, dataset, plan, progress, progress.images_done - images_before)
    seconds = max(time.time() - started, 1e-9)
    record |= {
        "seconds": round(seconds, 3),
        "worker_seconds": round(worker_seconds, 3),
        "views_per_second": round(record["views"] / seconds, 1),
        "quarantined_parts": len(bad),
    }
    retried(lambda: folder.write(RUN, json.dumps(record, indent=1, sort_keys=True).encode()))
    return retried(lambda: finish_table(folder, plan.job.identity, plan.rows_of_parts, bad, computed=computed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Which parts make a table, and who computes them; nothing has been written.

    Attributes:
        folder: of the table.
        rows_of_parts: rows (start, stop) of every part.
        images_per_part: of all parts but the last.
        share: actors and what each gets.
        job: what every actor needs.
    """

    folder: Folder
    rows_of_parts: list[tuple[int, int]]
    images_per_part: int
    share: WorkerShare
    job: VoteJob

    def missing(self) -> list[Row]:
        """Descriptors of the parts that are still to be computed."""
        return [
            {"part": index, "start": self.rows_of_parts[index][0], "stop": self.rows_of_parts[index][1]}
            for index in missing_parts(self.folder, self.job.identity, self.rows_of_parts)
        ]

    def keep_layout(self) -> None:
        """Writes down where the borders of the parts are, so that a later run keeps them."""
        if not self.folder.exists(_LAYOUT):
            layout = {"images_per_part": self.images_per_part}
            layout |= _arithmetic(self.job.device, self.job.prediction)
            self.folder.write(_LAYOUT, json.dumps(layout).encode())


def _arithmetic(device: str, prediction: PredictionConfig) -> dict[str, Any]:
    """What moves the last digits of scores, and so must not change between the parts of one table."""
    return {"device": device, "shortcuts": prediction.shortcuts, "compile": prediction.compile}


def _check_arithmetic(folder: Folder, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    for name, value in asked.items():
        # Tables of versions that had no such setting were begun without it.
        before = begun.get(name, False)
        if before == value:
            continue
        was, now, option = f"{name} {before}", f"{name} {value}", f"--prediction.{'' if before else 'no-'}{name}"
        if name == "device":
            was, now, option = before, value, f"--resources.device {before}"
        raise VoteTableError(
            f"{folder} was begun on {was}, but this run would go on with {now}.\n"
            f"  Use {option}, or delete the folder to start over."
        )


def plan_table(
    recipe: Any,
    dataset: PreparedDataset,
    model_folder: Folder,
    workspace: Workspace,
    resources: Resources,
    say: Callable[[str], object] | None = None,
) -> TablePlan:
    """Decides on the borders of parts and on the actors; a table that was begun keeps its borders and kind of device.

    Raises:
        CheckpointError: the checkpoint was made for something else; here, early, with both values.
        ResourceError: the hardware asked for is not there.
        VoteTableError: the table was begun on another kind of device, whose scores differ in the last digits.
    """
    load_checkpoint(
        model_folder,
        classifier=recipe.classifier,
        views=recipe.views,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
    )
    digest = read_checkpoint_config(model_folder)["digest"]
    identity = vote_identity(
        recipe.voted_views,
        dataset,
        model_digest=digest,
        score_floor=recipe.prediction.score_floor,
        precision=recipe.prediction.precision,
    )
    folder = workspace.votes(recipe.name, identity)
    share = worker_share(ray, resources, training=False, say=say)
    device = "cuda" if share.num_gpus else "cpu"
    size = images_per_part(recipe, dataset.num_rows, resources)
    if folder.exists(_LAYOUT):
        layout = read_json(folder, _LAYOUT)
        if not folder.exists(SUCCESS):
            _check_arithmetic(folder, layout, _arithmetic(device, recipe.prediction))
        size = int(layout["images_per_part"])
    rows_of_parts = dataset.parts(size)
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
        max_attempts=resources.part_attempts,
        storage_retries=resources.storage_retries,
    )
    return TablePlan(folder=folder, rows_of_parts=rows_of_parts, images_per_part=size, share=share, job=job)


def images_per_part(recipe: Any, num_images: int, resources: Resources) -> int:
    """Images of one part: asked for, or about 64 parts of 25 to 1,000 images (at most 50 large ones)."""
    if resources.images_per_part:
        return resources.images_per_part
    height, width = recipe.views.view_size
    most = 50 if recipe.voted_views.num_views * height * width > _LARGE_IMAGE_PIXELS else 1000
    return max(25, min(most, -(-num_images // _TARGET_PARTS)))


def _receipts_of_pool(
    plan: TablePlan, rows: list[Row], failures: dict[int, _Failure], resources: Resources
) -> Iterator[Receipt]:
    """Computes parts on a pool of Ray Data actors, which Ray starts again where they die.

    Parts without any receipt when nothing happens for too long are failures that another node may mend.
    """
    pool = ray.data.ActorPoolStrategy(
        size=min(plan.share.num_workers, len(rows)), max_tasks_in_flight_per_actor=_PARTS_PER_ACTOR
    )
    parts = ray.data.from_items(rows, override_num_blocks=len(rows))
    parts.context.execution_no_progress_timeout_s = resources.part_timeout
    options = plan.share.ray_options()
    receipts = parts.map_batches(
        VoteWorker,
        fn_constructor_kwargs={"job": plan.job},
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        **options,
    )
    left = {row["part"]: row for row in rows}
    try:
        for values in receipts.iter_rows():
            receipt = Receipt(**values)
            left.pop(receipt.part)
            yield receipt
    except ray.data.exceptions.ExecutionTimeoutError:
        for row in left.values():
            yield _lost(row, f"was not finished when nothing had happened for {resources.part_timeout:g} s")
    except ray.exceptions.RayError as error:
        raise _cluster_error(error) from error


def _receipts_of_tasks(
    plan: TablePlan, rows: list[Row], failures: dict[int, _Failure], resources: Resources
) -> Iterator[Receipt]:
    """Computes parts that failed, each in a process of its own and on a node that has not tried it, if there is one."""
    task = ray.remote(max_retries=0, **plan.share.ray_options())(computed_once)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= plan.share.num_cpus
        and node["Resources"].get("GPU", 0) >= plan.share.num_gpus
    ]
    pending = {}
    for row in rows:
        tried = failures[row["part"]].nodes
        others = [node for node in nodes if node["NodeManagerHostname"] not in tried]
        options: dict[str, Any] = {}
        if others:
            node = others[row["part"] % len(others)]
            options["scheduling_strategy"] = strategy(node_id=node["NodeID"], soft=True)
        pending[task.options(**options).remote(plan.job, row, resources.part_timeout)] = row
    last = time.monotonic()
    while pending:
        ready, _ = ray.wait(list(pending), timeout=_SECONDS_BETWEEN_LOOKS)
        for reference in ready:
            row, last = pending.pop(reference), time.monotonic()
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition(chr(10))[0]
                yield _lost(row, f"lost its process, or took longer than {resources.part_timeout:g} s: {reason}")
        # A task ends itself when its time is over; here is about those that found no place, or whose node is frozen.
        # They are not cancelled: Ray would end this process if one of them finished at that moment.
        if time.monotonic() - last > resources.part_timeout + _SECONDS_OF_GRACE:
            for row in pending.values():
                yield _lost(row, f"was not finished when nothing had happened for {resources.part_timeout:g} s")
            return


def _lost(row: Row, what: str) -> Receipt:
    name = f"part {row['part']} (images {row['start']} to {row['stop']})"
    message = f"{name} {what}.\n  Repeat the same command; --resources.part-timeout sets how long it waits."
    return Receipt(
        part=row["part"],
        rows=row["stop"] - row["start"],
        seconds=0.0,
        error_kind="VoteTableError",
        error=message,
        remedy="elsewhere",
    )


def _retrying(resources: Resources) -> Callable[[Callable[[], Any]], Any]:
    return lambda operation: with_retries(operation, resources.storage_retries)


def _clear_attempts(folder: Folder) -> None:
    marks = folder.folder(ATTEMPTS)
    for name in marks.files() if marks.exists() else ():
        marks.remove(name)


def _first_line(failures: dict[int, _Failure]) -> str:
    return next(iter(failures.values())).receipt.error.partition("\n")[0]


def _too_many(failures: dict[int, _Failure], num_parts: int, last: _Failure) -> PatchcertError:
    error = last.error()
    return type(error)(
        f"{len(failures)} of {num_parts} parts failed, too many to be bad parts; the last: {error}\n"
        "  Finished parts are kept: mend the cause and repeat the same command."
    )


def _given_up(failures: dict[int, _Failure], resources: Resources) -> PatchcertError:
    part, failure = min(failures.items())
    error = failure.error()
    nodes = ", ".join(dict.fromkeys(failure.nodes)) or "one node"
    others = f"; so did {len(failures) - 1} more parts" if len(failures) > 1 else ""
    return type(error)(
        f"part {part} failed {resources.part_attempts} times, on {nodes}{others}: {error}\n"
        "  Go without such parts, their images counted as wrong:  --resources.on-bad-part quarantine"
    )


def _cluster_error(error: Exception) -> ResourceError:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return ResourceError(
        f"Ray gave up on the vote stage: {lines[-1] if lines else type(error).__name__}\n"
        "  Finished parts are kept: repeat the same command; --verbose shows the workers' output."
    )


def _run_record(
    recipe: Any, dataset: PreparedDataset, plan: TablePlan, progress: VoteProgress, num_images: int
) -> dict[str, Any]:
    """The record run.json: what was measured on the way; not part of the table's identity."""
    from patchcert.provenance import environment

    return {
        "recipe": recipe.name,
        "prediction": canonical_settings(recipe.prediction),
        "dataset": f"{dataset.name}/{dataset.split}",
        "images": num_images,
        "views": num_images * recipe.voted_views.num_views,
        "one_pass": recipe.classifier.network in ONE_PASS_NETWORKS,
        "lost_attempts": progress.failures,
        "workers": plan.share.num_workers,
        "cpus_per_worker": plan.share.num_cpus,
        "gpus_per_worker": plan.share.num_gpus,
        "environment": environment(),
    }
