"""What a result was computed with: versions, hardware, commit; never the environment's secrets."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("patchcert", "torch", "torchvision", "ray", "numpy", "pyarrow", "scipy", "mlflow")


def environment() -> dict[str, Any]:
    """Names and versions of what computes here, JSON-able."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
    } | code_version()


def code_version() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that the package runs from; empty for an installed package."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return {}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    # Inside a git hook, GIT_DIR and its like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    finished = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=10,
        check=True,
        env=environment,
    )
    return finished.stdout.strip()


def _processor() -> str:
    try:
        lines = _lines(Path("/proc/cpuinfo"))
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    """Names of the GPUs that the driver lists, without loading torch."""
    folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = []
    for folder in folders:
        fields = dict(line.split(":", 1) for line in _lines(folder) if ":" in line)
        names.append(fields.get("Model", "NVIDIA GPU").strip())
    return names


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
