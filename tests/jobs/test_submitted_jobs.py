"""The files in jobs/ under ``ray job submit`` on the cluster that cluster/local.sh starts."""

import concurrent.futures
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from jobs.small_jobs import SMALL, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def submit(tmp_path_factory):
    """Submits a job and returns (exit code, its output)."""
    folder = tmp_path_factory.mktemp("r")
    ports = {
        "PATCHCERT_RAY_PORT": str(free_port(range(6390, 6490))),
        "PATCHCERT_DASHBOARD_PORT": str(free_port(range(8270, 8370))),
    }
    binaries = os.path.dirname(sys.executable)
    environment = (
        os.environ
        | ports
        | {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PATCHCERT_RAY_FOLDER": str(folder),
            "RAY_AUTH_MODE": "disabled",
        }
    )
    environment.pop("RAY_ADDRESS", None)
    script = str(ROOT / "cluster" / "local.sh")
    started = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, timeout=120)
    if started.returncode:
        subprocess.run([script, "stop"], env=environment, check=True, capture_output=True, timeout=60)
        log = folder / "log"
        pytest.fail(started.stderr + (log.read_text() if log.exists() else ""))

    def run(*arguments):
        address = f"http://127.0.0.1:{ports['PATCHCERT_DASHBOARD_PORT']}"
        command = ["ray", "job", "submit", "--address", address, "--", sys.executable, *map(str, arguments)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, cwd=folder)
        return finished.returncode, finished.stdout + finished.stderr

    yield run
    subprocess.run([script, "stop"], env=environment, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["prepare", "train", "vote", "study", "pipeline"])
def test_every_job_is_the_command_of_its_name(name, capsys, monkeypatch):
    script = str(ROOT / "jobs" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(script, run_name="__main__")
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: patchcert {'run' if name == 'pipeline' else name} RECIPE")


@pytest.fixture(scope="module")
def jobs(submit, tmp_path_factory):
    """Work folder, exit code and output of two jobs that run at the same time."""
    words = {"prepare": ("column4-digits", *SMALL), "train": ("colunm4-digits",)}
    folders = {name: tmp_path_factory.mktemp(name) for name in words}
    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = {
            name: threads.submit(submit, ROOT / "jobs" / f"{name}.py", *words[name], "--work", folders[name])
            for name in words
        }
        return {name: (folders[name], *job.result()) for name, job in running.items()}


def test_a_job_writes_where_it_is_told(jobs):
    folder, code, output = jobs["prepare"]
    assert code == 0, output
    assert len(list(folder.glob("data/digits-32x32-*/*/dataset.json"))) >= 2


def test_mistake_in_a_job_fails_it_with_one_clear_message(jobs):
    _, code, output = jobs["train"]
    assert code != 0
    assert "Did you mean column4-digits?" in output and "Traceback" not in output
