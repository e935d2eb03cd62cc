"""A Ray cluster of several nodes on one machine, which takes jobs and loses nodes, to try what a real one would do.

Start:     python cluster/several_nodes.py start --nodes 3      (needs the jobs extra: pip install "patchcert[jobs]")
Submit:    RAY_AUTH_MODE=disabled ray job submit --address http://127.0.0.1:8266 -- \\
               python $PWD/jobs/pipeline.py column4-digits --work $PWD/patchcert-work
Lose one:  python cluster/several_nodes.py kill 2               (at once, as a preempted machine dies; 0 is the head)
Stop:      python cluster/several_nodes.py stop                 (ends this cluster only)
Left running it costs about 0.8 GiB of memory and 0.3 GiB for each node, and no money. It listens on loopback only.

Every node is a raylet with resources and an object store of its own; they share the machine's cores, so more nodes
make nothing faster. `ray.cluster_utils.Cluster` starts them: `ray start` gives them the machine's outer address.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STATE, LOG = "cluster.json", "log"
START_SECONDS, STOP_SECONDS = 180, 30


def main() -> int:
    """Command and options in, an exit code out: 0 done, 2 for what the user can mend, 1 when Ray does not start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "kill", "stop", "serve"))
    parser.add_argument("node", type=int, nargs="?", help="of kill: number of the node, 0 is the head")
    parser.add_argument("--nodes", type=int, default=3, help="nodes with the head")
    parser.add_argument("--node-cpus", type=int, default=1, help="CPU cores that each node offers")
    parser.add_argument("--dashboard-port", type=int, default=8266)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/patchcert-nodes"), help="state, logs, Ray's sessions")
    options = parser.parse_args()
    if options.nodes < 1 or options.node_cpus < 1:
        parser.error(f"--nodes and --node-cpus must be at least 1, not {options.nodes} and {options.node_cpus}")
    return {"start": start, "kill": kill, "stop": stop, "serve": serve}[options.command](options)


def start(options: argparse.Namespace) -> int:
    """Starts ``serve`` in a session of its own and waits until it takes jobs."""
    if running(options.folder):
        print(f"already running; stop it with: {sys.argv[0]} stop", file=sys.stderr)
        return 2
    shutil.rmtree(options.folder / "ray", ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / STATE).unlink(missing_ok=True)
    # Ray reads all of these when it is imported. The last one is the only way to keep Ray on the loopback address: it
    # is meant for machines whose firewall asks about every open port.
    environment = os.environ | {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
        "RAY_TMPDIR": str(options.folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, __file__, "serve", "--nodes", str(options.nodes), "--node-cpus", str(options.node_cpus)]
    command += ["--dashboard-port", str(options.dashboard_port), "--folder", str(options.folder)]
    with open(options.folder / LOG, "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if state := running(options.folder):
            print(f"{len(state['nodes'])} nodes are ready: ray job submit --address {state['address']} -- python ...")
            return 0
        time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    print(f"Ray did not start; see {options.folder / LOG}", file=sys.stderr)
    return 1


def serve(options: argparse.Namespace) -> int:
    """The cluster itself; ends with SIGTERM."""
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
    """What every node gets."""
    # The usual ports may belong to another Ray of this machine, and without an agent no job starts. A node whose ports
    # are given does not wait for its agents to find some, which on a busy machine takes longer than Ray allows.
    ports = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    return {"num_cpus": options.node_cpus} | {name: free_port() for name in ports}


def kill(options: argparse.Namespace) -> int:
    """Kills one raylet; its workers and its agent die with it."""
    state = running(options.folder)
    if state is None or options.node is None or not 0 <= options.node < len(state["nodes"]):
        numbers = f"0 to {len(state['nodes']) - 1}" if state else "none, for nothing runs"
        print(f"there is no node {options.node} to kill; there are {numbers}", file=sys.stderr)
        return 2
    with contextlib.suppress(ProcessLookupError):
        os.kill(state["nodes"][options.node], signal.SIGKILL)
    print(f"killed node {options.node}")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Ends the cluster with everything it started."""
    state = running(options.folder)
    if state is None:
        print("not running")
        return 0
    group = os.getpgid(state["process"])
    os.kill(state["process"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(state["process"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    (options.folder / STATE).unlink(missing_ok=True)
    print("stopped")
    return 0


def running(folder: Path) -> dict | None:
    """The state of a cluster that runs, or None."""
    try:
        state = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return None
    return state if is_alive(state["process"]) else None


def is_alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
