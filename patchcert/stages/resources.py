"""What hardware a stage may use. Settings only, no ray and no torch."""

import dataclasses
from typing import Literal

from patchcert.checks import check_numbers
from patchcert.errors import ResourceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Hardware of a run and what its failures mean; none of it changes a vote."""

    address: str | None = None
    """Ray cluster to join (auto, ray://...); unset: RAY_ADDRESS, else a Ray of its own on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs when the cluster has some; cuda: refuse to run without."""
    workers: int = 0
    """Training processes or voting actors; 0: one per GPU; on CPUs one training process, one actor per core. Preparing
    processes where no cluster is joined; 0: one per core."""
    cpus_per_worker: int = 0
    """CPU cores (and torch threads) of a worker; 0: 1 for actors, an equal share of all cores for training."""
    gpus_per_worker: float = 1.0
    """GPUs of a voting actor: 0.5 puts two on a GPU, for networks that leave most of it idle. Training takes 1."""
    accelerator: str = ""
    """Use GPUs of this type only, as Ray names it (H100, A100 ...); "any" mixes types, whose scores may differ in the
    last digits. Needed when a cluster has GPUs of several types."""
    wait_for_gpus: float = 0.0
    """Seconds to wait for the first GPU of a cluster that starts GPU nodes on demand; 0: refuse at once."""
    images_per_part: int = 0
    """Images of one vote-table part; 0: 10 to 30 seconds of work by rule of thumb. The least that a failure costs."""
    on_bad_part: Literal["error", "quarantine"] = "error"
    """What a part of the vote table means that fails wherever it is tried. error: stop and name it; quarantine: list it
    in quarantined_parts.json, count its images as wrong, and end with exit code 3."""
    part_attempts: int = 3
    """How often a part is tried, on different nodes where there are some; and how many processes it may end."""
    part_timeout: float = 1800.0
    """Seconds without any finished part after which the parts under way are tried on other nodes, where each
    may take as long."""
    storage_retries: int = 5
    """How often reading and writing is repeated while storage fails, after 1, 2, 4 ... seconds."""
    max_failures: int = 2
    """How often training is restarted from its last checkpoint after a worker died."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_numbers(self, "resources", ResourceError)
        for name in (
            "workers",
            "cpus_per_worker",
            "images_per_part",
            "max_failures",
            "wait_for_gpus",
            "storage_retries",
        ):
            if getattr(self, name) < 0:
                raise ResourceError(f"resources: {name} must be >= 0, not {getattr(self, name)}.")
        if self.part_attempts < 1:
            raise ResourceError(f"resources: part_attempts must be >= 1, not {self.part_attempts}.")
        if self.part_timeout <= 0:
            raise ResourceError(
                f"resources: part_timeout must be a positive number of seconds, not {self.part_timeout}."
            )
        if not 0 < self.gpus_per_worker <= 1:
            raise ResourceError(
                f"resources: gpus_per_worker must be above 0 and at most 1, not {self.gpus_per_worker}.\n"
                "  An actor computes on one GPU; use more of them with resources.workers."
            )
        if self.device == "cpu":
            for name, value in self.gpu_settings().items():
                raise ResourceError(f"resources: {name} is {value}, but device is cpu.\n  Leave one of them out.")

    def gpu_settings(self) -> dict[str, str]:
        """Return the settings that were given and matter to GPUs only: name -> value as it was given."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: f"{value:g}" if isinstance(value := getattr(self, name), float) else str(value)
            for name in ("gpus_per_worker", "accelerator", "wait_for_gpus")
            if getattr(self, name) != defaults[name]
        }
