"""The command line from outside: help, a whole run, its files, a kill and its repair."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from .conftest import SMALL, CommandLine


def table_digests(work):
    (table,) = (work / "votes").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(table.glob("part-*"))}


def test_help_answers_at_once_and_loads_nothing_heavy(patchcert):
    code = (
        "import sys; from patchcert.cli import main; main(['--help']); "
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage: patchcert COMMAND") and out.endswith("[]\n")


def test_every_command_of_the_help_exists_and_explains_itself(here):
    out, _ = here("--help")
    commands = [line.split()[0] for line in out.split("commands\n")[1].split("\n\n")[0].splitlines()]
    assert len(commands) == 14
    for command in commands:
        recipe = ["column4-digits"] if command in ("prepare", "train", "vote", "study", "variance", "run") else []
        if command not in ("list", "show"):
            assert "--work" in here(command, *recipe, "--help")[0]


def test_list_and_show_name_what_can_be_run_and_set(here):
    out, _ = here("list")
    assert "column4-digits" in out and "cifar10-jpeg" in out and "randomized cropping" in out
    out, _ = here("show", "column7-cifar10")
    assert "--views.width 7" in out and "--training.epochs" in out


def test_run_ends_with_the_table_the_report_and_the_next_command(finished):
    out, err = finished.output
    assert "placement" in out and "counting" in out and "5x5" in out
    assert "Report: " in err and "patchcert ui" in err
    (study,) = (finished.folder / "work" / "studies").iterdir()
    rows = pq.read_table(study / "answers.parquet").to_pylist()
    assert {row["patch"] for row in rows} == {"1x1", "3x3", "5x5"}
    assert {row["certificate"] for row in rows} == {"counting", "placement"}
    assert all(row["num_images"] == 150 and 0 <= row["certified_accuracy"] <= row["clean_accuracy"] for row in rows)
    assert (study / "report.html").stat().st_size > 10_000
    run = json.loads((study / "run.json").read_text())
    assert run["voting"]["views"] == 150 * 32


def test_console_is_quiet(finished):
    _, err = finished.output
    noise = [
        line
        for line in err.splitlines()
        if any(word in line.lower() for word in ("warning", "deprecat", "info", "ray_", "(pid="))
    ]
    assert noise == []


def test_second_run_does_nothing_again(ray_cluster, finished):
    before = table_digests(finished.folder / "work")
    _, err = finished("run", "column4-digits", *SMALL)
    assert "was trained already" in err
    assert table_digests(finished.folder / "work") == before
    assert len(list((finished.folder / "work" / "studies").iterdir())) == 1


def test_show_prints_what_a_folder_holds(finished):
    (table,) = (finished.folder / "work" / "votes").iterdir()
    assert json.loads(finished("show", table)[0].split("\n", 1)[1])["identity"]["views"]["width"] == 4


@pytest.mark.slow
def test_vote_killed_in_the_middle_is_completed_to_the_same_bytes(finished, tmp_path):
    """kill -9 of the driver after the first part; the same command, with one actor, computes the rest."""
    command = CommandLine(tmp_path)
    model = next((finished.folder / "work" / "models" / "column4-digits").glob("*/config.json")).parent
    arguments = ("vote", "column4-digits", "--checkpoint", model, *SMALL, "--resources.workers", "1")
    process = command.start(*arguments, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "work").glob("votes/*/part-*")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survivors = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("votes/*/part-*")}
    assert survivors and not list((tmp_path / "work").glob("votes/*/_SUCCESS.json"))
    assert re.search(r"150 images x 32 views in [\d.]+ s \(\d+0 were there already\)", "".join(command(*arguments)))
    assert "150 images x 32 views were there already" in "".join(command(*arguments))
    assert all(path.stat().st_mtime_ns == made for path, made in survivors.items())
    digests = table_digests(tmp_path / "work")
    assert len(digests) == 15
    assert digests == table_digests(finished.folder / "work")
