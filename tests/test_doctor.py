"""What ``patchcert doctor`` finds where all is well, and where something is not."""

import importlib.metadata
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from patchcert import doctor
from patchcert.cli import main
from patchcert.console import Terminal
from patchcert.data.sealed import sealed_bytes
from patchcert.data.storage import Folder
from patchcert.listening import listeners
from patchcert.stages.resources import Resources
from patchcert.tracking import TrackingConfig

SECRET = "not-to-be-seen"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("PATCHCERT_DATA", "PATCHCERT_WORK", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def states(findings):
    return {finding.what: finding.state for finding in findings}


def only(findings):
    (finding,) = findings
    return finding


def test_libraries_are_compared_with_what_the_package_declares():
    def version(name):
        if name == "mlflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.9.0", "ray": "2.61.0"}.get(name, "1.0")

    requires = ["torch>=2.11", "ray[data]<2.64,>=2.60", "mlflow>=3.17", "numpy>=1", "pytest>=8; extra == 'dev'"]
    found = {finding.what: finding for finding in doctor.library_versions(lambda: requires, version)}
    assert states(found.values()) == {
        "Python": "ok",
        "torch": "problem",
        "ray": "ok",
        "mlflow": "problem",
        "other libraries": "ok",
    }
    assert found["torch"].found == "2.9.0, needed is >=2.11" and found["torch"].advice == "pip install 'torch>=2.11'"
    assert found["mlflow"].found == "not installed" and found["other libraries"].found.startswith("1 ")


def test_the_libraries_of_this_machine_fit():
    found = list(doctor.library_versions())
    assert {"torch", "torchvision", "ray", "mlflow", "pyarrow"} <= states(found).keys()
    assert set(states(found).values()) == {"ok"}


def test_a_library_that_is_broken_or_hangs_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is missing')")
    (tmp_path / "ray.py").write_text("import os; os.kill(os.getpid(), 11)")
    (tmp_path / "mlflow.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = only(doctor.devices())
    assert broken.state == "problem" and "libcudart.so is missing" in broken.found and "torch" in broken.advice
    assert only(doctor.imports("ray")).found == "it ended with exit code -11"
    monkeypatch.setattr(doctor.run_python, "__kwdefaults__", {"seconds": 0.3})
    slow = only(doctor.imports("mlflow"))
    assert (slow.state, slow.found) == ("warning", "not done after 0.3 s")


@pytest.mark.parametrize(
    ("tried", "gpus", "state", "words"),
    [
        ({"cuda": "12.8", "devices": ["H200"]}, 1, "ok", "H200; driver 570.86, torch built for CUDA 12.8"),
        (
            {"cuda": "12.8", "devices": []},
            2,
            "problem",
            "2 NVIDIA GPUs (driver 570.86) that torch, built for",
        ),
        ({"cuda": None, "devices": []}, 1, "problem", "built without CUDA, cannot use"),
        ({"cuda": None, "devices": []}, 0, "ok", "no NVIDIA GPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_problem(tmp_path, tried, gpus, state, words):
    for number in range(gpus):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86  Wed Jan 1\n")
    finding = only(doctor.torch_works(json.dumps(tried), tmp_path))
    assert finding.state == state and words in finding.found


def test_gpus_that_a_variable_hides_are_said_to_be_hidden(tmp_path, monkeypatch):
    (tmp_path / "gpus" / "0").mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = only(doctor.torch_works(json.dumps({"cuda": "12.8", "devices": []}), tmp_path))
    assert finding.state == "problem" and "CUDA_VISIBLE_DEVICES hides them" in finding.advice


def test_a_work_folder_is_judged_by_its_records(tmp_path):
    folder = Folder(tmp_path / "work")
    assert states(doctor.work_folder(folder))["work folder"] == "ok" and not (tmp_path / "work").exists()
    for name in ("votes/a", "votes/b"):
        folder.folder(name).write("_SUCCESS.json", sealed_bytes({"num_images": 3}))
    folder.folder("models/column4-digits/a").write("config.json", b"{}")
    folder.folder("models/column4-digits").write("latest.json", b"{}")
    found = states(doctor.work_folder(folder))
    assert (found["work folder"], found["vote tables"], found["models"]) == ("ok", "ok", "ok")
    folder.folder("votes/c").write("part-0.parquet", b"")
    unfinished = {finding.what: finding for finding in doctor.work_folder(folder)}["vote tables"]
    assert unfinished.state == "warning" and unfinished.found == f"2 finished, 1 unfinished: {folder}/votes/c"
    changed = sealed_bytes({"num_images": 3}).replace(b"3", b"4", 1)
    for name, data in (("votes/b", changed), ("votes/a", b"{"), ("votes/c", b"[]")):
        folder.folder(name).write("_SUCCESS.json", data)
    damaged = {finding.what: finding for finding in doctor.work_folder(folder)}["vote tables"]
    assert damaged.state == "problem" and damaged.found.startswith("0 finished, 3 damaged: ")
    assert not list((tmp_path / "work").rglob(".patchcert-probe*"))


def test_a_work_folder_that_cannot_be_written_is_a_problem():
    # Even the administrator cannot write here.
    finding = doctor.Finding(what="", state="ok", found="")
    for finding in doctor.work_folder(Folder("/proc/self")):
        if finding.what == "work folder":
            break
    assert finding.state == "problem" and "--work FOLDER" in finding.advice


def test_known_datasets_are_looked_for(tmp_path, monkeypatch):
    assert only(doctor.data_folders()).state == "ok"
    monkeypatch.setenv("PATCHCERT_DATA", str(tmp_path / "nowhere"))
    assert only(doctor.data_folders()).state == "problem"
    monkeypatch.setenv("PATCHCERT_DATA", str(tmp_path))
    assert only(doctor.data_folders()).state == "warning"
    (tmp_path / "cifar10").mkdir()
    finding = only(doctor.data_folders())
    assert finding.state == "ok" and "has cifar10" in finding.found and "mnist" in finding.found.partition("not ")[2]


def test_a_cluster_is_asked_whether_it_answers(monkeypatch):
    assert only(doctor.ray_reachable(Resources(), False)).state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert only(doctor.ray_reachable(Resources(address=f"127.0.0.1:{port}"), False)).state == "ok"
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    finding = only(doctor.ray_reachable(Resources(), False))
    assert finding.state == "problem" and f"127.0.0.1:{port} does not answer" in finding.found


def test_a_task_is_tried_when_asked_for(monkeypatch):
    monkeypatch.setattr(doctor, "run_python", lambda *_, **__: json.dumps({"CPU": 4.0}))
    assert "ran a task: 4 processors, 0 GPUs" in only(doctor.ray_reachable(Resources(), True)).found

    def fail(*_, **__):
        raise RuntimeError("no space")

    monkeypatch.setattr(doctor, "run_python", fail)
    assert only(doctor.ray_reachable(Resources(), True)).state == "problem"


def test_the_tracker_is_opened_without_being_changed(tmp_path, empty_store):
    def finding(uri=None, folder=tmp_path, **config):
        return only(doctor.tracker(TrackingConfig(uri=uri, **config), Folder(folder)))

    assert "made by the first command" in finding().found and not list(tmp_path.iterdir())
    before = empty_store.read_bytes()
    assert finding(f"sqlite:///{empty_store}").found.endswith("mlflow.db, 0 runs")
    assert empty_store.read_bytes() == before
    (tmp_path / "mlflow.db").write_text("no database")
    assert finding().state == "problem"
    dead = finding(f"http://me:{SECRET}@127.0.0.1:9")
    assert dead.state == "problem" and "does not answer" in dead.found and SECRET not in dead.found
    assert finding(mode="off").found == "off: nothing is recorded"


def kernel(folder, *, address, command="gcs_server --port 1"):
    """A /proc with one process of this user that listens."""
    (folder / "net").mkdir(parents=True)
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  0 0 {} 1 0\n"
    table = "tcp" if len(address) == 8 else "tcp6"
    (folder / "net" / "tcp").write_text(header)
    (folder / "net" / table).write_text(
        header + line.format(f"{address}:1F90", "0A", 77) + line.format(f"{address}:1F91", "01", 78)
    )
    (folder / "42" / "fd").mkdir(parents=True)
    (folder / "42" / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (folder / "42" / "fd" / "3").symlink_to("socket:[77]")
    (folder / "42" / "fd" / "4").symlink_to("socket:[78]")
    return folder


@pytest.mark.parametrize(
    ("address", "shown", "loopback"),
    [
        ("0100007F", "gcs_server (42) on 127.0.0.1:8080", True),
        ("00000000", "gcs_server (42) on 0.0.0.0:8080", False),
        ("0200A8C0", "gcs_server (42) on 192.168.0.2:8080", False),
        ("00000000000000000000000001000000", "gcs_server (42) on [::1]:8080", True),
        ("00000000000000000000000000000000", "gcs_server (42) on [::]:8080", False),
        ("0000000000000000FFFF00000100007F", "gcs_server (42) on [::ffff:7f00:1]:8080", True),
    ],
)
def test_what_listens_beyond_this_machine_is_a_problem(tmp_path, monkeypatch, address, shown, loopback):
    found = only(listeners(kernel(tmp_path / "proc", address=address)))
    assert (str(found), found.is_loopback) == (shown, loopback)
    monkeypatch.setattr(doctor, "listeners", lambda: [found])
    finding = only(doctor.listening())
    assert finding.state == ("ok" if loopback else "problem") and (loopback or shown in finding.found)


def test_other_programs_are_left_alone_and_other_systems_say_that_nothing_was_checked(tmp_path, monkeypatch):
    assert listeners(kernel(tmp_path / "proc", address="00000000", command="nginx -g daemon")) == []
    assert listeners(tmp_path) is None
    monkeypatch.setattr(doctor, "listeners", lambda: None)
    assert "not checked" in only(doctor.listening()).found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux")
def test_a_real_process_is_found(tmp_path):
    program = (
        "import socket as s; a = s.create_server(('127.0.0.1', 0)); print(a.getsockname()[1], flush=True); input()"
    )
    command = [sys.executable, "-c", program, "mlflow"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        found = [listener for listener in listeners() if listener.process == process.pid]
        process.communicate("done")
    assert [(one.address, one.port, one.is_loopback) for one in found] == [("127.0.0.1", port, True)]


def test_variables_are_named_and_their_values_are_not(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", SECRET)
    monkeypatch.setenv("TMPDIR", f"/{SECRET}")
    found = list(doctor.variables())
    assert "MLFLOW_TRACKING_PASSWORD" in found[0].found and SECRET not in str(found)
    assert states(found) == {"variables": "ok", "OMP_NUM_THREADS": "warning", "TMPDIR": "warning"}


def test_the_command_shows_everything_writes_nothing_and_ends_with_2_for_a_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run_python", lambda *_, **__: json.dumps({"cuda": None, "devices": []}))
    monkeypatch.setattr(doctor, "listeners", lambda: [])
    arguments = ["doctor", "--work", str(tmp_path / "work")]
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.out
    for word in ("Python", "devices", "processors", "memory", "work folder", "data folder", "tracker", "listening"):
        assert word in printed.out
    assert "0 problems" in printed.err and list(tmp_path.iterdir()) == []

    def broken():
        raise ZeroDivisionError("[/]a check of our own")

    monkeypatch.setattr(doctor, "machine", broken)
    assert main([*arguments, "--tracking.uri", "http://127.0.0.1:9"]) == 2
    printed = capsys.readouterr()
    assert "a check of our own" in printed.out and "2 problems" in printed.err


@pytest.mark.parametrize("state", ["ok", "warning", "problem"])
def test_the_table_shows_states_and_texts_of_others_as_they_are(state, capsys):
    Terminal().result(
        doctor.as_text([doctor.Finding(what="disk [/x]", state=state, found="[bold]full[/bold]", advice="\x1b[2Jmend")])
    )
    output = capsys.readouterr().out
    assert f"│ {state} " in output and "disk [/x]" in output and "[bold]full[/bold]" in output
    assert "[green]" not in output and "[bold red]" not in output and "\x1b" not in output
