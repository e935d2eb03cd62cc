"""Ctrl-C and SIGTERM end every stage with one line and code 130, and leave no process behind."""

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from processes import processes_named

from .conftest import SMALL, CommandLine

LINE = "interrupted; the same command continues where it stopped"
LONG = (*SMALL, "--training.epochs", "1000", "--tracking.mode", "off")
RAYLET = "core/src/ray/raylet/raylet"


def works_for(command):
    """Processes with the command's work folder in their environment, the command itself among them."""
    mark, found = f"PATCHCERT_WORK={command.environment['PATCHCERT_WORK']}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def interrupted(command, arguments, happened, *signals):
    """Sends signals to a command, in quick succession, as soon as something has happened: what it printed.

    SIGINT goes to the whole group of processes, as from a terminal. Neither a process nor a folder of Ray is left.
    """
    # pytest's own folders have paths that are too long for Ray's sockets.
    ray_base = tempfile.mkdtemp(prefix="pc-", dir="/tmp")
    process = command.start(*arguments, start_new_session=True, env={"RAY_TMPDIR": ray_base})
    deadline = time.monotonic() + command.patience
    while not happened(process):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    for number in signals:
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=command.patience)
    assert (process.returncode, err.splitlines()[-1:]) == (130, [LINE]), f"{process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err and "***" not in err and err.count(LINE) == 1, err
    deadline = time.monotonic() + 60
    while works_for(command):
        assert time.monotonic() < deadline, [Path(f"/proc/{left}/cmdline").read_text() for left in works_for(command)]
        time.sleep(0.05)
    assert os.listdir(ray_base) == []
    os.rmdir(ray_base)
    return err


def file_appears(folder, pattern):
    return lambda process: any(folder.glob(pattern))


def process_appears(title):
    return lambda process: any(processes_named(title, process.pid))


def untrained(command, recipe):
    """Folder of a checkpoint with start weights."""
    command("train", recipe, *SMALL, "--untrained")
    return next(command.folder.glob(f"work/models/{recipe}/untrained-*"))


def test_preparing_in_processes(patchcert):
    """Ctrl-C twice while processes make shards: what they were writing is gone, and the command goes on later."""
    arguments = ("prepare", "column4-digits", "--data.limit", "400", "--resources.workers", "2")
    arguments += ("--data.rows-per-group", "4", "--data.rows-per-shard", "4")
    made = file_appears(patchcert.folder, "work/data/*/train/shard-*")
    interrupted(patchcert, arguments, made, signal.SIGINT, signal.SIGINT)
    assert not list((patchcert.folder / "work").rglob("*.tmp"))
    assert not list((patchcert.folder / "work").rglob("dataset.json"))


@pytest.mark.ray
def test_training_that_starts(patchcert):
    interrupted(patchcert, ("train", "column4-digits", *LONG), process_appears(RAYLET), signal.SIGTERM)


@pytest.mark.slow
def test_training_that_has_saved_an_epoch(patchcert):
    saved = file_appears(patchcert.folder, "work/training/*/checkpoint_*")
    interrupted(patchcert, ("train", "column4-digits", *LONG), saved, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGINT, signal.SIGTERM, signal.SIGINT)])
@pytest.mark.parametrize("moment", ["Ray starts", "a worker trains"])
def test_training_at_other_moments(patchcert, signals, moment):
    begun = process_appears(RAYLET if moment == "Ray starts" else "RayTrainWorker")
    interrupted(patchcert, ("train", "column4-digits", *LONG), begun, *signals)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)])
@pytest.mark.parametrize("moment", ["Ray starts", "a part is there", "Ray ends"])
def test_voting(patchcert, signals, moment):
    arguments = ("vote", "column4-digits", *SMALL, "--checkpoint", untrained(patchcert, "column4-digits"))
    work = patchcert.folder / "work"
    happened = {
        "Ray starts": process_appears(RAYLET),
        "a part is there": file_appears(work, "votes/*/part-*"),
        "Ray ends": file_appears(work, "votes/*/_SUCCESS.json"),
    }[moment]
    interrupted(patchcert, arguments, happened, *signals)
    patchcert(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "title"),
    [(("study", "column4-digits", *SMALL), "ray::_AnswerPart"), (("variance", "crop10-digits"), "ray::_DrawRows")],
    ids=["study", "variance"],
)
def test_answering(finished, finished_crops, arguments, title, number):
    command = finished if arguments[0] == "study" else finished_crops
    if arguments[0] == "variance":
        model = next(command.folder.glob("work/models/crop10-digits/untrained-*"))
        arguments += (*SMALL, "--checkpoint", model, "--variance.repeats", "20000")
    interrupted(command, arguments, process_appears(title), number)


@pytest.fixture(scope="module")
def finished_crops(tmp_path_factory):
    """A command line whose work folder holds votes on random crops."""
    command = CommandLine(tmp_path_factory.mktemp("crops"))
    command("vote", "crop10-digits", *SMALL, "--checkpoint", untrained(command, "crop10-digits"))
    return command


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_publishing_and_the_trackers_pages(finished, tmp_path, number):
    study = next((finished.folder / "work" / "studies").iterdir())
    store = ("--tracking.uri", f"sqlite:///{tmp_path}/new.db")
    interrupted(finished, ("publish", study, *store), file_appears(tmp_path, "new.db"), number)
    interrupted(finished, ("ui", "--port", "5077"), process_appears("uvicorn"), number)
