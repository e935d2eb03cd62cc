"""How views are scored. Settings only, no torch."""

import dataclasses
from typing import Literal, get_args

from patchcert.checks import check_numbers
from patchcert.errors import ModelError
from patchcert.geometry import PixelViews, SampledViews, ViewSet

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Numbers in the largest feature map of one forward pass: a GPU wants much work at once, a CPU core is fastest when a
# pass stays in its cache.
_PASS_FLOATS = {"cuda": 2**28, "cpu": 3 * 2**19}
_MAX_CHUNK_VIEWS = 2048
# One pass over an image needs hundreds of channels at each of its pixels: less than 2 KiB a pixel.
_PASS_PIXELS = {"cuda": 32 * 224 * 224, "cpu": 16 * 32 * 32}
# What the layers that views share may keep of one image.
_SHARED_FLOATS = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """Settings of the scoring pass."""

    score_floor: float = 0.1
    """Scores below it are not stored; thresholds from here up are answered exactly. 0: store top classes only."""
    precision: Precision = "float32"
    """Arithmetic of the network. tf32 (GPUs only) and bfloat16 may change votes: part of the table's identity."""
    chunk_views: int = 0
    """Views in one forward pass (the last ones are filled up); 0: by the size of the network's features. Bounds the
    memory needed. Networks that score all views of an image in one pass get as many whole images as fit, or one."""
    shortcuts: bool = True
    """On CPUs in float32: compute what views share once and convolve with fewer multiplications. Same scores up to
    rounding; --no-shortcuts runs the network as it is written."""
    compile: bool = False
    """Hand the network to torch.compile instead of the shortcuts; needs a C++ compiler (CPU) or Triton (GPU)."""
    num_samples: int = 0
    """Views of each image that are drawn and scored where there are too many to list (random pixels); 0: all views."""
    sample_seed: int = 0
    """Of that draw; both are part of the table's identity."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.precision not in PRECISIONS:
            raise ModelError(f"prediction: precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}.")
        if not 0 <= self.score_floor <= 1:
            raise ModelError(f"prediction: score_floor is a softmax score in [0, 1], not {self.score_floor}.")
        if self.chunk_views < 0:
            raise ModelError(f"prediction: chunk_views must be positive, or 0 to choose; not {self.chunk_views}.")

        if self.num_samples < 0 or self.sample_seed < 0:
            raise ModelError(
                f"prediction: num_samples and sample_seed must be >= 0, not {self.num_samples} and {self.sample_seed}."
            )
        if self.sample_seed and not self.num_samples:
            raise ModelError(
                f"prediction: sample_seed {self.sample_seed} has no effect when num_samples is 0: nothing is drawn."
            )
        check_numbers(self, "prediction", ModelError)

    def voted_views(self, views: ViewSet) -> ViewSet:
        """The views that are scored and voted on: all of them, or samples where they are too many to list.

        Args:
            views: view set of the base classifier.

        Raises:
            ModelError: no number of samples for a set that needs it, or one for a set whose views are all scored.
        """
        if isinstance(views, PixelViews) and self.num_samples:
            return SampledViews(views=views, num_samples=self.num_samples, seed=self.sample_seed)
        if isinstance(views, PixelViews):
            raise ModelError(
                f"prediction: there are too many choices of {views.describe()} to score them all, but num_samples is "
                "0.\n  Set --prediction.num-samples 11000"
            )
        if self.num_samples:
            raise ModelError(
                f"prediction: all of {views.describe()} are scored, but num_samples is {self.num_samples}.\n"
                "  Leave it at 0; a study draws samples from the votes of all views."
            )
        return views

    def views_per_chunk(self, floats_per_view: int, device_type: str) -> int:
        """Views in one forward pass, on a "cpu" or a "cuda" device.

        A function of settings, network and kind of device alone, never of a clock or of free memory: every worker of
        a table takes the same size, and so do the runs before and after a kill.

        Args:
            floats_per_view: numbers in the largest feature map of one view.
            device_type: kind of device.
        """
        return self.chunk_views or max(1, min(_MAX_CHUNK_VIEWS, _PASS_FLOATS[device_type] // floats_per_view))

    def shared_floats(self, floats_per_view: int) -> int:
        """Most numbers that layers which views share may keep of one image: no more than a chunk where one is set."""
        return self.chunk_views * floats_per_view or _SHARED_FLOATS

    def images_per_pass(self, num_views: int, image_size: tuple[int, int], device_type: str) -> int:
        """Images in one forward pass that scores all their views, on a "cpu" or a "cuda" device."""
        if self.chunk_views:
            return max(1, self.chunk_views // num_views)
        return max(1, _PASS_PIXELS[device_type] // (image_size[0] * image_size[1]))
