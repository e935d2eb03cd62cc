"""The files in jobs/ under ``ray job submit`` on the cluster that cluster/local.sh starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.125", "--training.epochs", "1",
    "--training.batch-size", "20", "--resources.images-per-part", "30", "--study.patches", "1x1", "5x5",
)  # fmt: skip


def free_port(ports):
    """A free port among some; Ray gives 10002 to 19999 to its workers."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("every port is taken")


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


@pytest.mark.timeout(400)
def test_jobs_take_a_recipe_from_images_to_a_study_on_a_cluster(submit, tmp_path):
    for name in ("prepare", "train", "vote", "study"):
        code, output = submit(ROOT / "jobs" / f"{name}.py", "column4-digits", "--work", tmp_path, *SMALL)
        assert code == 0, output
    assert "placement" in output and "report.html" in output
    assert len(list(tmp_path.glob("studies/column4-digits-*/report.html"))) == 1


def test_mistake_in_a_job_fails_it_with_one_clear_message(submit, tmp_path):
    code, output = submit(ROOT / "jobs" / "train.py", "colunm4-digits", "--work", tmp_path)
    assert code != 0
    assert "Did you mean column4-digits?" in output and "Traceback" not in output
