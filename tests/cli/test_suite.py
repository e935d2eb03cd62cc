"""A suite from the command line: models trained side by side, a failure that stops nothing, kill and repeat."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest

from .conftest import CommandLine

# Several trainings, and the whole suite twice.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUITE = ("study", "drs-cifar10", "--quick", "--only", "columns4", "rows4")
SMALL = (
    "--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.1", "--training.epochs", "1",
    "--resources.images-per-part", "30",
)  # fmt: skip


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


@pytest.fixture(scope="module")
def killed_and_repeated(tmp_path_factory):
    """A suite killed after its first study, and the same command run to its end."""
    command = CommandLine(tmp_path_factory.mktemp("suite"))
    process = command.start(*SUITE, *SMALL, start_new_session=True)
    deadline = time.monotonic() + 150
    while not list((command.folder / "work").glob("studies/*/summary.json")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    work = command.folder / "work"
    command.kept = {path: path.stat().st_mtime_ns for path in work.glob("*/*/**/*.parquet")}
    assert not (work / "suites").exists()
    command.output = command(*SUITE, *SMALL)
    return command


def test_repeat_keeps_what_was_there_and_ends_with_tables_report_and_link(killed_and_repeated):
    out, err = killed_and_repeated.output
    assert err.count("was trained already") == 2 and "was answered already" in err
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


def test_failing_experiment_stops_no_other_and_a_missing_tracker_warns_once(killed_and_repeated, tmp_path):
    """The images of one model are damaged behind its back; nothing listens where the tracker should be."""
    command = CommandLine(tmp_path)
    shutil.copytree(killed_and_repeated.folder / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "suites")
    for kind in ("votes", "studies"):
        for folder in (tmp_path / "work" / kind).glob("bandnetrow4-digits-quick*"):
            shutil.rmtree(folder)
    (weights,) = (tmp_path / "work" / "models").glob("bandnetrow4-digits-quick*/*/*.safetensors")
    weights.write_bytes(b"no weights")
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    _, err = command(*SUITE, *SMALL, code=2, env=environment)
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


def test_mistakes_are_named(patchcert):
    assert "Did you mean drs-mnist" in patchcert.fails("study", "drs-mnst")
    assert "no experiment 'column4'" in patchcert.fails("study", "drs-cifar10", "--quick", "--only", "column4")
    assert "columns4, columns6, rows4, blocks12" in patchcert.fails("show", "drs-cifar10", "--quick", "--only", "x")
