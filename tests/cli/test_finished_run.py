"""What a whole small run leaves: its files, what repeating it does, and what does not fit it."""

import hashlib
import json
import os
import re
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest

from .conftest import SMALL, CommandLine, unmount


def table_digests(work):
    (table,) = (work / "votes").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(table.glob("part-*"))}


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


def test_gpu_that_is_not_there_is_refused(ray_cluster, here):
    if os.path.exists("/proc/driver/nvidia"):
        pytest.skip("this machine has a GPU")
    error = here.fails("train", "column4-digits", "--resources.device", "cuda", *SMALL)
    assert "the cluster has 0 GPUs" in error and "--resources.device cpu" in error


def test_checkpoint_of_another_view_set_is_refused(finished):
    model = next((finished.folder / "work" / "models" / "column4-digits").glob("*/config.json")).parent
    error = finished.fails("vote", "column5-digits", "--checkpoint", model, *SMALL)
    assert "bands of width 4" in error and "bands of width 5" in error
    assert not list((finished.folder / "work" / "votes").glob("column5*"))


def test_checkpoint_of_another_network_is_refused(finished):
    model = next((finished.folder / "work" / "models" / "column4-digits").glob("*/config.json")).parent
    error = finished.fails("vote", "column4-digits", "--checkpoint", model, *SMALL, "--classifier.network", "resnet9")
    assert "network 'drs-mnist-cnn', asked 'resnet9'" in error


def test_vote_table_of_another_view_set_is_refused(finished):
    table = next((finished.folder / "work" / "votes").iterdir())
    error = finished.fails("study", "column5-digits", "--votes", table)
    assert "bands of width 4" in error and "bands of width 5" in error


def test_vote_threshold_below_the_floor_is_refused(finished):
    table = next((finished.folder / "work" / "votes").iterdir())
    error = finished.fails("study", "column4-digits", "--votes", table, "--study.vote-thresholds", "0.05")
    assert "0.05 lies below the vote table's score floor 0.1" in error


def test_training_and_voting_need_to_write_only_where_something_is_missing(finished, here, read_only):
    """Prepared images are there, then the model too, then everything."""
    work = here.folder / "work"
    for kept in (("data",), ("data", "models"), ("data", "models", "votes", "studies")):
        shutil.rmtree(work, ignore_errors=True)
        for name in kept:
            shutil.copytree(finished.folder / "work" / name, work / name)
        read_only(work)
        off = (*SMALL, "--tracking.mode", "off")
        if "models" not in kept:
            error = here.fails("train", "column4-digits", *off)
        elif "votes" not in kept:
            here("train", "column4-digits", *off)
            error = here.fails("vote", "column4-digits", *off)
        else:
            here("vote", "column4-digits", *off)
            here("study", "column4-digits", *off, "--out", here.folder / "elsewhere")
            assert (here.folder / "elsewhere" / "report.html").exists()
            error = here.fails("study", "column4-digits", *off)
        assert "ResourceError: cannot write" in error and "Read-only file system" in error
        unmount(work)
