"""What hardware a stage may use. Settings only, no ray and no torch."""

import dataclasses
from typing import Literal

from patchcert.errors import ResourceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Hardware of a run; none of it changes a result."""

    address: str | None = None
    """Ray cluster to join (auto, ray://...); unset: RAY_ADDRESS, else a Ray of its own on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs when the cluster has some; cuda: refuse to run without."""
    workers: int = 0
    """Training processes or voting actors; 0: one per GPU; on CPUs one training process, one actor per core. Preparing
    processes where no cluster is joined; 0: one per core."""
    cpus_per_worker: int = 0
    """CPU cores (and torch threads) of a worker; 0: 1 for actors, an equal share of all cores for training."""
    images_per_part: int = 0
    """Images of one vote-table part; 0: 10 to 30 seconds of work by rule of thumb. The least that a failure costs."""
    max_failures: int = 2
    """How often training is restarted from its last checkpoint after a worker died."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("workers", "cpus_per_worker", "images_per_part", "max_failures"):
            if getattr(self, name) < 0:
                raise ResourceError(f"resources: {name} must be >= 0, not {getattr(self, name)}.")
