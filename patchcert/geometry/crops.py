"""Crops: the views of randomized cropping, cut out of the image inside it or across its seam."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from patchcert.errors import GeometryError
from patchcert.geometry.sizes import Size, check_fits, size_pair, size_text
from patchcert.geometry.starts import GridViews, StartAxis


@dataclass(frozen=True, kw_only=True)
class CropViews(GridViews):
    """Every crop of one size, row-major by its upper-left corner.

    Raises:
        GeometryError: a size is not positive, the crop is larger than the image or the domain is unknown.

    Source: the randomized-cropping paper, Eq. 2-3 (domain ``valid``); its text also speaks of as many crops as pixels
        (domain ``wrap``).
    """

    kind: ClassVar[str] = "crop"

    image_size: tuple[int, int]
    """(height, width) of the image, in pixels."""

    crop_size: int | tuple[int, int]
    """(height, width) of a crop, in pixels; one number means a square."""

    domain: Literal["valid", "wrap"] = "valid"
    """Whether crops lie inside the image, or start at every pixel and continue across the seam."""

    stride: int | tuple[int, int] = 1
    """Pixels from one start to the next, down and to the right."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, "The image size"))
        object.__setattr__(self, "crop_size", size_pair(self.crop_size, "The crop size"))
        object.__setattr__(self, "stride", size_pair(self.stride, "The stride"))
        check_fits(self.view_size, self.image_size, "The crop")
        if self.domain not in ("valid", "wrap"):
            raise GeometryError(
                f"The crop domain is {self.domain!r}, but only 'valid' and 'wrap' exist.\n"
                "  Choose 'valid' for crops inside the image, 'wrap' for crops across its seam."
            )

    @property
    def view_size(self) -> Size:
        """(height, width) of a crop, in pixels."""
        return size_pair(self.crop_size, "The crop size")

    @property
    def row_axis(self) -> StartAxis:
        """Row intervals of the crops."""
        return self._axis(0)

    @property
    def column_axis(self) -> StartAxis:
        """Column intervals of the crops."""
        return self._axis(1)

    def _axis(self, axis: int) -> StartAxis:
        return StartAxis(
            size=self.image_size[axis],
            length=self.view_size[axis],
            stride=size_pair(self.stride, "The stride")[axis],
            wraps=self.domain == "wrap",
        )

    def describe(self) -> str:
        """Return the view set in a few words."""
        stride = size_pair(self.stride, "The stride")
        across = " across the seam" if self.domain == "wrap" else ""
        every = "" if stride == (1, 1) else f" every {size_text(stride)} pixels"
        return (
            f"{size_text(self.view_size)} crops{across}{every}, {self.num_views} views of {size_text(self.view_size)}"
        )
