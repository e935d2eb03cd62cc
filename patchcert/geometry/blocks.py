"""Blocks: the views of block smoothing, which keep one rectangle of the image and wrap around."""

from dataclasses import dataclass
from typing import ClassVar

from patchcert.geometry.sizes import Size, check_fits, size_pair, size_text
from patchcert.geometry.starts import GridViews, StartAxis


@dataclass(frozen=True, kw_only=True)
class BlockViews(GridViews):
    """Every block of one size, row-major by its upper-left corner; blocks continue across the seams of the image.

    Raises:
        GeometryError: a size is not positive, or the block is larger than the image.

    Source: Levine & Feizi 2020, Theorem 1.
    """

    kind: ClassVar[str] = "block"

    image_size: tuple[int, int]
    """(height, width) of the image, in pixels."""

    block_size: int | tuple[int, int]
    """(height, width) of a block, in pixels; one number means a square."""

    stride: int | tuple[int, int] = 1
    """Pixels from one start to the next, down and to the right."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, "The image size"))
        object.__setattr__(self, "block_size", size_pair(self.block_size, "The block size"))
        object.__setattr__(self, "stride", size_pair(self.stride, "The stride"))
        check_fits(self._block, self.image_size, "The block")

    @property
    def _block(self) -> Size:
        return size_pair(self.block_size, "The block size")

    @property
    def row_axis(self) -> StartAxis:
        """Row intervals of the blocks."""
        return self._axis(0)

    @property
    def column_axis(self) -> StartAxis:
        """Column intervals of the blocks."""
        return self._axis(1)

    def _axis(self, axis: int) -> StartAxis:
        stride = size_pair(self.stride, "The stride")[axis]
        return StartAxis(size=self.image_size[axis], length=self._block[axis], stride=stride, wraps=True)

    def describe(self) -> str:
        """Return the view set in a few words."""
        stride = size_pair(self.stride, "The stride")
        every = "" if stride == (1, 1) else f" every {size_text(stride)} pixels"
        return f"blocks of {size_text(self._block)}{every}, {self.num_views} views of {size_text(self.image_size)}"
