"""Sizes as the user writes them in, checked (height, width) pairs of Python integers out."""

import operator
from collections.abc import Sequence

from patchcert.errors import GeometryError

Size = tuple[int, int]


def positive_integer(value: object, what: str) -> int:
    """Return ``value`` as a Python integer of at least 1.

    Raises:
        GeometryError: ``value`` is no integer or smaller than 1; the message starts with ``what``.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise GeometryError(f"{what} is {value!r}, but must be an integer.\n  Give a whole number of pixels.") from None
    if isinstance(value, bool) or number < 1:
        raise GeometryError(f"{what} is {value!r}, but must be at least 1.\n  Give a whole number of pixels.")
    return number


def size_pair(value: int | Sequence[int], what: str) -> Size:
    """Return one number as a square, or (height, width), as two Python integers of at least 1.

    Raises:
        GeometryError: a part is no integer, smaller than 1, or there are not one or two of them.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise GeometryError(f"{what} has {len(value)} parts, but must have 2.\n  Give (height, width).")
        height, width = value
    else:
        height = width = value
    return positive_integer(height, f"{what} (height)"), positive_integer(width, f"{what} (width)")


def size_text(size: Size) -> str:
    """Return a size as "height x width" without spaces, the form used in every label and message."""
    return f"{size[0]}x{size[1]}"


def check_fits(size: Size, image_size: Size, what: str) -> None:
    """Raise GeometryError unless ``size`` fits inside ``image_size`` on both axes."""
    if size[0] > image_size[0] or size[1] > image_size[1]:
        raise GeometryError(
            f"{what} is {size_text(size)}, but the image is only {size_text(image_size)}.\n"
            f"  Choose at most {size_text(image_size)}."
        )
