"""A suite from the command line: models trained side by side, a failure that stops nothing, kill and repeat."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest

from .conftest import CommandLine, CommandLineHere

# Trainings, votes and studies of two models, begun seven times.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SUITE = ("study", "drs-cifar10", "--quick", "--only", "columns4", "rows4")
SMALL = (
    "--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.1", "--training.epochs", "1",
    "--resources.images-per-part", "30",
)  # fmt: skip
# What is there when the suite is killed, in this order: each kill comes after the one before was mended.
KILLED_AT = {
    "training": "training/*/*",
    "a model": "models/*/*/config.json",
    "votes": "votes/*/part-*.parquet",
    "a study": "studies/[!.]*/summary.json",
    "the report": "suites/[!.]*/suite.json",
}
PATIENCE = 900
DEAD_TRACKER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


def rows_of(work):
    (folder,) = (work / "suites").iterdir()
    return {path.name: path.read_text() for path in sorted((folder / "tables").iterdir())}


def recorded_runs(work):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}")
    return {
        experiment.name: client.search_runs([experiment.experiment_id])
        for experiment in client.search_experiments()
        if experiment.name.startswith("patchcert/")
    }


def kill_when_there_is(pattern, command):
    """Starts the suite and kills it with everything it started, as soon as its work folder holds such a file."""
    process = command.start(*SUITE, *SMALL, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while not list((command.folder / "work").glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {pattern} after {PATIENCE} s"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def killed_and_repeated(ray_cluster, tmp_path_factory):
    """A suite killed at every stage, and the same command run to its end in this process."""
    command = CommandLine(tmp_path_factory.mktemp("suite"), patience=PATIENCE)
    work = command.folder / "work"
    command.kept = {}
    for pattern in KILLED_AT.values():
        kill_when_there_is(pattern, command)
        command.kept |= {path: path.stat().st_mtime_ns for path in work.glob("votes/*/part-*.parquet")}
    kept = command.kept
    command = command.here()
    command.kept, command.output = kept, command(*SUITE, *SMALL)
    return command


@pytest.fixture(scope="module")
def untouched(ray_cluster, tmp_path_factory):
    """The same suite without a kill, in a folder of its own."""
    command = CommandLineHere(tmp_path_factory.mktemp("untouched"))
    command(*SUITE, *SMALL)
    return command


def test_repeat_keeps_what_was_there_and_ends_with_tables_report_and_link(killed_and_repeated):
    out, err = killed_and_repeated.output
    assert err.count("was trained already") == 2 and err.count("was answered already") == 2
    assert killed_and_repeated.kept
    assert all(path.stat().st_mtime_ns == made for path, made in killed_and_repeated.kept.items())
    assert "Table 4: column bands by width" in out and "reported" in out and "deterministic" in out
    assert "Report: " in err and "tracker: http://127.0.0.1:5000/#/experiments/" in err
    work = killed_and_repeated.folder / "work"
    (folder,) = (work / "suites").iterdir()
    assert folder.name.startswith("drs-cifar10-")
    assert "of 60 images" in (folder / "report.html").read_text()
    summary = json.loads((folder / "suite.json").read_text())
    assert set(summary["studies"]) == {"columns4", "rows4"} and summary["left_out"] == [
        "columns2",
        "columns6",
        "blocks12",
    ]
    columns = pd.read_csv(folder / "tables" / "columns.csv").set_index(["width", "threshold"])
    assert columns.loc[(4, 0.3), "certified_reported"] == 0.5783
    assert columns.loc[(4, 0.3)].notna()["certified_measured"] and columns.loc[(2, 0.3)].isna()["certified_measured"]


def test_kills_change_no_row_and_leave_nothing_half_written(killed_and_repeated, untouched):
    work = killed_and_repeated.folder / "work"
    assert rows_of(work) == rows_of(untouched.folder / "work")
    names = {kind: [path.name for path in (work / kind).iterdir()] for kind in ("studies", "suites", "votes")}
    assert {kind: len(found) for kind, found in names.items()} == {"studies": 2, "suites": 1, "votes": 2}


def test_every_study_and_training_is_recorded_once_however_often_the_suite_runs(killed_and_repeated):
    work = killed_and_repeated.folder / "work"
    before = rows_of(work)
    killed_and_repeated(*SUITE, *SMALL)
    assert rows_of(work) == before
    runs = recorded_runs(work)
    assert {name: len(found) for name, found in runs.items()} == {
        "patchcert/digits/train": 2,
        "patchcert/digits/certify": 2,
    }
    assert {run.info.status for found in runs.values() for run in found} == {"FINISHED"}


def test_tracker_away_warns_once_and_everything_is_published_once_later(killed_and_repeated, tmp_path):
    """Votes are kept, studies are answered anew while nothing listens where the tracker should be."""
    command = CommandLineHere(tmp_path)
    shutil.copytree(killed_and_repeated.folder / "work", tmp_path / "work")
    for kind in ("suites", "studies", "mlflow-artifacts"):
        shutil.rmtree(tmp_path / "work" / kind)
    (tmp_path / "work" / "mlflow.db").unlink()
    _, err = command(*SUITE, *SMALL, env=DEAD_TRACKER)
    assert err.count("warning:") == 1 and rows_of(tmp_path / "work") == rows_of(killed_and_repeated.folder / "work")
    assert not (tmp_path / "work" / "mlflow.db").exists()
    (line,) = [line for line in err.splitlines() if "Publish the studies when the tracker is back:" in line]
    publication = line.partition(":  patchcert ")[2].split()
    assert publication[0] == "publish" and len(publication) == 3
    for _ in range(2):
        assert "published 2 studies" in command(*publication)[1]
    runs = recorded_runs(tmp_path / "work")
    assert {name: len(found) for name, found in runs.items()} == {"patchcert/digits/certify": 2}
    assert {run.info.status for run in runs["patchcert/digits/certify"]} == {"FINISHED"}
    assert len({run.data.tags["patchcert.result_id"] for run in runs["patchcert/digits/certify"]}) == 2


def test_failing_experiment_stops_no_other(killed_and_repeated, tmp_path):
    """The weights of one model are damaged behind its back; nothing listens where the tracker should be."""
    command = CommandLineHere(tmp_path)
    shutil.copytree(killed_and_repeated.folder / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "suites")
    for kind in ("votes", "studies"):
        for folder in (tmp_path / "work" / kind).glob("bandnetrow4-digits-quick*"):
            shutil.rmtree(folder)
    (weights,) = (tmp_path / "work" / "models").glob("bandnetrow4-digits-quick*/*/*.safetensors")
    weights.write_bytes(b"no weights")
    _, err = command(*SUITE, *SMALL, code=2, env=DEAD_TRACKER)
    assert "StudyError: drs-cifar10: 1 of 2 experiments were not measured.\n  rows4: " in err
    assert err.count("warning:") == 1 and "Publish the studies when the tracker is back:  patchcert publish" in err
    (folder,) = (tmp_path / "work" / "suites").iterdir()
    structures = pd.read_csv(folder / "tables" / "structures.csv").set_index("structure")
    assert structures.loc["rows of height 4", "note"].str.startswith("not measured: ").all()
    assert structures.loc["columns of width 4", "certified_measured"].notna().all()


def test_show_and_list_name_suites_and_what_is_there(killed_and_repeated):
    out, err = killed_and_repeated("show", *SUITE[1:], *SMALL)
    assert "bandnetrow4-digits-quick" in out and "model, votes, study" in out
    (folder,) = (killed_and_repeated.folder / "work" / "suites").iterdir()
    assert folder.name in err and "Run it:  patchcert study drs-cifar10 --quick --only" in err
    assert "rc-imagenet" in killed_and_repeated("list")[0]


def test_mistakes_are_named(here):
    assert "Did you mean drs-mnist" in here.fails("study", "drs-mnst")
    assert "no experiment 'column4'" in here.fails("study", "drs-cifar10", "--quick", "--only", "column4")
    assert "columns4, columns6, rows4, blocks12" in here.fails("show", "drs-cifar10", "--quick", "--only", "x")


def test_a_named_checkpoint_stands_behind_its_rows(killed_and_repeated, tmp_path):
    """The suite reads a model that the command line trained, of another width than its overrides ask for."""
    work = killed_and_repeated.folder / "work"
    (model,) = (work / "models" / "bandnetrow4-digits-quick").glob("*/config.json")
    wider = [word if word != "0.1" else "0.3" for word in SMALL]
    out, err = CommandLineHere(tmp_path)(
        *SUITE[:-2], "rows4", *wider, "--models", f"rows4={model.parent}", "--tracking.mode", "off"
    )
    assert "trained" not in err and "band-network, width 0.1; 1 epoch on digits (train)" in " ".join(out.split())
    (folder,) = (tmp_path / "work" / "suites").iterdir()
    rows = (folder / "tables" / "rows.csv").read_text()
    assert rows == rows_of(work)["rows.csv"]
