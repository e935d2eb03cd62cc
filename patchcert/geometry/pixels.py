"""Random pixels: the views of sparse randomized ablation, too many to list; and the samples of them that vote."""

import math
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size, positive_integer, size_pair, size_text
from patchcert.geometry.view_sets import ViewSet

_BLOCK_PIXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class PixelViews(ViewSet):
    """Every choice of ``num_pixels`` pixels of the image.

    The set is far too large to list, so it offers draws and the probability of being affected, not an incidence. Its
    views have no numbers either: a view is named by the pixels that it retains, row-major numbers in [0, H * W).

    Raises:
        GeometryError: a size is not positive, or more pixels are kept than there are.

    Source: Levine & Feizi 2019 (sparse randomized ablation), as used by Levine & Feizi 2020, Table 2.
    """

    kind: ClassVar[str] = "pixel"

    image_size: tuple[int, int]
    """(height, width) of the image, in pixels."""

    num_pixels: int
    """Pixels that one view keeps."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, "The image size"))
        object.__setattr__(self, "num_pixels", positive_integer(self.num_pixels, "The number of kept pixels"))
        if self.num_pixels > self._image_pixels:
            raise GeometryError(
                f"Views of {self.num_pixels} pixels were asked for, but the image has {self._image_pixels}.\n"
                f"  Keep at most {self._image_pixels} pixels."
            )

    @property
    def _image_pixels(self) -> int:
        return self.image_size[0] * self.image_size[1]

    @property
    def num_views(self) -> int:
        """Number of views, V = C(H * W, num_pixels)."""
        return math.comb(self._image_pixels, self.num_pixels)

    def retained(self, view_indices: npt.ArrayLike) -> NoReturn:
        """Refuse: these views have no numbers."""
        raise _unlisted(self)

    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> NoReturn:
        """Refuse: these views cannot be listed."""
        raise _unlisted(self)

    def affected(self, patch: Patch) -> int:
        """Return the number of views that each placement of the patch affects (Delta), the same for all of them.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        patch.placements(self.image_size)
        return self.num_views - math.comb(self._image_pixels - patch.area, self.num_pixels)

    def draw(self, num_draws: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Draw views uniformly and independently.

        Args:
            num_draws: number of views.
            rng: source of randomness.

        Returns:
            Retained pixels, boolean, shape (num_draws, H, W).
        """
        first_pixels = np.zeros((num_draws, self._image_pixels), dtype=bool)
        first_pixels[:, : self.num_pixels] = True
        return rng.permuted(first_pixels, axis=1).reshape(num_draws, *self.image_size)

    def describe(self) -> str:
        """Return the view set in a few words."""
        return f"{self.num_pixels} random pixels of {size_text(self.image_size)}"


@dataclass(frozen=True, kw_only=True)
class SampledViews(ViewSet):
    """Views of a set that is too large to list, drawn uniformly and independently for each image.

    The samples are a function of the seed and of the image's row in its dataset alone, so that votes on them can be
    made in any order, resumed and repeated; a smaller ``num_samples`` draws the first of the same samples. Certificates
    over them are probabilistic (``certify_sampled``): which samples a patch affects differs from image to image.

    Raises:
        GeometryError: the set can be listed, a number is not positive, or the seed is negative.
    """

    kind: ClassVar[str] = "sampled"

    views: PixelViews
    """The set that samples are drawn from."""

    num_samples: int
    """Samples of each image."""

    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", positive_integer(self.num_samples, "The number of samples"))
        if not isinstance(self.views, PixelViews):
            raise GeometryError(
                f"Samples of {self.views.describe()} were asked for, but all of those can be listed.\n"
                "  Vote on all views; a study draws samples from their votes."
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise GeometryError(f"The seed of the samples is {self.seed!r}, but must be an integer of at least 0.")

    @property
    def image_size(self) -> Size:  # type: ignore[override]
        """(height, width) of the image, in pixels."""
        return self.views.image_size

    @property
    def num_views(self) -> int:
        """Number of samples of each image."""
        return self.num_samples

    def pixels(self, row: int) -> npt.NDArray[np.int32]:
        """Return the pixels that each sample of one image retains.

        Args:
            row: row of the image in its dataset, >= 0.

        Returns:
            Row-major pixel numbers in [0, H * W), distinct within a sample, int32, shape (num_samples, num_pixels).

        Source: Floyd's algorithm (Bentley & Floyd 1987) for each sample, over all samples at once.
        """
        num_image_pixels, num_kept = math.prod(self.image_size), self.views.num_pixels
        key = np.random.SeedSequence([self.seed, row]).generate_state(2, np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        pixels = np.empty((self.num_samples, num_kept), dtype=np.int32)
        step = max(1, _BLOCK_PIXELS // num_image_pixels)
        for start in range(0, self.num_samples, step):
            block = pixels[start : start + step]
            samples = np.arange(len(block))
            # One sample after the other in the stream: the first samples do not depend on how many follow.
            uniform = rng.random(block.shape)
            taken = np.zeros((len(block), num_image_pixels), dtype=bool)
            for number, last in enumerate(range(num_image_pixels - num_kept, num_image_pixels)):
                pixel = (uniform[:, number] * (last + 1)).astype(np.int32)
                block[:, number] = np.where(taken[samples, pixel], last, pixel)
                taken[samples, block[:, number]] = True
        return pixels

    def retained(self, view_indices: npt.ArrayLike) -> NoReturn:
        """Refuse: the samples differ from image to image."""
        raise _unlisted(self)

    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> NoReturn:
        """Refuse: the samples differ from image to image."""
        raise _unlisted(self)

    def affected(self, patch: Patch) -> int:
        """Return how many samples a placement affects in the mean, rounded up; each placement affects as many.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        return -(-self.views.affected(patch) * self.num_samples // self.views.num_views)

    def affected_probability(self, patch: Patch) -> float:
        """Return the probability that a sample is affected."""
        return self.views.affected_probability(patch)

    def describe(self) -> str:
        """Return the view set in a few words."""
        return f"{self.num_samples:,} samples of {self.views.describe()}"


def _unlisted(views: ViewSet) -> GeometryError:
    return GeometryError(
        f"The affected views of {views.describe()} were asked for, but they cannot be listed.\n"
        "  Certify sampled votes: certify_sampled with affected_probability(patch), or --study.certificates sampled."
    )
