"""Computes parts of a vote table from their descriptors and returns receipts; the same inside and outside of Ray."""

import contextlib
import dataclasses
import faulthandler
import functools
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from patchcert.data import PreparedDataset
from patchcert.data.reading_ahead import read_ahead
from patchcert.data.storage import Folder
from patchcert.data.untrusted import read_json
from patchcert.errors import PatchcertError, VoteTableError
from patchcert.models.checkpoint import load_checkpoint, read_checkpoint_config
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.stages.retries import is_lasting, is_passing, with_retries
from patchcert.votes.table import Identity, VotePart, part_name, part_problem, write_part

ATTEMPTS = "attempts"
_LOST_DEVICE_EXIT = 70
_LONGEST_WATCH = 1e9

Remedy = Literal["", "elsewhere", "none", "stop"]
"""What may help a failed part: another node, nothing, or nothing for any part (a full disk, a wrong checkpoint)."""


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
        max_attempts: a part that ended its process so often is given up.
        storage_retries: how often storage that fails is tried again.
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
    max_attempts: int = 3
    storage_retries: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one part.

    Attributes:
        part: its number.
        rows: images in it.
        seconds: time spent on it.
        node: name of the machine.
        attempts: how often it was begun, this time included; 0 when it was there already.
        retries: how often storage was tried again.
        error_kind: name of an error class of ``patchcert.errors``, or empty.
        error: message, or empty.
        remedy: what may help a failed part, or empty.
    """

    part: int
    rows: int
    seconds: float
    node: str = ""
    attempts: int = 0
    retries: int = 0
    error_kind: str = ""
    error: str = ""
    remedy: Remedy = ""


class VoteWorker:
    """Loads the model once and turns part descriptors into parts."""

    def __init__(self, job: VoteJob) -> None:
        """Loads checkpoint and dataset description; an error is kept for the receipts."""
        self._job = job
        self._folder = Folder(job.table_folder)
        self._problem: PatchcertError | None = None
        try:
            with_retries(self._load, job.storage_retries)
        except PatchcertError as error:
            self._problem = error
        except Exception as error:
            self._problem = VoteTableError(
                f"a voting actor cannot start: {_described(error)}.\n  Mend its node or model."
            )

    def _load(self) -> None:
        import torch

        from patchcert.prediction.devices import find_device
        from patchcert.prediction.scoring import ViewScorer

        job = self._job
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

    def __call__(self, descriptors: pa.Table) -> pa.Table:
        """Computes the parts named by a batch of descriptors; never raises, so that one bad part ends no other."""
        receipts = [self.compute(row) for row in descriptors.to_pylist()]
        return pa.Table.from_pylist([dataclasses.asdict(receipt) for receipt in receipts], schema=_RECEIPT_SCHEMA)

    def compute(self, row: dict[str, int]) -> Receipt:
        """Computes one part unless it is there already.

        Args:
            row: number of the part and its rows: part, start, stop.
        """
        work = _Work(self._job, self._folder, row["part"], row["start"], row["stop"])
        try:
            if self._problem is not None:
                raise self._problem
            self._compute(work)
        except _EndsItsProcess as error:
            return work.failed(VoteTableError(str(error)), "elsewhere")
        except PatchcertError as error:
            if self._problem is not None or is_lasting(error):
                return work.failed(error, "stop")
            return work.failed(error, "elsewhere" if is_passing(error) else "none")
        except Exception as error:
            self._leave_if_device_is_lost(work, error)
            message = f"{work.name} failed: {_described(error)}.\n  --verbose shows the workers' output."
            return work.failed(VoteTableError(message), "stop" if is_lasting(error) else "elsewhere")
        return work.receipt()

    def _compute(self, work: "_Work") -> None:
        job = self._job
        name, rows = part_name(work.part, job.num_parts), (work.start, work.stop)
        if work.retried(lambda: part_problem(self._folder, name, job.identity, rows)) is None:
            return
        work.retried(work.begin)
        votes = work.retried(lambda: self._votes(*rows))
        work.retried(lambda: write_part(self._folder, name, job.identity, work.start, votes))
        work.end()

    def _votes(self, start: int, stop: int) -> VotePart:
        from patchcert.prediction.scoring import ScoredViews

        image_ids, labels, scores = [], [], []
        first_row = start
        for images in read_ahead(self._dataset, start, stop):
            names = images.image_ids.tolist()
            scores.append(self._scorer.score(images.images_NHWC, names, first_row=first_row))
            first_row += len(names)
            image_ids.append(images.image_ids)
            labels.append(images.labels_N)
        scored = ScoredViews.joined(scores)
        return VotePart(
            image_ids=np.concatenate(image_ids),
            labels_N=np.concatenate(labels),
            top_classes_NV=scored.top_classes_NV,
            num_entries_NV=scored.num_entries_NV,
            entry_classes=scored.entry_classes,
            entry_scores=scored.entry_scores,
            num_classes=self._classifier.num_classes,
            score_floor=self._job.prediction.score_floor or None,
            first_row=start,
        )

    def _leave_if_device_is_lost(self, work: "_Work", error: Exception) -> None:
        """Ends the process when its GPU answers no more: after such an error every later part would fail as well.

        Ray starts another process, which begins the part again; the attempt marker bounds how often.
        """
        if self._problem is not None or self._device.type != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize(self._device)
            torch.ones(1, device=self._device).sum().item()
        except Exception:
            with contextlib.suppress(Exception):
                work.note(f"the GPU was lost: {_described(error)}")
            os._exit(_LOST_DEVICE_EXIT)


class _EndsItsProcess(VoteTableError):
    """A part whose marks say that it took its process with it as often as is allowed."""


class _Work:
    """One part on its way: when it was begun, how often, and what storage did meanwhile."""

    def __init__(self, job: VoteJob, folder: Folder, part: int, start: int, stop: int) -> None:
        self.part, self.start, self.stop = part, start, stop
        self._job, self._folder = job, folder
        self._started = time.perf_counter()
        self._attempts = self._retries = 0

    @property
    def name(self) -> str:
        return f"part {self.part} (images {self.start} to {self.stop})"

    def retried(self, operation: Any) -> Any:
        return with_retries(operation, self._job.storage_retries, self._wait)

    def _wait(self, seconds: float) -> None:
        self._retries += 1
        time.sleep(seconds)

    def begin(self) -> None:
        """Leaves a mark before the work: a part that ends its process again and again is given up."""
        if self._attempts:
            return
        for number in range(1, self._job.max_attempts + 1):
            if not self._folder.exists(attempt_name(self.part, number)):
                self._attempts = number
                self.note("its process ended without a word (killed, or out of memory)")
                return
        raise _EndsItsProcess(
            f"{self.name} ended its worker process {self._job.max_attempts} times: {self._history()}.\n"
            "  Lower --prediction.chunk-views or --resources.images-per-part, then repeat the command."
        )

    def note(self, reason: str) -> None:
        """Writes into the mark what is to be read there if this process goes no further."""
        mark = json.dumps({"node": node_name(), "reason": reason}).encode()
        self._folder.write(attempt_name(self.part, self._attempts), mark)

    def _history(self) -> str:
        marks = []
        for number in range(1, self._job.max_attempts + 1):
            with contextlib.suppress(OSError, ValueError):
                marks.append(read_json(self._folder, attempt_name(self.part, number)))
        return "; ".join(dict.fromkeys(f"{mark['reason']} on {mark['node']}" for mark in marks)) or "no word was left"

    def end(self) -> None:
        """Takes the marks away; one that storage keeps does no harm."""
        for number in range(1, self._attempts + 1):
            with contextlib.suppress(OSError):
                self._folder.remove(attempt_name(self.part, number))

    def receipt(self) -> Receipt:
        return Receipt(
            part=self.part,
            rows=self.stop - self.start,
            seconds=time.perf_counter() - self._started,
            node=node_name(),
            attempts=self._attempts,
            retries=self._retries,
        )

    def failed(self, error: PatchcertError, remedy: Remedy) -> Receipt:
        return dataclasses.replace(self.receipt(), error_kind=type(error).__name__, error=str(error), remedy=remedy)


def attempt_name(part: int, number: int) -> str:
    """Name of the mark that the work on a part leaves."""
    return f"{ATTEMPTS}/part-{part:05d}-{number}"


def computed_once(job: VoteJob, row: dict[str, int], seconds: float) -> Receipt:
    """Computes one part in a process that does nothing else, and that ends itself when the part takes too long.

    Args:
        job: as for every part.
        row: the part.
        seconds: how long it may take.
    """
    with _ends_process_after(seconds):
        return VoteWorker(job).compute(row)


@contextlib.contextmanager
def _ends_process_after(seconds: float) -> Iterator[None]:
    """Ends this process if the block takes longer, wherever it hangs: from outside Ray could end the wrong task.

    The threads' stacks go to standard error. The watch is native code: it needs no turn of the interpreter.
    """
    faulthandler.dump_traceback_later(min(seconds, _LONGEST_WATCH), exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.cache
def node_name() -> str:
    """Name of this machine."""
    return socket.gethostname()


def _described(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"


_RECEIPT_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("rows", pa.int64()),
        ("seconds", pa.float64()),
        ("node", pa.string()),
        ("attempts", pa.int64()),
        ("retries", pa.int64()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("remedy", pa.string()),
    ]
)
