"""What every view set can tell: how many views there are, what they retain, which of them a patch can touch."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.affected import AffectedViews, ListedViews
from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size

# Fields that say where views start, not what they are.
_OF_STARTS = {"stride", "domain"}


class ViewSet(ABC):
    """All views of an image, in a fixed order; concrete sets are frozen dataclasses, equal by value.

    A view *retains* a set of pixels. It is *affected* by a patch at a placement when a retained pixel lies in the
    patch. Placements are the positions of the patch's box inside the image, in row-major order.
    """

    kind: ClassVar[str]
    image_size: Size

    @property
    @abstractmethod
    def num_views(self) -> int:
        """Number of views, V."""

    @property
    def view_size(self) -> Size:
        """(height, width) of the tensor that the base classifier gets, in pixels."""
        return self.image_size

    @abstractmethod
    def retained(self, view_indices: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return the pixels that the given views retain, boolean, shape (len(view_indices), H, W)."""

    @abstractmethod
    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return which views each placement affects, boolean, shape (P placements in row-major order, V).

        Dense: use it for small geometries; certificates use ``affected_views``, which never builds it for grids.

        Args:
            patch: the footprint.
            view_indices: only these views, in this order; None: all.
            only_undominated: leave out placements that a neighbouring one makes superfluous (its affected views contain
                theirs), so that the rows are no longer all P placements.

        Raises:
            GeometryError: the patch is larger than the image, or an index is out of range.
        """

    def affected_counts(self, patch: Patch) -> npt.NDArray[np.int64]:
        """Return the number of views that each placement affects, int64, shape (P,), row-major.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        return self.incidence(patch).sum(axis=1, dtype=np.int64)

    def affected(self, patch: Patch) -> int:
        """Return the most views that one placement affects (Delta), by enumeration of all placements.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        return int(self.affected_counts(patch).max())

    def affected_probability(self, patch: Patch) -> float:
        """Return the greatest probability, over placements, that a view drawn uniformly is affected."""
        return self.affected(patch) / self.num_views

    def affected_views(self, patch: Patch, *, every_placement: bool = False) -> AffectedViews:
        """Return the affected views of every placement that matters, in the form that certificates sum over.

        Placements whose affected views are a subset of another placement's are left out where that is seen cheaply.

        Args:
            patch: the footprint.
            every_placement: keep all P placements, in row-major order.

        Raises:
            GeometryError: the patch is larger than the image.
        """
        return _affected_views(self, patch, not every_placement)

    def _make_affected_views(self, patch: Patch, only_undominated: bool) -> AffectedViews:
        return ListedViews(self.incidence(patch, only_undominated=only_undominated), distinct=only_undominated)

    def identity(self) -> dict[str, Any]:
        """Return kind and every field as JSON values; ``view_set_from_identity`` makes an equal view set of it."""
        fields = {f.name: _json_value(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind, **fields}

    def differs_only_in_starts(self, other: "ViewSet") -> bool:
        """Return whether a view of one set is a view of the other but for where it lies: same kind, images and size.

        A base classifier of one of them can read the views of the other.
        """
        one, another = self.identity(), other.identity()
        return all(one.get(key) == another.get(key) for key in (one.keys() | another.keys()) - _OF_STARTS)

    @abstractmethod
    def describe(self) -> str:
        """Return the view set in a few words for tables and messages."""


def check_indices(view_indices: npt.ArrayLike, num_views: int) -> npt.NDArray[np.int64]:
    """Return view indices as int64, shape (n,).

    Raises:
        GeometryError: an index is not in [0, num_views).
    """
    indices = np.atleast_1d(np.asarray(view_indices)).astype(np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= num_views):
        raise GeometryError(
            f"View indices from {indices.min()} to {indices.max()} were asked for, but there are {num_views} views.\n"
            f"  Use indices from 0 to {num_views - 1}."
        )
    return indices


@lru_cache(maxsize=256)
def _affected_views(views: ViewSet, patch: Patch, only_undominated: bool) -> AffectedViews:
    return views._make_affected_views(patch, only_undominated)


def _json_value(value: Any) -> Any:
    if isinstance(value, ViewSet):
        return value.identity()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json_value(part) for part in value]
    return value
