"""A process with an embedded Ray, for tests of what others can do to it."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import psutil

_EMBEDDED = """
import os, sys
{before}
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources
with connected(Resources()) as ray:
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    context = ray.get_runtime_context()
    print(context.gcs_address, os.path.dirname(context.get_temp_dir()), flush=True)
    sys.stdin.read()
    {end}
"""
_TASK = """
import ray
ray.init(address={address!r}, log_to_driver=False)
print("TASK", ray.get(ray.remote(lambda: 1).remote()))
"""


@dataclasses.dataclass(frozen=True)
class EmbeddedRay:
    """What is known of it: the process, the address of its GCS, its private folder."""

    process: subprocess.Popen
    address: str
    folder: Path

    @property
    def pid(self):
        return self.process.pid

    @property
    def children(self):
        return psutil.Process(self.pid).children(recursive=True)

    @property
    def token(self):
        """From the environment of Ray's own processes: that of the driver shows what it was started with."""
        return next(token for child in self.children if (token := child.environ().get("RAY_AUTH_TOKEN")))

    def asked_by_a_stranger(self, home, *, token, python=sys.executable, **options):
        """What a program prints that tries to run a task; Ray may try for minutes before it gives up."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # Without the last one Ray would look for the owner at an address where nobody listens.
        variables |= {
            "HOME": str(home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        process = subprocess.Popen(
            [python, "-c", _TASK.format(address=self.address)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables | options.pop("env", {}),
            **options,
        )
        try:
            return process.communicate(timeout=45)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]


@contextlib.contextmanager
def embedded_ray(home, *, before="", end="", **variables):
    """Starts one with the variables of a user who has set none for Ray, and ends it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray gives a node 30 seconds to come up; on a machine that is far too busy another try has a better chance.
    for tries_left in (2, 1, 0):
        process = subprocess.Popen(
            [sys.executable, "-c", _EMBEDDED.format(before=before, end=end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ours | {"HOME": str(home)} | variables,
        )
        if line := process.stdout.readline().split():
            break
        error = process.communicate("")[1]
        assert tries_left and "cannot start Ray on this machine" in error, error
    try:
        yield EmbeddedRay(process, line[0], Path(line[1]))
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate("", timeout=60)
