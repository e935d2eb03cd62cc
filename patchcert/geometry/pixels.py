"""Random pixels: the views of sparse randomized ablation, too many to list, sampled instead."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size, positive_integer, size_pair, size_text


@dataclass(frozen=True, kw_only=True)
class PixelViews:
    """Every choice of ``num_pixels`` pixels of the image.

    The set is far too large to list, so it offers draws and the probability of being affected, not an incidence.

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

    @property
    def view_size(self) -> Size:
        """(height, width) of the tensor that the base classifier gets, in pixels."""
        return self.image_size

    def affected(self, patch: Patch) -> int:
        """Return the number of views that each placement of the patch affects (Delta), the same for all of them.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        patch.placements(self.image_size)
        return self.num_views - math.comb(self._image_pixels - patch.area, self.num_pixels)

    def affected_probability(self, patch: Patch) -> float:
        """Return the probability that a view drawn uniformly is affected, 1 - C(HW - area, k) / C(HW, k)."""
        return self.affected(patch) / self.num_views

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

    def identity(self) -> dict[str, Any]:
        """Return kind and every field as JSON values."""
        return {"kind": self.kind, "image_size": list(self.image_size), "num_pixels": self.num_pixels}

    def describe(self) -> str:
        """Return the view set in a few words."""
        return f"{self.num_pixels} random pixels of {size_text(self.image_size)}"
