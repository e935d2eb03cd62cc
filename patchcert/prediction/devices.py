"""The name of a device in, a torch device that exists out."""

import re

import torch

from patchcert.errors import ResourceError


def find_device(name: str) -> torch.device:
    """Resolves ``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ResourceError: no such device, or a GPU was asked for and there is none, or fewer than asked.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", name):
        raise ResourceError(f"there is no device {name!r}.\n  Use auto, cpu, cuda or cuda:N.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} usable GPUs.\n"
            "  Use --resources.device cpu, or run where a GPU is."
        )
    return device
