"""Where pixels are: what a patch may cover, what a view retains, and which views a patch can touch."""

from typing import Any

from patchcert.errors import GeometryError
from patchcert.geometry.bands import BandViews
from patchcert.geometry.blocks import BlockViews
from patchcert.geometry.cells import CellViews
from patchcert.geometry.crops import CropViews
from patchcert.geometry.drawn import DrawnViews
from patchcert.geometry.footprint_sets import patches_of_area, rectangles_up_to
from patchcert.geometry.patches import Patch
from patchcert.geometry.pixels import PixelViews, SampledViews
from patchcert.geometry.starts import GridViews
from patchcert.geometry.view_sets import ViewSet

VIEW_SETS: dict[str, type[ViewSet]] = {
    views.kind: views for views in (CropViews, BandViews, BlockViews, CellViews, DrawnViews, PixelViews, SampledViews)
}

__all__ = [
    "VIEW_SETS",
    "BandViews",
    "BlockViews",
    "CellViews",
    "CropViews",
    "DrawnViews",
    "GridViews",
    "Patch",
    "PixelViews",
    "SampledViews",
    "ViewSet",
    "patches_of_area",
    "rectangles_up_to",
    "view_set_from_identity",
]


def view_set_from_identity(identity: dict[str, Any]) -> ViewSet:
    """Make the view set whose ``identity()`` this is.

    Args:
        identity: "kind" and every field, as JSON values.

    Raises:
        GeometryError: the kind is unknown, or the fields do not make such a view set.
    """
    fields = dict(identity)
    kind = fields.pop("kind", None)
    if kind not in VIEW_SETS:
        raise GeometryError(
            f"The view set has the kind {kind!r}, but only {', '.join(sorted(VIEW_SETS))} exist.\n"
            "  Read it with the version of patchcert that wrote it."
        )
    try:
        return VIEW_SETS[kind](**{name: _field_value(value) for name, value in fields.items()})
    except TypeError as error:
        raise GeometryError(
            f"The view set of kind {kind!r} has the fields {sorted(fields)}, which do not fit: {error}.\n"
            "  Read it with the version of patchcert that wrote it."
        ) from None


def _field_value(value: Any) -> Any:
    if isinstance(value, dict):
        return view_set_from_identity(value)
    return tuple(value) if isinstance(value, list) else value
