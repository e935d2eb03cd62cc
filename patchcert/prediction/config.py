"""How views are scored. Settings only, no torch."""

import dataclasses
from typing import Literal, get_args

from patchcert.errors import ModelError

# A GPU wants chunks of about 32 views of 224x224; a CPU core is fastest when a chunk fits its cache.
_CHUNK_PIXELS = {"cuda": 32 * 224 * 224, "cpu": 2 * 224 * 224}
_MAX_CHUNK_VIEWS = 2048
# One pass over an image needs hundreds of channels at each of its pixels: less than 2 KiB a pixel.
_PASS_PIXELS = {"cuda": 32 * 224 * 224, "cpu": 16 * 32 * 32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """Settings of the scoring pass."""

    score_floor: float = 0.1
    """Scores below it are not stored; thresholds from here up are answered exactly. 0: store top classes only."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network. bfloat16 is faster on GPUs and may change votes: part of the table's identity."""
    chunk_views: int = 0
    """Views in one forward pass (the last ones are filled up); 0: by the size of a view. Bounds the memory needed.
    Networks that score all views of an image in one pass get as many whole images as fit, and at least one."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        choices = get_args(PredictionConfig.__annotations__["precision"])
        if self.precision not in choices:
            raise ModelError(f"prediction: precision is one of {', '.join(choices)}, not {self.precision!r}.")
        if not 0 <= self.score_floor <= 1:
            raise ModelError(f"prediction: score_floor is a softmax score in [0, 1], not {self.score_floor}.")
        if self.chunk_views < 0:
            raise ModelError(f"prediction: chunk_views must be positive, or 0 to choose; not {self.chunk_views}.")

    def views_per_chunk(self, view_size: tuple[int, int], device_type: str) -> int:
        """Views in one forward pass for views of a size, on a "cpu" or a "cuda" device."""
        if self.chunk_views:
            return self.chunk_views
        return max(1, min(_MAX_CHUNK_VIEWS, _CHUNK_PIXELS[device_type] // (view_size[0] * view_size[1])))

    def images_per_pass(self, num_views: int, image_size: tuple[int, int], device_type: str) -> int:
        """Images in one forward pass that scores all their views, on a "cpu" or a "cuda" device."""
        if self.chunk_views:
            return max(1, self.chunk_views // num_views)
        return max(1, _PASS_PIXELS[device_type] // (image_size[0] * image_size[1]))
