"""Checks the machine, the installed libraries and the folders that commands would use, and advises on each.

Nothing is changed: a probe file in the work folder is written and removed. Libraries are tried in processes of their
own, so that one that is broken or hangs is a line of the result.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from patchcert.addresses import masked, masked_address
from patchcert.data.prepared import DATASET_FILE, available_cpus
from patchcert.data.registry import dataset_names, dataset_spec
from patchcert.data.rows import DATA_VARIABLE
from patchcert.data.sealed import read_sealed
from patchcert.data.storage import Folder
from patchcert.data.untrusted import parsed_json
from patchcert.listening import listeners
from patchcert.stages.cluster import check_answers as check_ray_answers
from patchcert.stages.resources import Resources
from patchcert.tracking import TrackingConfig, tracking_uri
from patchcert.tracking.store import check_answers, database_path, read_database
from patchcert.workspace import Workspace

State = Literal["ok", "warning", "problem"]
_SHOWN_LIBRARIES = ("torch", "torchvision", "ray", "mlflow", "pyarrow")
_LIBRARY_SECONDS, _RAY_SECONDS = 60.0, 120.0
_LITTLE_DISK, _LITTLE_MEMORY, _LITTLE_SHARED = 5 * 2**30, 4 * 2**30, 300 * 2**20
_PROBE = ".patchcert-probe"
_MOST_NAMES = 5
_VARIABLES = ("PATCHCERT_", "MLFLOW_", "RAY_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "OMP_", "MKL_", "NCCL_")
_MORE_VARIABLES = (
    "PYTHONOPTIMIZE",
    "PYTHONPATH",
    "PYTHONWARNINGS",
    "PYTHONHASHSEED",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "FORCE_COLOR",
    "NO_COLOR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "AWS_ENDPOINT_URL",
)
_TRY_TORCH = """
import json, torch, torchvision
assert float(torch.ones(64) @ torch.ones(64)) == 64
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
for i in range(len(devices)):
    ones = torch.ones((64, 64), device=f"cuda:{i}")
    assert float((ones @ ones).sum()) == 64**3
print(json.dumps({"cuda": torch.version.cuda, "devices": devices}))
"""
_TRY_RAY = """
import json, sys
from patchcert.stages.cluster import connected
from patchcert.stages.resources import Resources
with connected(Resources(address=sys.argv[1] or None)) as ray:
    assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
    print(json.dumps(ray.cluster_resources()))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the result.

    Attributes:
        what: was checked.
        state: whether it is well.
        found: what is there.
        advice: what to do about it; empty where nothing is to be done.
    """

    what: str
    state: State
    found: str
    advice: str = ""


def examine(
    workspace: Callable[[], Workspace], resources: Resources, tracking: TrackingConfig, *, start_ray: bool = False
) -> list[Finding]:
    """Run all checks; one that fails is itself a problem in the result.

    Args:
        workspace: opens the work folder.
        resources: the cluster that would be joined.
        tracking: where runs would be recorded.
        start_ray: also start an embedded Ray, or join the cluster, and run a task on it; takes up to two minutes.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("libraries", library_versions),
        ("torch", devices),
        ("ray", lambda: imports("ray")),
        ("mlflow", lambda: imports("mlflow")),
        ("machine", machine),
        ("temporary folder", lambda: free_disk("temporary folder", tempfile.gettempdir())),
        ("work folder", lambda: work_folder(workspace().folder)),
        ("data", data_folders),
        ("Ray", lambda: ray_reachable(resources, start_ray)),
        ("tracker", lambda: tracker(tracking, workspace().folder)),
        ("listening", listening),
        ("variables", variables),
    ]
    # The slow ones wait for other processes.
    with ThreadPoolExecutor(len(checks)) as pool:
        return [finding for findings in pool.map(lambda check: _caught(*check), checks) for finding in findings]


def _caught(what: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:
        text = masked(" ".join(str(error).split())) or type(error).__name__
        return [Finding(what=what, state="problem", found=text)]


def library_versions(
    requires: Callable[[], Iterable[str]] = lambda: importlib.metadata.requires("patchcert") or [],
    version: Callable[[str], str] = importlib.metadata.version,
) -> Iterator[Finding]:
    """Compare what is installed with what the package declares that it needs.

    Args:
        requires: the requirements of the package.
        version: the installed version of a library.
    """
    python = platform.python_version()
    try:
        needed = importlib.metadata.metadata("patchcert").get("Requires-Python", "")
        requirements = [Requirement(line) for line in requires()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            what="Python",
            state="warning",
            found=f"{python}; the package is not installed, so nothing says what it needs",
            advice="pip install the package, or a checkout of it with --editable",
        )
        return
    fits = python in SpecifierSet(needed)
    yield Finding(
        what="Python",
        state="ok" if fits else "problem",
        found=f"{python} ({sys.executable})",
        advice="" if fits else f"use a Python {needed}",
    )
    others = 0
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = str(requirement).partition(";")[0].strip()
        try:
            found = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                what=requirement.name, state="problem", found="not installed", advice=f"pip install '{wanted}'"
            )
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                what=requirement.name,
                state="problem",
                found=f"{found}, needed is {requirement.specifier}",
                advice=f"pip install '{wanted}'",
            )
        elif requirement.name in _SHOWN_LIBRARIES:
            yield Finding(what=requirement.name, state="ok", found=f"{found} (needed {requirement.specifier})")
        else:
            others += 1
    yield Finding(what="other libraries", state="ok", found=f"{others} with versions that fit")


def run_python(program: str, *arguments: str, seconds: float = _LIBRARY_SECONDS) -> str:
    """Run a program in a Python of its own.

    Returns:
        The last line that it printed.

    Raises:
        RuntimeError: it failed; the message is its last line on standard error.
        TimeoutError: it is not done in time.
    """
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done after {seconds:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    return (done.stdout.strip().splitlines() or [""])[-1]


def imports(library: str) -> Iterator[Finding]:
    """Import a library in a process of its own."""
    try:
        run_python(f"import {library}")
    except (RuntimeError, TimeoutError) as error:
        yield _not_imported(library, error)


def devices() -> Iterator[Finding]:
    """Import torch and torchvision and compute a little on every device, in a process of its own."""
    try:
        said = run_python(_TRY_TORCH)
    except (RuntimeError, TimeoutError) as error:
        yield _not_imported("torch", error)
    else:
        yield from torch_works(said)


def _not_imported(library: str, error: Exception) -> Finding:
    if isinstance(error, TimeoutError):
        advice = "run this again when the machine is less busy"
        return Finding(what=f"import {library}", state="warning", found=str(error), advice=advice)
    advice = f"install it again: pip install --force-reinstall {library}"
    return Finding(what=f"import {library}", state="problem", found=str(error), advice=advice)


def torch_works(said: str, driver: Path = Path("/proc/driver/nvidia")) -> Iterator[Finding]:
    """Say which devices torch computes on, and whether it leaves out a GPU that is there.

    Args:
        said: what the trial of torch printed.
        driver: where the NVIDIA driver shows itself.
    """
    tried = json.loads(said)
    gpus = [path.name for path in (driver / "gpus").glob("*")] if driver.is_dir() else []
    version = ""
    with contextlib.suppress(OSError, IndexError):
        version = (driver / "version").read_text(encoding="utf-8").split("Kernel Module")[1].split()[0]
    built = f"built for CUDA {tried['cuda']}" if tried["cuda"] else "built without CUDA"
    if tried["devices"]:
        yield Finding(
            what="devices",
            state="ok",
            found=f"{', '.join(tried['devices'])}; driver {version or 'unknown'}, torch {built}",
        )
    elif gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        yield Finding(
            what="devices",
            state="problem",
            found=f"{len(gpus)} NVIDIA GPUs (driver {version or 'unknown'}) that torch, {built}, cannot use",
            advice="CUDA_VISIBLE_DEVICES hides them: unset it"
            if hidden
            else "install a torch for this driver's CUDA: https://pytorch.org/get-started/locally",
        )
    else:
        yield Finding(what="devices", state="ok", found=f"processors only, no NVIDIA GPU; torch {built}")


def machine() -> Iterator[Finding]:
    """Report processors, memory, and the shared memory that Ray's object store lies in."""
    yield Finding(what="processors", state="ok", found=f"{available_cpus()} for this process, {os.cpu_count()} in all")
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024
    if "MemAvailable" in fields:
        free, total = fields["MemAvailable"], fields["MemTotal"]
        yield Finding(
            what="memory",
            state="ok" if free >= _LITTLE_MEMORY else "warning",
            found=f"{_size(free)} free of {_size(total)}",
            advice="" if free >= _LITTLE_MEMORY else "use fewer workers, or end other programs",
        )
    if os.path.isdir("/dev/shm"):
        total = shutil.disk_usage("/dev/shm").free
        yield Finding(
            what="shared memory",
            state="ok" if total >= _LITTLE_SHARED else "warning",
            found=f"{_size(total)} free in /dev/shm",
            advice="" if total >= _LITTLE_SHARED else "Ray falls back to the disk; in Docker: --shm-size=1g",
        )


def free_disk(what: str, folder: str) -> Iterator[Finding]:
    """Report the free disk space of a folder, or of the nearest folder above it that exists."""
    place = Path(folder)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Finding(
        what=what,
        state="ok" if free >= _LITTLE_DISK else "warning",
        found=f"{folder}, {_size(free)} free",
        advice="" if free >= _LITTLE_DISK else "free some space, or choose another folder",
    )


def work_folder(folder: Folder) -> Iterator[Finding]:
    """Report whether the work folder can be written, and what it holds by the records in it."""
    if not folder.exists():
        yield Finding(what="work folder", state="ok", found=f"{folder} is not there yet; the first command makes it")
        if folder.is_local:
            yield from free_disk("work folder's disk", folder.path())
        return
    try:
        folder.write(_PROBE, b"")
        folder.remove(_PROBE)
    except Exception as error:
        yield Finding(
            what="work folder",
            state="problem",
            found=str(error).splitlines()[0],
            advice="choose another with --work FOLDER, or change its permissions",
        )
    else:
        yield Finding(what="work folder", state="ok", found=f"{folder} can be written")
    if folder.is_local:
        yield from free_disk("work folder's disk", folder.path())
    kinds = (
        ("prepared images", "data", 2, DATASET_FILE),
        ("models", "models", 2, "config.json"),
        ("vote tables", "votes", 1, "_SUCCESS.json"),
        ("studies", "studies", 1, "summary.json"),
        ("variance studies", "variance", 1, "variance.json"),
    )
    for what, name, depth, record in kinds:
        if folder.exists(name):
            yield _records(what, folder.folder(name), depth, record)


def _records(what: str, folder: Folder, depth: int, record: str) -> Finding:
    """How many folders hold a whole record, none, or one that is damaged."""
    folders = [folder]
    for _ in range(depth):
        folders = [outer.folder(name) for outer in folders for name in outer.folders()]
    whole, unfinished, damaged = 0, [], []
    for place in folders:
        if not place.is_file(record):
            unfinished.append(str(place))
        elif _is_whole(place, record):
            whole += 1
        else:
            damaged.append(f"{place}/{record}")
    found = f"{whole} finished"
    if unfinished:
        found += f", {len(unfinished)} unfinished: {_some(unfinished)}"
    if damaged:
        found += f", {len(damaged)} damaged: {_some(damaged)}"
    advice = "the command that makes them continues unfinished ones" if unfinished else ""
    if damaged:
        advice = "delete the damaged folders and run the commands again that made them"
    return Finding(
        what=what, state="problem" if damaged else "warning" if unfinished else "ok", found=found, advice=advice
    )


def _is_whole(folder: Folder, name: str) -> bool:
    try:
        record = parsed_json(folder.read(name))
        return isinstance(record, dict) and read_sealed(folder, name, unsealed=record.keys())[1]
    except (ValueError, OSError):
        return False


def data_folders() -> Iterator[Finding]:
    """Report which known datasets lie in the data folder."""
    root = os.environ.get(DATA_VARIABLE)
    advice = f"export {DATA_VARIABLE}=FOLDER, or give --data.source FOLDER"
    if not root:
        yield Finding(
            what="data folder", state="ok", found=f"{DATA_VARIABLE} is not set: digits are bundled, others are given"
        )
        return
    folder = Folder(root)
    if not folder.exists() or folder.is_file():
        yield Finding(what="data folder", state="problem", found=f"{folder} is no folder", advice=advice)
        return
    specs = [dataset_spec(name) for name in dataset_names()]
    there = [spec.name for spec in specs if any(folder.exists(name) for name in spec.source_folders)]
    missing = [spec.name for spec in specs if spec.source_folders and spec.name not in there and not spec.embedded]
    yield Finding(
        what="data folder",
        state="ok" if there else "warning",
        found=f"{folder} has {', '.join(there) or 'no known dataset'}" + f"; not {', '.join(missing)}" * bool(missing),
        advice="" if there else advice,
    )


def ray_reachable(resources: Resources, start: bool) -> Iterator[Finding]:
    """Report whether the cluster answers, or with ``start`` whether a task runs on it or on an embedded Ray."""
    address = resources.address or os.environ.get("RAY_ADDRESS") or ""
    place = f"the cluster at {masked_address(address)}" if address and address != "local" else "an embedded Ray"
    if start:
        try:
            found = json.loads(run_python(_TRY_RAY, resources.address or "", seconds=_RAY_SECONDS))
        except (RuntimeError, TimeoutError) as error:
            yield Finding(
                what="Ray", state="problem", found=masked(f"{place} runs no task: {error}"), advice=_RAY_ADVICE
            )
            return
        yield Finding(
            what="Ray",
            state="ok",
            found=f"{place} ran a task: {found.get('CPU', 0):g} processors, {found.get('GPU', 0):g} GPUs",
        )
    elif place == "an embedded Ray":
        yield Finding(what="Ray", state="ok", found="starts with the first command that needs it; try: --start-ray")
    else:
        try:
            check_ray_answers(address)
        except OSError as error:
            yield Finding(what="Ray", state="problem", found=f"{place} does not answer: {error}", advice=_RAY_ADVICE)
            return
        yield Finding(what="Ray", state="ok", found=f"{place} was found; try a task on it: --start-ray")


_RAY_ADVICE = "check --resources.address and RAY_ADDRESS; without both, a Ray of its own starts"


def tracker(config: TrackingConfig, folder: Folder) -> Iterator[Finding]:
    """Report whether runs can be recorded."""
    if config.mode == "off":
        yield Finding(what="tracker", state="ok", found="off: nothing is recorded")
        return
    uri = tracking_uri(config.uri, folder)
    shown = masked_address(uri)
    try:
        check_answers(uri)
        database = database_path(uri)
        if database is None:
            found = shown
        elif not database.exists():
            found = f"{shown} is made by the first command that records"
        else:
            found = f"{shown}, {read_database(database)} runs"
    except Exception as error:
        yield Finding(
            what="tracker",
            state="problem",
            found=masked(f"{shown}: {error}"),
            advice="start the server, or choose another store with --tracking.uri",
        )
        return
    yield Finding(what="tracker", state="ok", found=found)


def listening() -> Iterator[Finding]:
    """Report what this user's Ray and MLflow listen on; anything that other machines can reach is a problem."""
    found = listeners()
    if found is None:
        yield Finding(what="listening", state="warning", found="not checked: this system does not show its sockets")
        return
    open_ones = [listener for listener in found if not listener.is_loopback]
    if open_ones:
        yield Finding(
            what="listening",
            state="problem",
            found=f"other machines can reach {_some([str(listener) for listener in open_ones])}",
            advice="end these processes, unless a firewall shields their cluster: neither asks who connects",
        )
    else:
        yield Finding(what="listening", state="ok", found=f"{len(found)} ports of Ray and MLflow, on loopback only")


def variables() -> Iterator[Finding]:
    """Name the variables that change how commands work; never their values, which may be secrets."""
    names = sorted(name for name in os.environ if name.startswith(_VARIABLES) or name.upper() in _MORE_VARIABLES)
    yield Finding(what="variables", state="ok", found=", ".join(names) or "none that change anything")
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not threads.isdigit() or int(threads) == 0:
        yield Finding(
            what="OMP_NUM_THREADS", state="warning", found="is no number of threads, and is ignored", advice="unset it"
        )
    if sys.flags.optimize >= 2:
        yield Finding(
            what="PYTHONOPTIMIZE",
            state="problem",
            found="Python drops docstrings, and Ray Data cannot be imported without them",
            advice="unset it, or start Python without -OO",
        )
    for name in ("HOME", "TMPDIR"):
        folder = os.environ.get(name)
        if folder and not os.access(folder, os.W_OK | os.X_OK):
            yield Finding(
                what=name,
                state="warning",
                found="names a folder that is not there or cannot be written",
                advice=f"make that folder, or set {name} to another",
            )


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def as_text(findings: list[Finding]) -> Any:
    """A table of the findings, for a screen or a pipe."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table("check", "state", "found", "advice")
    for finding in findings:
        table.add_row(finding.what, Text(finding.state, styles[finding.state]), finding.found, finding.advice)
    return table
