"""The commands themselves die, or their disk fills: the same command goes on where it was."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from cli.conftest import CommandLine

from .conftest import IMAGES_PER_PART, NUM_IMAGES

SETTINGS = (
    "--data.limit", NUM_IMAGES, "--data.validation-size", "20", "--classifier.width", "0.25", "--training.epochs", "6",
    "--training.batch-size", "20", "--training.views-per-image", "8", "--training.checkpoint-every", "1",
    "--resources.images-per-part", IMAGES_PER_PART, "--tracking.mode", "off",
)  # fmt: skip
pytestmark = pytest.mark.timeout(900)


def killed_when(command, arguments, happened):
    """Starts a command and kills it with everything that it started as soon as something has happened."""
    process = command.start(*arguments, start_new_session=True)
    deadline = time.monotonic() + 600
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_vote_goes_on_after_dead_drivers_a_full_disk_and_a_cut_part(fault, same_table, model_folder, tmp_path, request):
    command = CommandLine(tmp_path)
    votes = tmp_path / "work" / "votes"
    votes.mkdir(parents=True)
    arguments = ("vote", "column4-digits", "--checkpoint", model_folder, *SETTINGS, "--resources.workers", "1")

    def parts():
        return sorted(votes.glob("*/part-*"))

    made = {}
    for wanted in (2, 6):
        killed_when(command, arguments, lambda wanted=wanted: len(parts()) >= wanted)
        fault("vote driver killed")
        assert all(path.stat().st_mtime_ns == when for path, when in made.items())
        made = {path: path.stat().st_mtime_ns for path in parts()}
    # At most the part under way is lost: the one mark says which.
    assert len(list(votes.glob("*/attempts/part-*"))) <= 1

    (table,) = votes.iterdir()
    if small_disk(tmp_path, table, request):
        error = command.fails(*arguments)
        fault("disk full")
        assert "ResourceError: cannot write" in error and "No space left on device" in error
        assert not list(table.glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(table)], check=True)

    with open(parts()[1], "r+b") as part:
        part.truncate(100)
    fault("part cut off")
    command(*arguments)
    same_table(table)


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


def test_training_goes_on_after_dead_drivers(fault, trained_undisturbed, tmp_path):
    from safetensors.torch import load_file

    command = CommandLine(tmp_path)
    arguments = ("train", "column4-digits", *SETTINGS)
    for wanted in (1, 3):
        killed_when(
            command,
            arguments,
            lambda wanted=wanted: len(list((tmp_path / "work").glob("training/*/checkpoint_*"))) >= min(wanted, 2),
        )
        fault("train driver killed")
    command(*arguments)
    (found,) = (tmp_path / "work" / "models" / "column4-digits").glob("*/weights-*.safetensors")
    weights = load_file(found)
    assert weights.keys() == trained_undisturbed.keys()
    assert all((weights[name] == trained_undisturbed[name]).all() for name in weights)
