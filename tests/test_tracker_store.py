"""Addresses of stores, folders that moved, and serving the tracker's pages."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest
from studies import simulated

from patchcert.cli import main
from patchcert.data.storage import Folder
from patchcert.errors import TrackingError
from patchcert.tracking import Tracker, TrackingConfig, answering, publish, tracking_uri
from patchcert.workspace import Workspace

DEAD = "http://127.0.0.1:9"
ODD_NAME = "a?b #50% %41 größe"


@pytest.fixture(autouse=True)
def no_store_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "column"
    simulated.write(simulated.column_study(), folder)
    return folder


@pytest.fixture
def work(tmp_path, empty_store):
    def make(name):
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name / "mlflow.db")
        return tmp_path / name

    return make


def record(study, work, **config):
    (run,) = publish([study], TrackingConfig(**{"mode": "strict"} | config), Workspace(str(work)), print)
    return run


def open_store(work):
    return Tracker(tracking_uri(None, Folder(str(work)))).client


@pytest.mark.parametrize(
    ("address", "absolute"),
    [
        ("sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("sqlite:///./a/../runs.db?timeout=5", "sqlite:///{here}/runs.db?timeout=5"),
        ("sqlite+pysqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("sqlite:///file:runs.db?uri=true", "sqlite:///{here}/runs.db"),
        ("sqlite:////data/runs.db", "sqlite:////data/runs.db"),
        (" http://server:5000/base ", "http://server:5000/base"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_means_the_same_from_every_folder(address, absolute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = absolute.format(here=tmp_path)
    assert tracking_uri(address, Folder("elsewhere")) == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking_uri(None, Folder("elsewhere")) == expected


@pytest.mark.parametrize("address", ["./mlruns", "mlruns", "file:./mlruns", "file:mlruns"])
def test_a_folder_of_files_is_absolute_too_where_mlflow_is_told_to_open_it(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking_uri(address, Folder("elsewhere")) == (tmp_path / "mlruns").as_uri()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:runs?mode=memory&uri=true", "in memory"),
        ("sqlite:mlflow.db", "sqlite is followed by :///"),
        ("sqlite://mlflow.db", "sqlite is followed by :///"),
        ("./mlruns", "MLFLOW_ALLOW_FILE_STORE=true"),
        ("file:///data/mlruns", "MLFLOW_ALLOW_FILE_STORE=true"),
        ("mlflow.db", "sqlite:///mlflow.db"),
        ("file://server/mlruns", "another machine"),
        ("localhost:5000", "Is it http://localhost:5000?"),
        ("127.0.0.1:5000", "Is it http://127.0.0.1:5000?"),
        ("http://", "names no host"),
        ("http://server:port", "no port that exists"),
        ("http://[::1", "cannot be parsed"),
        ("htp://server", "neither a database nor a server"),
        ("postgresql:me@host/db", "neither a database nor a server"),
    ],
)
def test_an_address_that_cannot_work_is_refused_with_what_works(address, reason):
    with pytest.raises(TrackingError) as refused:
        tracking_uri(address, Folder("elsewhere"))
    message = str(refused.value)
    assert reason in message and "sqlite:///mlflow.db" in message and "http://127.0.0.1:5000" in message
    assert "--tracking.mode off" in message


@pytest.mark.parametrize("command", ["prepare", "train", "vote", "study", "variance", "run"])
def test_every_command_refuses_such_an_address_before_any_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHCERT_WORK", str(tmp_path / "work"))
    recipe = "crop10-digits" if command == "variance" else "column4-digits"
    assert main([command, recipe, "--tracking.uri", "localhost:5000"]) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    assert main([command, recipe]) == 2
    assert capsys.readouterr().err.count("TrackingError: the tracker's address ") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_relative_address_is_recorded_to(study, work, tmp_path, monkeypatch):
    store = work("store")
    monkeypatch.chdir(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    run = record(study, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    names = {artifact.path for artifact in open_store(store).list_artifacts(run.run_id)}
    assert {"report.html", "answers_table.json"} <= names
    assert sorted(path.name for path in store.iterdir()) == ["mlflow-artifacts", "mlflow.db", "mlflow.db.lock"]


def test_a_work_folder_may_have_any_name(study, work, tmp_path):
    odd = work(ODD_NAME)
    run = record(study, odd)
    assert "report.html" in {artifact.path for artifact in open_store(odd).list_artifacts(run.run_id)}
    # Nothing was made of a part of the name, or of the name with its letters quoted.
    assert [path.name for path in tmp_path.iterdir()] == [ODD_NAME]
    assert sorted(path.name for path in odd.iterdir()) == ["mlflow-artifacts", "mlflow.db", "mlflow.db.lock"]
    with sqlite3.connect(odd / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    connection.close()


def checkpoint_in(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"weights")
    return Folder(folder)


@pytest.mark.parametrize("names", [("before", "after"), (ODD_NAME, "after"), ("before", ODD_NAME)])
def test_artifacts_follow_a_folder_that_moved(study, work, tmp_path, names):
    old, new = work(names[0]), tmp_path / names[1]
    run = record(study, old)
    tracker = Tracker(tracking_uri(None, Folder(str(old))))
    tracker.log_checkpoint(run.run_id, "column2", checkpoint_in(old / "models" / "a"), "cd" * 32)
    old.rename(new)
    # The same run is found and completed, and a second study gets a run in the same experiment.
    assert record(study, new).run_id == run.run_id
    assert not old.exists()
    client = open_store(new)
    experiment = client.get_experiment(run.experiment_id)
    other = client.create_run(run.experiment_id).info
    (model,) = client.search_logged_models([run.experiment_id])
    for address in (
        experiment.artifact_location,
        client.get_run(run.run_id).info.artifact_uri,
        other.artifact_uri,
        model.artifact_location,
    ):
        assert address.startswith((new / "mlflow-artifacts").as_uri() + "/")
    assert model.tags["patchcert.location"] == str(new / "models" / "a")
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(run.run_id)}
    assert len(client.list_logged_model_artifacts(model.model_id)) == 2
    assert not old.exists()


def test_a_copied_folder_has_its_own_artifacts_and_a_database_moved_alone_keeps_the_old_ones(study, work, tmp_path):
    original = work("original")
    run = record(study, original)
    shutil.copytree(original, tmp_path / "copy")
    (tmp_path / "alone").mkdir()
    shutil.copy(original / "mlflow.db", tmp_path / "alone")
    for name, place in (("copy", "copy"), ("alone", "original"), ("original", "original")):
        found = open_store(tmp_path / name).get_run(run.run_id).info.artifact_uri
        assert found.startswith((tmp_path / place / "mlflow-artifacts").as_uri() + "/"), name


def test_addresses_that_others_chose_stay_as_they_are(work, tmp_path):
    folder = work("before")
    client = open_store(folder)
    theirs = [client.create_experiment("theirs", artifact_location=f"file://{tmp_path}/theirs")]
    theirs.append(client.create_experiment("bucket", artifact_location="s3://bucket/mlflow-artifacts/bucket"))
    before = [client.get_experiment(experiment).artifact_location for experiment in theirs]
    folder.rename(tmp_path / "after")
    client = open_store(tmp_path / "after")
    assert [client.get_experiment(experiment).artifact_location for experiment in theirs] == before


def test_a_long_message_keeps_its_end(study, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("why " * 1000 + "set THIS_VARIABLE=true")

    monkeypatch.setattr("patchcert.tracking.Tracker", refuse)
    said = []
    config = answering(TrackingConfig(), Workspace(str(tmp_path)), said.append)
    assert config.mode == "off" and len(said[0]) < 1200 and "set THIS_VARIABLE=true" in said[0]


def test_publishing_nothing_is_an_error_unless_it_was_asked_for(study, tmp_path, capsys):
    arguments = ["publish", str(study), "--work", str(tmp_path)]
    for mode in ("on", "strict"):
        assert main([*arguments, "--tracking.uri", DEAD, "--tracking.mode", mode]) == 2
        assert "TrackingError: the study was not recorded: http://127.0.0.1:9 does not" in capsys.readouterr().err
    assert main([*arguments, "--tracking.uri", "localhost:5000"]) == 2
    assert "Is it http://localhost:5000?" in capsys.readouterr().err
    assert main([*arguments, "--tracking.mode", "off"]) == 0
    assert "nothing was recorded" in capsys.readouterr().err


def test_pages_are_refused_on_a_port_that_is_taken(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--work", str(tmp_path), "--port", str(port)]) == 2
    message = capsys.readouterr().err
    assert f"port {port} of this machine cannot be used" in message and "are at http" not in message
    free = int(message.rstrip().rpartition(" ")[2])
    with socket.create_server(("127.0.0.1", free)):
        pass
    for port in ("0", "65536", "-1"):
        assert main(["ui", "--work", str(tmp_path), "--port", port]) == 2
        assert f"there is no port {port}" in capsys.readouterr().err


def test_pages_that_end_on_their_own_pass_their_exit_code_on(tmp_path, capfd, monkeypatch):
    from patchcert.tracking import pages

    for code, expected in ((7, 7), (-9, 137)):
        ends = "sys.exit(7)" if code > 0 else "os.kill(os.getpid(), 9)"
        command = pages.UiCommand(
            arguments=[sys.executable, "-c", f"import os, sys; {ends}"], environment=dict(os.environ), address="here"
        )
        monkeypatch.setattr(pages, "ui_command", lambda *_, command=command: command)
        assert main(["ui", "--work", str(tmp_path), "--port", str(free_port())]) == expected
        assert f"ended with exit code {expected}" in capfd.readouterr().err


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.slow
def test_pages_of_a_moved_folder_with_an_odd_name_show_its_runs_and_end_with_the_command(study, work, tmp_path):
    run = record(study, work("before"))
    odd = tmp_path / ODD_NAME
    (tmp_path / "before").rename(odd)
    port = free_port()
    variables = {"MLFLOW_STATIC_PREFIX": "/elsewhere", "MLFLOW_REGISTRY_STORE_URI": "sqlite://"}
    command = [sys.executable, "-m", "patchcert", "ui", "--work", str(odd), "--port", str(port)]
    with open(tmp_path / "said", "w") as said:
        pages = subprocess.Popen(command, cwd=tmp_path, env=os.environ | variables, stdout=said, stderr=said)
    try:
        address = f"http://127.0.0.1:{port}/get-artifact?path=answers_table.json&run_uuid={run.run_id}"
        table = wait_for(address, pages)
    finally:
        pages.send_signal(signal.SIGTERM)
        assert pages.wait(60) == 130
    assert b"certified" in table
    assert not (tmp_path / "before").exists()
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


def wait_for(address, process, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return answer.read()
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
