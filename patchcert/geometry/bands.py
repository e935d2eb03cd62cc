"""Bands: the views of column and row smoothing, which keep a full-height or full-width strip and wrap around."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from patchcert.errors import GeometryError
from patchcert.geometry.sizes import check_fits, positive_integer, size_pair, size_text
from patchcert.geometry.starts import GridViews, StartAxis


@dataclass(frozen=True, kw_only=True)
class BandViews(GridViews):
    """Every band of one width, by its first column (or row); bands that leave the image continue at its other side.

    Raises:
        GeometryError: a size is not positive, the band is wider than the image or the axis is unknown.

    Source: Levine & Feizi 2020, Theorem 2 (columns) and Appendix A (rows).
    """

    kind: ClassVar[str] = "band"

    image_size: tuple[int, int]
    """(height, width) of the image, in pixels."""

    width: int
    """Columns of a column band, or rows of a row band, in pixels."""

    axis: Literal["column", "row"] = "column"
    """Whether bands are columns (full height) or rows (full width)."""

    stride: int = 1
    """Pixels from one start to the next."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, "The image size"))
        object.__setattr__(self, "width", positive_integer(self.width, "The band width"))
        object.__setattr__(self, "stride", positive_integer(self.stride, "The stride"))
        if self.axis not in ("column", "row"):
            raise GeometryError(
                f"The band axis is {self.axis!r}, but only 'column' and 'row' exist.\n"
                "  Choose 'column' for full-height bands, 'row' for full-width ones."
            )
        height, width = self.image_size
        band = (height, self.width) if self.axis == "column" else (self.width, width)
        check_fits(band, self.image_size, f"The {self.axis} band")

    @property
    def row_axis(self) -> StartAxis:
        """Row intervals: all rows for column bands."""
        return self._axis(0, bands=self.axis == "row")

    @property
    def column_axis(self) -> StartAxis:
        """Column intervals: all columns for row bands."""
        return self._axis(1, bands=self.axis == "column")

    def _axis(self, axis: int, bands: bool) -> StartAxis:
        size = self.image_size[axis]
        if not bands:
            return StartAxis(size=size, length=size)
        return StartAxis(size=size, length=self.width, stride=self.stride, wraps=True)

    def describe(self) -> str:
        """Return the view set in a few words."""
        side = "width" if self.axis == "column" else "height"
        every = "" if self.stride == 1 else f" every {self.stride} pixels"
        return (
            f"{self.axis} bands of {side} {self.width}{every}, {self.num_views} views of {size_text(self.image_size)}"
        )
