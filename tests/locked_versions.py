"""Reads lock files: which versions they name, for which machines, and with which digests."""

import re
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("requirements.lock", "cluster/mlflow.lock")
# The machines of cluster/ and of continuous integration.
MACHINES = [
    {
        "python_full_version": f"{python}.9",
        "python_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    for python in ("3.11", "3.12")
]


def entries(text):
    """(requirement, its digests) of every entry of a lock file."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            requirement, *options = re.split(r"\s+(?=--)", line.strip())
            found.append((Requirement(requirement), options))
    return found


def locked(name, machine):
    """Version of every package that a lock file installs on a machine."""
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement, _ in entries((ROOT / name).read_text())
        if requirement.marker is None or requirement.marker.evaluate(machine)
    }


def applies(marker: Marker | None, machine, extras=("",)):
    """Whether a requirement concerns a machine, with one of some extras."""
    return marker is None or any(marker.evaluate({**machine, "extra": extra}) for extra in extras)
