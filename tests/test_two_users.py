"""Two users on one machine: what `nobody` gets of the embedded Ray and of the files of the user who started it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray as installed_ray
from embedded_ray import embedded_ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can try things as another user"),
]
STRANGER = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
SYSTEM_PYTHON = "/usr/bin/python3"
# Tries to open, list and connect to what it is told, and prints what worked. It needs nothing but the standard library.
_TRY = r"""
import glob, json, os, socket, sys
paths, sockets, ports, processes = json.loads(sys.argv[1])
got = []
for path in paths:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        got.append(path)
    except OSError:
        pass
for path in sockets:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        got.append(path)
    except OSError:
        pass
for process in processes:
    for name in ("environ", "mem", "fd"):
        path = f"/proc/{process}/{name}"
        try:
            os.listdir(path) if name == "fd" else open(path, "rb").read(1)
            got.append(path)
        except OSError:
            pass
lines = []
for process in processes:
    try:
        lines.append(open(f"/proc/{process}/cmdline").read())
    except OSError:
        pass
answers = {}
job = json.dumps({"entrypoint": "touch /tmp/no", "runtime_env": {}})
request = f"POST /api/jobs/ HTTP/1.1\r\nHost: x\r\nContent-Length: {len(job)}\r\nConnection: close\r\n\r\n{job}"
for port in ports:
    try:
        door = socket.create_connection(("127.0.0.1", port), 3)
        door.settimeout(3)
        door.sendall(request.encode())
        answers[port] = door.recv(4000).decode("latin-1")
    except OSError as error:
        answers[port] = f"refused: {error}"
print(json.dumps({"got": got, "command lines": lines, "answers": answers}))
"""


@pytest.fixture(scope="module")
def owned(tmp_path_factory):
    """An embedded Ray of this user."""
    with embedded_ray(tmp_path_factory.mktemp("home")) as ray:
        yield ray


@pytest.fixture(scope="module")
def taken(owned):
    """What a stranger gets who tries everything, by itself and by name."""
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip(f"another user needs a Python of the system, and there is no {SYSTEM_PYTHON}")
    paths = [str(path) for path in (owned.folder, *owned.folder.rglob("*")) if not path.is_socket()]
    sockets = [str(path) for path in owned.folder.rglob("*") if path.is_socket()]
    processes = [owned.pid, *(child.pid for child in owned.children)]
    assert len(paths) > 10 and len(sockets) >= 2 and len(processes) > 3
    tried = json.dumps([paths, sockets, ports_of(owned), processes])
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", _TRY, tried], capture_output=True, text=True, timeout=120, env={}, **STRANGER
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ports_of(owned):
    found = set()
    for process in (psutil.Process(owned.pid), *owned.children):
        found |= {door.laddr.port for door in process.net_connections(kind="tcp") if door.status == psutil.CONN_LISTEN}
    assert found
    return sorted(found)


def test_no_file_no_socket_no_memory(taken):
    assert taken["got"] == []


def test_the_owner_could_have_read_them(owned):
    """The same by root, so that the test above would see an open file."""
    tried = json.dumps([[str(owned.folder)], [str(next(owned.folder.rglob("raylet")))], [], [owned.pid]])
    done = subprocess.run([SYSTEM_PYTHON, "-c", _TRY, tried], capture_output=True, text=True, timeout=60)
    assert len(json.loads(done.stdout)["got"]) >= 4


def test_no_token_where_everybody_can_read(owned, taken):
    assert taken["command lines"] and owned.token not in "".join(taken["command lines"])
    for path in Path("/dev/shm").iterdir():
        status = path.lstat()
        assert path.is_dir() or status.st_mode & 0o044 == 0 or owned.token.encode() not in path.read_bytes()


def test_no_job(owned, taken):
    """No port takes a job, and none tells a stranger the token."""
    assert taken["answers"]
    for port, answer in taken["answers"].items():
        assert "submission_id" not in answer and owned.token not in answer, (port, answer)
    with socket.socket() as dashboard:
        assert 8265 not in ports_of(owned) or dashboard.connect_ex(("127.0.0.1", 8265))


@pytest.fixture(scope="module")
def strangers_python(tmp_path_factory):
    """(Python, variables) with which another user can import Ray, or a skip."""
    packages = str(Path(installed_ray.__file__).parents[1])
    for python, variables in ((sys.executable, {}), (SYSTEM_PYTHON, {"PYTHONPATH": packages})):
        try:
            done = subprocess.run(
                [python, "-c", "import ray"],
                capture_output=True,
                timeout=120,
                env={"HOME": "/"} | variables,
                **STRANGER,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python, variables
    pytest.skip("no Python with Ray can be started by another user: its folders are closed to others")


def test_no_task(owned, strangers_python, tmp_path):
    """With Ray's own client and a token of his own; with the owner's token the same task runs."""
    python, variables = strangers_python
    settings = {"python": python, "env": variables | {"RAY_TMPDIR": "/tmp", "TMPDIR": "/tmp"}} | STRANGER
    refused = owned.asked_by_a_stranger("/", token="ab" * 32, **settings)
    assert "TASK" not in refused and "uthenticat" in refused, refused
    # A driver needs the sockets of its raylet: even the token alone does not help another user.
    assert "TASK" not in owned.asked_by_a_stranger("/", token=owned.token, **settings)
