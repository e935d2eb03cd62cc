"""jobs/pipeline.py on three raylets with its work folder on object storage, as on a real cluster.

The nodes are those of cluster/several_nodes.py, the storage is moto's S3 server, read and written by pyarrow's own S3
client in every worker.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jobs.small_jobs import SMALL, free_port, is_loopback, listening

from patchcert.data.storage import Folder
from patchcert.studies import StudyResult

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "cluster" / "several_nodes.py"
SECONDS = 500
TWO_WORKERS = (*SMALL, "--resources.workers", "2", "--tracking.mode", "off")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 100)]


@pytest.fixture(scope="module")
def cluster(s3_variables, tmp_path_factory):
    """Three nodes with one CPU each: their state, as cluster/several_nodes.py keeps it."""
    folder = tmp_path_factory.mktemp("n")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | s3_variables
    options = ["--folder", folder, "--dashboard-port", free_port(range(8370, 8470))]

    def tool(*arguments):
        command = [sys.executable, TOOL, *arguments, *options]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    code, output = tool("start", "--nodes", "3")
    try:
        if code:
            pytest.fail(output + (folder / "log").read_text())
        state = json.loads((folder / "cluster.json").read_text())
        login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        yield {**state, "tool": tool, "environment": environment | login, "token": (folder / "token").read_text()}
    finally:
        tool("stop")
    left = [pid for pid in (state["process"], *state["nodes"]) if psutil.pid_exists(pid)]
    assert not left, "processes of the cluster outlived it"


@pytest.fixture(scope="module")
def store(s3_variables):
    """The work folder of the jobs, as this process sees it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_variables.items():
            patch.setenv(name, value)
        yield Folder("s3://bucket/work")


@pytest.fixture(scope="module")
def finished(cluster):
    """The output of a pipeline job that ended well."""
    command = ["ray", "job", "submit", "--address", cluster["address"], "--runtime-env", ROOT / "jobs/runtime_env.yaml"]
    command += ["--", sys.executable, ROOT / "jobs" / "pipeline.py", "column4-digits", "--work", "s3://bucket/work"]
    command = [Path(sys.executable).with_name("ray"), *command[1:], *TWO_WORKERS]
    done = subprocess.run(
        list(map(str, command)), env=cluster["environment"], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def digests(folder):
    names = [name for name in folder.files() if name.startswith("part-")] + ["_SUCCESS.json"]
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in names}


def test_the_cluster_has_three_nodes_which_listen_on_loopback_only(cluster):
    assert len(cluster["nodes"]) == 3
    doors = listening(cluster["process"])
    assert len(doors) > 3 and all(is_loopback(address) for _, address in doors), doors


def test_progress_is_readable_in_the_log_of_the_job(finished):
    for line in ("prepare digits: ", "train column4-digits: 1/1 epochs", "vote column4-digits: 60/60 images"):
        assert line in finished
    assert "placement" in finished and "Report: s3://bucket/work/studies/column4-digits-" in finished
    assert "\r" not in finished and finished.count("Traceback") == 0


def test_everything_lies_on_object_storage(finished, store):
    assert store.folders() == ["data", "models", "studies", "training", "votes"]
    (name,) = store.folder("studies").folders()
    result = StudyResult.open(store.folder(f"studies/{name}"))
    assert len(result.answers) and "report.html" in result.folder.files() and len(result.figures) >= 2
    assert result.run["vote_table"].startswith("s3://bucket/work/votes/")
    everything = b"".join(store.read(name) for name in store.files(recursive=True))
    assert b"not-to-be-seen" not in everything


def test_the_vote_table_of_the_cluster_is_byte_for_byte_that_of_one_process(finished, store, cluster, tmp_path):
    models = store.folder("models/column4-digits")
    (key,) = models.folders()
    command = [sys.executable, "-m", "patchcert", "vote", "column4-digits", "--work", tmp_path, *SMALL]
    command += ["--checkpoint", f"{models}/{key}", "--resources.workers", "1"]
    done = subprocess.run(
        list(map(str, command)), env=cluster["environment"], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (alone,), (spread,) = (folder.folder("votes").folders() for folder in (Folder(tmp_path), store))
    assert alone == spread
    expected = digests(Folder(tmp_path).folder(f"votes/{alone}"))
    assert len(expected) == 3
    assert digests(store.folder(f"votes/{spread}")) == expected


NODE_DISKS = """
import sys
import patchcert.workspace
from patchcert.cli import main
from patchcert.data.storage import Folder

class OwnDisk(Folder):
    def __reduce__(self):
        return Folder, (sys.argv[2],)  # what the same path is on any other node

patchcert.workspace.Folder = OwnDisk
sys.exit(main(["prepare", "column4-digits", "--work", sys.argv[1]]))
"""


def test_a_work_folder_on_one_nodes_disk_is_refused_before_any_work(cluster, tmp_path):
    from ray.job_submission import JobSubmissionClient

    script = tmp_path / "prepare.py"
    script.write_text(NODE_DISKS)
    client = JobSubmissionClient(cluster["address"], headers={"Authorization": f"Bearer {cluster['token']}"})
    job = client.submit_job(entrypoint=f"{sys.executable} {script} {tmp_path}/here {tmp_path}/elsewhere")
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    log = client.get_job_logs(job)
    assert client.get_job_info(job).driver_exit_code == 2, log
    assert f"3 of 3 nodes do not see the work folder {tmp_path}/here: 127.0.0.1 (it is empty there)" in log
    assert "--work s3://bucket/folder" in log and "Traceback" not in log
    assert list((tmp_path / "here").iterdir()) == []


def test_a_node_can_be_killed(cluster):
    code, output = cluster["tool"]("kill", "7")
    assert code == 2 and "there is no node 7 to kill; there are 0 to 2" in output
    assert cluster["tool"]("kill", "2")[0] == 0
    deadline = time.monotonic() + 20
    while _runs(cluster["nodes"][2]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process):
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
