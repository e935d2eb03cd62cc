"""The files in jobs/ under ``ray job submit`` on the cluster that cluster/local.sh starts."""

import concurrent.futures
import os
import runpy
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jobs.small_jobs import SMALL, free_port, is_loopback, listening

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
            # The width of a terminal must not hide from the script which processes are its own.
            "COLUMNS": "80",
        }
    )
    environment.pop("RAY_ADDRESS", None)
    script = str(ROOT / "cluster" / "local.sh")
    started = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, timeout=120)
    if started.returncode:
        subprocess.run([script, "stop"], env=environment, check=True, capture_output=True, timeout=60)
        log = folder / "log"
        pytest.fail(started.stderr + (log.read_text() if log.exists() else ""))
    shown = subprocess.run([script, "variables"], env=environment, capture_output=True, text=True, timeout=60)

    def run(*arguments, login=shown.stdout):
        address = f"http://127.0.0.1:{ports['PATCHCERT_DASHBOARD_PORT']}"
        command = ["ray", "job", "submit", "--address", address, "--", sys.executable, *map(str, arguments)]
        command = ["bash", "-c", f"{login}\n{shlex.join(command)}"]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, cwd=folder)
        return finished.returncode, finished.stdout + finished.stderr

    run.folder, run.shown = folder, started.stdout + started.stderr + shown.stdout + shown.stderr
    yield run
    stopped = subprocess.run([script, "stop"], env=environment, capture_output=True, text=True, timeout=60)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n"), "the cluster is left running"


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


def test_only_who_reads_the_token_of_the_run_may_submit(submit, tmp_path):
    token = submit.folder / "token"
    secret = token.read_text()
    assert len(secret) >= 32 and stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(submit.folder.stat().st_mode) == 0o700
    arguments = [argument for one in psutil.process_iter(["cmdline"]) for argument in one.info["cmdline"] or ()]
    assert secret not in submit.shown and not [argument for argument in arguments if secret in argument]
    for guess in ("", "0" * len(secret)):
        login = f"export HOME={tmp_path} RAY_AUTH_MODE=token RAY_AUTH_TOKEN={guess}"
        code, output = submit("-c", "pass", login=login)
        assert code != 0 and "uthentication" in output, output


def test_rays_own_folder_lies_in_one_that_nobody_else_may_enter(submit):
    group, ray_folder = (submit.folder / "state").read_text().split()
    assert stat.S_IMODE(os.stat(ray_folder).st_mode) == 0o700
    assert any(ray_folder in " ".join(one.cmdline()) for one in psutil.Process(int(group)).children(recursive=True))
    doors = listening(int(group))
    assert len(doors) > 3 and all(is_loopback(address) for _, address in doors), doors


def test_a_job_writes_where_it_is_told(jobs):
    folder, code, output = jobs["prepare"]
    assert code == 0, output
    assert len(list(folder.glob("data/digits-32x32-*/*/dataset.json"))) >= 2


def test_mistake_in_a_job_fails_it_with_one_clear_message(jobs):
    _, code, output = jobs["train"]
    assert code != 0
    assert "Did you mean column4-digits?" in output and "Traceback" not in output
