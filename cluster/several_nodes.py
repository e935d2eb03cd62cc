"""A Ray cluster of several nodes on one machine, which takes jobs and loses nodes, to try what a real one would do.

Start:     python cluster/several_nodes.py start --nodes 3      (needs the jobs extra: pip install "patchcert[jobs]")
Submit:    eval "$(python cluster/several_nodes.py variables)"  (how to log in; the token itself is never shown)
           ray job submit -- python $PWD/jobs/pipeline.py column4-digits --work $PWD/patchcert-work
Lose one:  python cluster/several_nodes.py kill 2               (at once, as a preempted machine dies; 0 is the head)
Stop:      python cluster/several_nodes.py stop                 (ends this cluster only)
Left running it costs about 0.8 GiB of memory and 0.3 GiB for each node, and no money. It listens on loopback
only, and every call needs the token of this run, which lies in a folder that only you can read.

Every node is a raylet with resources and an object store of its own; they share the machine's cores, so more nodes
make nothing faster. `ray.cluster_utils.Cluster` starts them: `ray start` gives them the machine's outer address.
"""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STATE, TOKEN, LOG = "cluster.json", "token", "log"
START_SECONDS, STOP_SECONDS = 180, 30


class NotOurs(Exception):
    """Something that this user alone should have made, and may not have."""


def main() -> int:
    """Run one command; return 0 when done, 2 for what the user can fix, 1 when Ray does not start."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "variables", "kill", "stop", "serve"))
    parser.add_argument("node", type=int, nargs="?", help="of kill: number of the node, 0 is the head")
    parser.add_argument("--nodes", type=int, default=3, help="nodes with the head")
    parser.add_argument("--node-cpus", type=int, default=1, help="CPU cores that each node offers")
    parser.add_argument("--dashboard-port", type=int, default=8266)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="state, token and log")
    parser.add_argument("--ray-folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nodes < 1 or options.node_cpus < 1:
        parser.error(f"--nodes and --node-cpus must be at least 1, not {options.nodes} and {options.node_cpus}")
    options.folder = options.folder.absolute()
    commands = {"start": start, "variables": variables, "kill": kill, "stop": stop, "serve": serve}
    try:
        return commands[options.command](options)
    except NotOurs as error:
        print(error, file=sys.stderr)
        return 2


def default_folder() -> Path:
    """Return a place below a folder of the user's own, never a guessable name where everybody may write."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    if not own or not is_private(Path(own), stat.S_ISDIR):
        own = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(own) / "patchcert-nodes"


def is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether a path is no link, of this kind, this user's, and closed to everybody else."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def check_folder(folder: Path) -> None:
    """Raise NotOurs for a folder in which others could have put a state or read the token."""
    if not is_private(folder, stat.S_ISDIR):
        raise NotOurs(
            f"{folder} has to be a folder of yours that nobody else may enter, no link, and is not.\n"
            f"  Look at it (ls -ld {folder}), then remove it or name another: --folder FOLDER"
        )


def start(options: argparse.Namespace) -> int:
    """Start ``serve`` in a session of its own and wait until it takes jobs."""
    with contextlib.suppress(FileExistsError):
        options.folder.mkdir(parents=True)
    if running(options.folder):
        print(f"already running; stop it with: {sys.argv[0]} stop", file=sys.stderr)
        return 2
    forget(options.folder)
    with open(options.folder / TOKEN, "x") as token:
        token.write(secrets.token_hex(32))
    ray_folder = tempfile.mkdtemp(prefix="patchcert-nodes.", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    # Ray reads all of these when it is imported. The last one is the only way to keep Ray on the loopback address: it
    # is meant for machines whose firewall asks about every open port.
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(options.folder / TOKEN),
        "RAY_TMPDIR": ray_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, __file__, "serve", "--nodes", str(options.nodes), "--node-cpus", str(options.node_cpus)]
    command += ["--dashboard-port", str(options.dashboard_port), "--folder", str(options.folder)]
    command += ["--ray-folder", ray_folder]
    with open(options.folder / LOG, "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if state := running(options.folder):
            login = f'eval "$(python {sys.argv[0]} variables)"'
            print(f"{len(state['nodes'])} nodes are ready. To submit:  {login}; ray job submit -- python ...")
            return 0
        time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    forget(options.folder)
    shutil.rmtree(ray_folder, ignore_errors=True)
    print(f"Ray did not start; see {options.folder / LOG}", file=sys.stderr)
    return 1


def variables(options: argparse.Namespace) -> int:
    """Print the shell command with which jobs find the cluster and its token, but never the token itself."""
    state = running(options.folder)
    if state is None:
        print(f"not running; start it with: {sys.argv[0]} start", file=sys.stderr)
        return 2
    token, address = shlex.quote(str(options.folder / TOKEN)), shlex.quote(state["address"])
    print("unset RAY_AUTH_TOKEN;", end=" ")
    print(f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token} RAY_API_SERVER_ADDRESS={address}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """Be the cluster, until SIGTERM."""
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobStatus, JobSubmissionClient

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cluster = Cluster()
    pages = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": options.dashboard_port}
    nodes = [cluster.add_node(**node_settings(options), **pages)]
    for _ in range(1, options.nodes):
        nodes.append(cluster.add_node(**node_settings(options)))
    # The server answers before its agent can start jobs: only a job that ended well shows that both are there.
    address = f"http://{cluster.webui_url}"
    client = JobSubmissionClient(address)
    job = None
    while job is None or (status := client.get_job_status(job)) != JobStatus.SUCCEEDED:
        if job is None:
            with contextlib.suppress(RuntimeError):
                job = client.submit_job(entrypoint="true")
        elif status.is_terminal():
            job = None
        time.sleep(0.2)
    state = {
        "process": os.getpid(),
        "ray_folder": str(options.ray_folder),
        "address": address,
        "gcs_address": cluster.gcs_address,
        "nodes": [node.all_processes["raylet"][0].process.pid for node in nodes],
    }
    temporary = options.folder / f".{STATE}"
    temporary.write_text(json.dumps(state))
    temporary.replace(options.folder / STATE)
    try:
        while True:
            signal.pause()
    finally:
        (options.folder / STATE).unlink(missing_ok=True)
        cluster.shutdown()


def node_settings(options: argparse.Namespace) -> dict:
    """Return what every node gets."""
    # The usual ports may belong to another Ray of this machine, and without an agent no job starts. A node whose ports
    # are given does not wait for its agents to find some, which on a busy machine takes longer than Ray allows.
    ports = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    return {"num_cpus": options.node_cpus} | {name: free_port() for name in ports}


def kill(options: argparse.Namespace) -> int:
    """Kill one raylet; its workers and its agent die with it."""
    state = running(options.folder)
    if state is None or options.node is None or not 0 <= options.node < len(state["nodes"]):
        numbers = f"0 to {len(state['nodes']) - 1}" if state else "none, for nothing runs"
        print(f"there is no node {options.node} to kill; there are {numbers}", file=sys.stderr)
        return 2
    if is_ours(state["nodes"][options.node], state["ray_folder"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["nodes"][options.node], signal.SIGKILL)
    print(f"killed node {options.node}")
    return 0


def stop(options: argparse.Namespace) -> int:
    """End the cluster with everything it started."""
    if not os.path.lexists(options.folder) or (state := running(options.folder)) is None:
        print("not running")
        return 0
    # `serve` leads a session of its own: its number is that of the group.
    os.kill(state["process"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while is_ours(state["process"], state["ray_folder"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(state["process"], signal.SIGKILL)
    forget(options.folder)
    if is_private(Path(state["ray_folder"]), stat.S_ISDIR):
        shutil.rmtree(state["ray_folder"], ignore_errors=True)
    print("stopped")
    return 0


def forget(folder: Path) -> None:
    """Remove what a cluster that has ended left in its folder."""
    for name in (STATE, TOKEN):
        (folder / name).unlink(missing_ok=True)


def running(folder: Path) -> dict | None:
    """Return the state of a cluster that runs, or None; raise NotOurs where somebody else may have written it."""
    check_folder(folder)
    path = folder / STATE
    if not os.path.lexists(path):
        return None
    try:
        state = json.loads(path.read_text()) if is_private(path, stat.S_ISREG) else None
    except ValueError:
        state = None
    if not is_state(state):
        raise NotOurs(f"{path} does not hold what this script writes; nothing was ended. Remove it after a look.")
    return state if is_ours(state["process"], state["ray_folder"]) else None


def is_state(state: object) -> bool:
    """Whether a value is what ``serve`` writes: process numbers, an address, and a folder with a name of ours."""
    if not isinstance(state, dict) or not isinstance(state.get("nodes"), list):
        return False
    processes = [state.get("process"), *state["nodes"]]
    return (
        all(type(number) is int and number > 1 for number in processes)
        and isinstance(state.get("address"), str)
        and isinstance(state.get("ray_folder"), str)
        and os.path.isabs(state["ray_folder"])
        and os.path.basename(state["ray_folder"]).startswith("patchcert-nodes.")
    )


def is_ours(process: int, ray_folder: str) -> bool:
    """Whether a process is this user's and works in this folder: its number alone may belong to another by now."""
    command = ["ps", "-o", "uid=,args=", "-ww", "-p", str(process)]
    user, _, arguments = subprocess.run(command, capture_output=True, text=True).stdout.strip().partition(" ")
    return user == str(os.getuid()) and ray_folder in arguments


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
