"""What the attacker may cover: a footprint of pixels that may lie anywhere inside the image."""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.sizes import Size, check_fits, positive_integer, size_pair, size_text

# Sides are rounded up from a third of a pixel: the one rule found that yields every size the field has published.
ROUND_UP_FROM = 1 / 3

_NUMBER = r"\d+(?:\.\d+)?"
_LONGEST_TEXT = 100
_PATCH_TEXT = re.compile(
    rf"(?:(?P<height>\d+)x(?P<width>\d+)(?:@(?P<degrees>-?{_NUMBER})deg(?P<exact>-exact)?)?"
    rf"|(?P<percent>{_NUMBER})%(?:@(?P<tall>{_NUMBER}):(?P<wide>{_NUMBER}))?)"
)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The footprint of an adversarial patch; a threat model is this footprint at every place inside the image.

    Patches are equal when they cover the same pixels of boxes of the same size, whatever they were made from.

    Raises:
        GeometryError: a side is not a positive integer, or the footprint has another shape or no pixel.
    """

    height: int = 5
    """Rows of the patch's box, in pixels."""

    width: int = 5
    """Columns of the patch's box, in pixels."""

    footprint: tuple[tuple[bool, ...], ...] | None = None
    """Pixels of the box that the patch covers (height rows of width flags, or a boolean array); None: all."""

    name: str = field(default="", compare=False)
    """What a footprint that is no rectangle is called in results; empty: named by its pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "height", positive_integer(self.height, "The patch height"))
        object.__setattr__(self, "width", positive_integer(self.width, "The patch width"))
        if self.footprint is None:
            return
        mask = np.asarray(self.footprint)
        if mask.shape != (self.height, self.width) or mask.dtype != np.bool_:
            raise GeometryError(
                f"The footprint is an array of shape {mask.shape} and type {mask.dtype}, but the patch is "
                f"{self.height}x{self.width}.\n  Give a boolean array of shape ({self.height}, {self.width})."
            )
        if not mask.any():
            raise GeometryError(
                f"The footprint covers 0 of {mask.size} pixels, but a patch covers at least 1.\n"
                "  Mark the pixels that the attacker controls."
            )
        # A full box is the plain rectangle, so that both are equal and share every cached result.
        rows = None if mask.all() else tuple(tuple(bool(pixel) for pixel in row) for row in mask)
        object.__setattr__(self, "footprint", rows)

    @classmethod
    def from_area(cls, fraction: float, image_size: Size, aspect_ratio: float = 1.0) -> "Patch":
        """Make the rectangle that covers about ``fraction`` of the image.

        The exact sides are sqrt(pixels * aspect_ratio) and sqrt(pixels / aspect_ratio); each is rounded up from a
        third of a pixel on, else down, and is at least 1.

        Args:
            fraction: share of the image's pixels, in (0, 1].
            image_size: (height, width) of the image, in pixels.
            aspect_ratio: height divided by width, > 0.

        Raises:
            GeometryError: a value is out of range, or the rectangle does not fit inside the image.

        Source: published sizes of the randomized-cropping paper (Table 4: 8x3, 12x2, ... for 2.4 % of 32x32),
            PatchGuard (23x23, 32x32, 39x39 for 1, 2, 3 % of 224x224), Levine & Feizi 2020 (42x42 for 2 % of 299x299).
        Deviation: no paper states its rule, and neither rounding to nearest nor rounding up gives all of their sizes.
        """
        image_size = size_pair(image_size, "The image size")
        if not 0 < fraction <= 1:
            raise GeometryError(
                f"The patch covers the fraction {fraction} of the image, but it must lie in (0, 1].\n"
                "  Give a fraction such as 0.02 for 2 %."
            )
        if not (aspect_ratio > 0 and math.isfinite(aspect_ratio)):
            raise GeometryError(
                f"The aspect ratio is {aspect_ratio}, but must be positive and finite.\n"
                "  Give height divided by width, such as 6.0 for 12x2."
            )
        pixels = fraction * image_size[0] * image_size[1]
        patch = cls(height=_side(math.sqrt(pixels * aspect_ratio)), width=_side(math.sqrt(pixels / aspect_ratio)))
        check_fits(
            (patch.height, patch.width), image_size, f"A patch of {fraction:.4g} with aspect ratio {aspect_ratio:.4g}"
        )
        return patch

    @classmethod
    def rotated(
        cls,
        height: int,
        width: int,
        degrees: float,
        footprint: Literal["bounding_box", "exact"] = "bounding_box",
    ) -> "Patch":
        """Turn a height x width rectangle counter-clockwise by ``degrees``.

        The box has the extent of the turned rectangle, rounded to the nearest pixel (5x5 at 45 degrees: 7.07, so
        7x7). ``exact`` keeps the pixels of that box of which the turned rectangle covers any part when its centre
        lies up to half a pixel, on both axes, from the centre of the box.

        Args:
            height: rows of the rectangle before turning, >= 1.
            width: columns of the rectangle before turning, >= 1.
            degrees: angle, finite, counter-clockwise as displayed with row 0 on top.
            footprint: all pixels of the box, or only those that the turned rectangle can touch.

        Raises:
            GeometryError: a side is not a positive integer, the angle is not finite or the footprint unknown.

        Source: the randomized-cropping paper, Table 4 (the bounding box); the exact footprint is ours.
        """
        height, width = size_pair((height, width), "The patch size")
        if not math.isfinite(degrees):
            raise GeometryError(f"The patch is turned by {degrees} degrees.\n  Give a finite angle such as 45.")
        if footprint not in ("bounding_box", "exact"):
            raise GeometryError(
                f"The rotated footprint is {footprint!r}, but only 'bounding_box' and 'exact' exist.\n"
                "  Choose one of the two."
            )
        angle = math.radians(degrees)
        sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
        box_height = max(1, math.floor(height * cosine + width * sine + 0.5))
        box_width = max(1, math.floor(width * cosine + height * sine + 0.5))
        if footprint == "bounding_box":
            return cls(height=box_height, width=box_width)

        # Two convex shapes are apart iff an axis normal to an edge separates them. The second shape is the pixel,
        # grown by the half pixel that the centre may move: a square of half side 1. The axes of the box itself
        # separate no pixel of the box, whose sides are the rectangle's extent within half a pixel.
        rows = np.arange(box_height)[:, None] - (box_height - 1) / 2
        columns = np.arange(box_width)[None, :] - (box_width - 1) / 2
        along_width = np.abs(columns * math.cos(angle) - rows * math.sin(angle))
        along_height = np.abs(columns * math.sin(angle) + rows * math.cos(angle))
        reach = sine + cosine
        tolerance = 1e-9
        mask = (along_width < width / 2 + reach - tolerance) & (along_height < height / 2 + reach - tolerance)
        return cls(
            height=box_height,
            width=box_width,
            footprint=mask,  # type: ignore[arg-type]
            name=f"{height}x{width}@{degrees:g}deg-exact",
        )

    @classmethod
    def parse(cls, text: str, image_size: Size) -> "Patch":
        """Read a patch as written on the command line.

        Args:
            text: "5x5" (height x width), "2%", "2.4%@6:1" (area and height:width), "5x5@45deg" (box of the turned
                rectangle) or "5x5@45deg-exact" (its exact footprint); at most 100 letters.
            image_size: (height, width) of the image, in pixels.

        Raises:
            GeometryError: the text is none of these forms, or the patch does not fit inside the image.
        """
        match = _PATCH_TEXT.fullmatch(text.strip()) if len(text) <= _LONGEST_TEXT else None
        if match is None:
            shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
            raise GeometryError(
                f"The patch {shown!r} is none of the known forms.\n"
                "  Write 5x5, 2%, 2.4%@6:1 (height:width), 5x5@45deg or 5x5@45deg-exact."
            )
        if match["percent"] is not None:
            if float(match["wide"] or 1) == 0:
                raise GeometryError(f"The patch {text!r} has the width 0.\n  Write height:width, such as 2.4%@6:1.")
            ratio = float(match["tall"] or 1) / float(match["wide"] or 1)
            return cls.from_area(float(match["percent"]) / 100, image_size, ratio)
        height, width = int(match["height"]), int(match["width"])
        degrees = float(match["degrees"] or 0)
        # Whether the box fits is known before its pixels are listed.
        box = cls(height=height, width=width) if match["degrees"] is None else cls.rotated(height, width, degrees)
        check_fits(box.size, size_pair(image_size, "The image size"), f"The patch {text.strip()}")
        return cls.rotated(height, width, degrees, "exact") if match["exact"] else box

    @property
    def size(self) -> Size:
        """(height, width) of the box, in pixels."""
        return self.height, self.width

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Pixels that the patch covers, boolean, shape (height, width)."""
        return np.ones(self.size, dtype=bool) if self.footprint is None else np.array(self.footprint)

    @property
    def area(self) -> int:
        """Number of pixels that the patch covers."""
        return int(self.mask.sum())

    @property
    def label(self) -> str:
        """Short name, the same for equal rectangles: "5x5"; other footprints carry their own name or digest."""
        if self.footprint is None:
            return size_text(self.size)
        if self.name:
            return self.name
        digest = hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()[:6]
        return f"{size_text(self.size)}-{self.area}px-{digest}"

    def area_fraction(self, image_size: Size) -> float:
        """Return the share of the image's pixels that the patch covers."""
        height, width = size_pair(image_size, "The image size")
        return self.area / (height * width)

    def placements(self, image_size: Size) -> Size:
        """Return how many (rows, columns) of placements the box has inside the image.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        image_size = size_pair(image_size, "The image size")
        check_fits(self.size, image_size, f"The patch {self.label}")
        return image_size[0] - self.height + 1, image_size[1] - self.width + 1


def _side(exact: float) -> int:
    whole = math.floor(exact)
    # The small allowance keeps a side that is a third above a whole number in exact arithmetic on the upper side.
    return max(1, whole + (exact - whole >= ROUND_UP_FROM - 1e-9))
