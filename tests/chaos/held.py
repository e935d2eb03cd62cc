"""A network whose training and voting wait for the test's word, so that faults come at events and not at a speed.

The network is the small CNN of DRS. Named ``chaos.held:make``, it stops in the middle of every epoch and of every part
of votes, leaves a mark there, and goes on when the test says so. Where the variable ``PATCHCERT_HELD`` is unset, as in
the tests' own process, it stops nowhere.
"""

import contextlib
import os
import time
from pathlib import Path

import pytest

from patchcert.models.config import ClassifierConfig
from patchcert.models.drs_mnist_cnn import drs_mnist_cnn
from patchcert.stages.vote_worker import VoteWorker
from patchcert.training.loop import Trainer

NETWORK = "chaos.held:make"
UNLIMITED = 10**6
_VARIABLE = "PATCHCERT_HELD"
_STEPS_BEFORE = 4
_SECONDS_BETWEEN_LOOKS = 0.01


class Hold:
    """The test's side: says how far work may go, and sees where it waits."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._folder.mkdir()
        self.allow(epochs=UNLIMITED, parts=UNLIMITED)

    def variables(self):
        """Environment of a command, or of a cluster, whose work is held."""
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        return {_VARIABLE: str(self._folder), "PYTHONPATH": os.pathsep.join(filter(None, path))}

    @contextlib.contextmanager
    def over_what_starts(self):
        """Holds the work of the clusters and nodes that this process starts inside the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables().items():
                patch.setenv(name, value)
            yield

    def allow(self, **counts):
        """Lets epochs up to a number end, and parts until so many are written; the next one waits in its middle."""
        for what, count in counts.items():
            half_written = self._folder / f".{what}"
            half_written.write_text(str(count))
            half_written.replace(self._folder / what)

    def times_begun(self, epoch):
        """How often an epoch got to its middle."""
        return len(list(self._folder.glob(f"epoch-{epoch}-*")))

    def waiting(self, table):
        """(times begun, part, process) of all living processes in the middle of a part, the least often begun first."""
        marks = [tuple(map(int, path.name.split("-")[1:])) for path in self._folder.glob("part-*")]
        parts = [part for part, _ in marks]
        return sorted(
            (parts.count(part), part, process)
            for part, process in marks
            if not list(table.glob(f"part-{part:05d}-of-*")) and Path(f"/proc/{process}").exists()
        )


class _Work:
    """The worker's side: what is under way in this process, where it stops, and until when."""

    def __init__(self):
        self._mark = None

    def begin(self, mark, steps, may_go_on):
        self._mark, self._steps, self._may_go_on = mark, steps, may_go_on

    def step(self, *_):
        """Called before every forward pass; stops at one of each piece of work."""
        if self._mark is None:
            return
        if self._steps:
            self._steps -= 1
            return
        mark, self._mark = self._mark, None
        mark.touch()
        while not self._may_go_on():
            time.sleep(_SECONDS_BETWEEN_LOOKS)


_WORK = _Work()
_run_epoch, _compute = Trainer.run_epoch, VoteWorker.compute


def _allowed(what):
    return int(Path(os.environ[_VARIABLE], what).read_text())


def _held_epoch(trainer):
    if _VARIABLE in os.environ:
        epoch = trainer.next_epoch + 1
        mark = Path(os.environ[_VARIABLE], f"epoch-{epoch}-{time.time_ns()}")
        _WORK.begin(mark, _STEPS_BEFORE, lambda: epoch <= _allowed("epochs"))
    return _run_epoch(trainer)


def _held_part(worker, row):
    if _VARIABLE in os.environ:
        table = Path(worker._job.table_folder)
        mark = Path(os.environ[_VARIABLE], f"part-{row['part']}-{os.getpid()}")
        _WORK.begin(mark, 0, lambda: len(list(table.glob("part-*"))) < _allowed("parts"))
    return _compute(worker, row)


Trainer.run_epoch, VoteWorker.compute = _held_epoch, _held_part


def make(num_input_channels, view_size, num_classes):
    """Builds the network."""
    config = ClassifierConfig(network="drs-mnist-cnn", width=0.25)
    network = drs_mnist_cnn(config, num_input_channels, view_size, num_classes)
    network.register_forward_pre_hook(_WORK.step)
    return network
