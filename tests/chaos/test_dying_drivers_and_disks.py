"""The commands themselves die, or Ray under them, or their disk fills: the same command goes on where it was."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli.conftest import CommandLine
from processes import processes_named

from .conftest import NUM_IMAGES, stamps
from .held import IMAGES_PER_PART, NETWORK, UNLIMITED

SETTINGS = (
    "--data.limit", NUM_IMAGES, "--data.validation-size", "20", "--training.epochs", "6",
    "--classifier.network", NETWORK, "--classifier.width", "1", "--classifier.dropout", "0",
    "--training.batch-size", "20", "--training.views-per-image", "8", "--training.checkpoint-every", "1",
    "--resources.images-per-part", IMAGES_PER_PART, "--tracking.mode", "off",
)  # fmt: skip
RAYLET = "core/src/ray/raylet/raylet"
PATIENCE = 1200
pytestmark = pytest.mark.timeout(2400)


def wait_until(happened, process):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def killed_when(command, arguments, happened):
    """Starts a command and kills it as soon as something has happened; Ray's processes notice and end after it."""
    process = command.start(*arguments, start_new_session=True)
    wait_until(happened, process)
    os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()
    deadline = time.monotonic() + 300
    while orphans_of(command):
        assert time.monotonic() < deadline, "Ray outlives its driver"
        time.sleep(0.1)
    return said


def orphans_of(command):
    """Processes that work for a command, whether it is still there or not."""
    mark, found = f"PATCHCERT_WORK={command.environment['PATCHCERT_WORK']}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def whose_node_does_not_answer(command, arguments):
    """What a command says whose node is stopped as soon as it is there, as on a machine that is far too busy."""
    process = command.start(*arguments)
    wait_until(lambda: processes_named(RAYLET), process)
    (node,) = processes_named(RAYLET)
    os.kill(node, signal.SIGSTOP)
    error = process.communicate()[1]
    assert process.returncode == 2 and "Traceback" not in error
    return error


def test_vote_goes_on_after_dead_drivers_a_full_disk_and_a_cut_part(
    fault, lost, hold, same_table, model_folder, tmp_path, request
):
    command = CommandLine(tmp_path, patience=PATIENCE)
    command.environment |= hold.variables()
    votes = tmp_path / "work" / "votes"
    votes.mkdir(parents=True)
    arguments = ("vote", "column4-digits", "--checkpoint", model_folder, *SETTINGS, "--resources.workers", "1")

    def parts():
        return sorted(votes.glob("*/part-*"))

    made = {}
    for wanted in (2, 6):
        hold.allow(parts=wanted)
        killed_when(
            command, arguments, lambda wanted=wanted: len(parts()) >= wanted and hold.waiting(parts()[0].parent)
        )
        fault("vote driver killed")
        (table,) = votes.iterdir()
        # Only the part under way is lost: a mark is left of it. What was finished is not written again.
        lost("parts", len(list(table.glob("attempts/part-*"))), 1)
        assert made.items() <= stamps(table).items() and len(parts()) == wanted
        made = stamps(table)

    error = whose_node_does_not_answer(command, arguments)
    fault("node that does not answer while Ray starts")
    assert "ResourceError: cannot start Ray on this machine: The current node timed out during startup" in error
    assert "\n  It may be too busy" in error
    assert stamps(table) == made

    hold.allow(parts=UNLIMITED)
    if small_disk(tmp_path, table, request):
        made = stamps(table)
        error = command.fails(*arguments)
        fault("disk full")
        assert "ResourceError: cannot write" in error and "No space left on device" in error
        assert not list(table.glob(".*.tmp"))
        assert made.items() <= stamps(table).items()
        subprocess.run(["mount", "-o", "remount,size=50m", str(table)], check=True)

    cut = parts()[1]
    with open(cut, "r+b") as part:
        part.truncate(100)
    fault("part cut off")
    made = stamps(table)
    command(*arguments)
    same_table(table)
    written_again = [name for name, stamp in made.items() if stamps(table)[name] != stamp]
    assert written_again == [cut.name]
    lost("parts", 1, 1)


def small_disk(tmp_path, table, request):
    """Puts the unfinished table on a disk with room for two more parts; False where this user may not."""
    aside = tmp_path / "aside"
    shutil.copytree(table, aside)
    used = sum(-(-path.stat().st_size // 4096) + 1 for path in aside.rglob("*")) * 4096
    size = used + 2 * 4 * 4096
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(table)], check=False).returncode:
        return False
    request.addfinalizer(lambda: subprocess.run(["umount", str(table)], check=True))
    shutil.copytree(aside, table, dirs_exist_ok=True)
    return True


def test_training_goes_on_after_dead_drivers(fault, lost, hold, trained_undisturbed, tmp_path):
    from safetensors.torch import load_file

    command = CommandLine(tmp_path, patience=PATIENCE)
    command.environment |= hold.variables()
    # One thread, as the training to compare with: with more of them sums are split otherwise, and last digits differ.
    arguments = ("train", "column4-digits", *SETTINGS, "--resources.cpus-per-worker", "1")

    def last_epoch():
        """Epochs done as the newest state says that was saved whole."""
        import torch

        for path in sorted((tmp_path / "work").glob("training/*/checkpoint_*/state.pt"), reverse=True):
            try:
                return torch.load(path, weights_only=True)["next_epoch"]
            except (OSError, RuntimeError, EOFError):
                continue
        return 0

    # A worker outlives its driver for a moment: what it may not do, it does not do then either.
    hold.allow(epochs=1)
    killed_when(command, arguments, lambda: hold.times_begun(2))
    fault("train driver killed in the middle of an epoch")
    assert last_epoch() == 1
    hold.allow(epochs=3)
    killed_when(command, arguments, lambda: last_epoch() == 3)
    fault("train driver killed when a state is saved")
    assert last_epoch() == 3 and hold.times_begun(1) == 1
    hold.allow(epochs=UNLIMITED)
    _, output = command(*arguments)
    trained = [int(number) for number in re.findall(r"^train column4-digits: (\d+)/6 epochs", output, re.MULTILINE)]
    assert trained == list(range(trained[0], 7)) and trained[0] in (3, 4)
    lost("epochs", sum(hold.times_begun(epoch) for epoch in range(1, 7)) - 6, 2)
    (found,) = (tmp_path / "work" / "models" / "column4-digits").glob("*/weights-*.safetensors")
    weights = load_file(found)
    assert weights.keys() == trained_undisturbed.keys()
    assert all((weights[name] == trained_undisturbed[name]).all() for name in weights)
