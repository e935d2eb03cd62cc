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
IMAGES_PER_PART = 10
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


_epoch = {"number": 0, "steps before": -1}
_run_epoch, _votes = Trainer.run_epoch, VoteWorker._votes


def _stop(mark, may_go_on):
    if _VARIABLE in os.environ:
        Path(os.environ[_VARIABLE], mark).touch()
        while not may_go_on():
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _allowed(what):
    return int(Path(os.environ[_VARIABLE], what).read_text())


def _held_epoch(trainer):
    _epoch.update({"number": trainer.next_epoch + 1, "steps before": _STEPS_BEFORE})
    return _run_epoch(trainer)


def _step(*_):
    """Called before every forward pass; stops in the middle of the epoch."""
    if _epoch["steps before"] == 0:
        number = _epoch["number"]
        _stop(f"epoch-{number}-{time.time_ns()}", lambda: number <= _allowed("epochs"))
    _epoch["steps before"] -= 1


def _held_votes(worker, start, stop):
    # Its parts have equal numbers of images, but for the last.
    part, table = start // IMAGES_PER_PART, Path(worker._job.table_folder)
    _stop(f"part-{part}-{os.getpid()}", lambda: len(list(table.glob("part-*"))) < _allowed("parts"))
    return _votes(worker, start, stop)


Trainer.run_epoch, VoteWorker._votes = _held_epoch, _held_votes


def make(num_input_channels, view_size, num_classes):
    """Builds the network."""
    config = ClassifierConfig(network="drs-mnist-cnn", width=0.25)
    network = drs_mnist_cnn(config, num_input_channels, view_size, num_classes)
    network.register_forward_pre_hook(_step)
    return network
