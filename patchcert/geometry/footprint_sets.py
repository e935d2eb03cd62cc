"""Threat models of several footprints: an area in, every patch of that area that the attacker may use out."""

from collections.abc import Sequence
from typing import Literal

from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size, positive_integer, size_pair


def patches_of_area(
    fraction: float,
    image_size: Size,
    *,
    aspect_ratios: Sequence[float] = (1.0,),
    degrees: Sequence[float] = (0.0,),
    footprint: Literal["bounding_box", "exact"] = "exact",
) -> list[Patch]:
    """Return the rectangles of about one area in every given shape and turn, each footprint once.

    Args:
        fraction: share of the image's pixels, in (0, 1].
        image_size: (height, width) of the image, in pixels.
        aspect_ratios: heights divided by widths before turning, > 0.
        degrees: angles, counter-clockwise.
        footprint: whether turned rectangles count with their exact footprint or with their bounding box.

    Raises:
        GeometryError: a value is out of range, or a rectangle does not fit inside the image.

    Source: the randomized-cropping paper, Table 4 (one row per shape; its "worst case" is the minimum over rows, which
        is larger than the share of images certified against every shape).
    """
    upright = [Patch.from_area(fraction, image_size, ratio) for ratio in aspect_ratios]
    turned = [Patch.rotated(patch.height, patch.width, angle, footprint) for patch in upright for angle in degrees]
    for patch in turned:
        patch.placements(image_size)
    return list(dict.fromkeys(turned))


def rectangles_up_to(area: int, image_size: Size) -> list[Patch]:
    """Return the rectangles of at most ``area`` pixels that are contained in no other one, tallest last.

    A prediction that holds against these holds against every rectangle of at most that area: a rectangle at any place
    lies inside a place of one that contains it.

    Args:
        area: most pixels that the patch covers, >= 1.
        image_size: (height, width) of the image, in pixels.

    Raises:
        GeometryError: the area or a size is not positive.
    """
    area = positive_integer(area, "The patch area")
    image_height, image_width = size_pair(image_size, "The image size")
    widths = {height: min(image_width, area // height) for height in range(1, min(image_height, area) + 1)}
    tallest = {width: height for height, width in widths.items()}
    return sorted((Patch(height=h, width=w) for w, h in tallest.items()), key=lambda patch: patch.height)
