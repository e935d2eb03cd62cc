"""Grids of start positions: which starts a patch touches on each axis, for crops, bands and blocks alike."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchcert.geometry.affected import AffectedViews, BoolArray, IntArray, grid_rectangles, undominated
from patchcert.geometry.patches import Patch
from patchcert.geometry.view_sets import ViewSet, check_indices


@dataclass(frozen=True, kw_only=True)
class StartAxis:
    """Intervals of one length that start every ``stride`` pixels along one axis of the image."""

    size: int
    """Pixels of the image along this axis."""

    length: int
    """Pixels of one interval."""

    stride: int = 1
    """Pixels from one start to the next."""

    wraps: bool = False
    """Whether intervals that leave the image continue at its other end (then every start inside it is allowed)."""

    @cached_property
    def starts(self) -> IntArray:
        """Start positions in pixels, increasing, int64, shape (S,)."""
        return np.arange(0, self.size if self.wraps else self.size - self.length + 1, self.stride)

    @cached_property
    def indices(self) -> IntArray:
        """Pixels of each interval, wrapped modulo the image, int64, shape (S, length)."""
        return (self.starts[:, None] + np.arange(self.length)) % self.size

    def touched(self, first_P: IntArray, extent: int) -> BoolArray:
        """Return which intervals meet the ``extent`` pixels from each ``first_P`` on, boolean, shape (P, S).

        Two cyclic intervals meet iff one of them contains the beginning of the other; when neither wraps, neither
        distance can be small by way of the seam.
        """
        distance_PS = self.starts - first_P[:, None]
        return ((distance_PS % self.size) < extent) | ((-distance_PS % self.size) < self.length)


class GridViews(ViewSet):
    """A view set whose views are the products of row intervals and column intervals, row-major by start."""

    @property
    @abstractmethod
    def row_axis(self) -> StartAxis:
        """Row intervals."""

    @property
    @abstractmethod
    def column_axis(self) -> StartAxis:
        """Column intervals."""

    @property
    def num_views(self) -> int:
        """Number of views, V = start rows x start columns."""
        return len(self.row_axis.starts) * len(self.column_axis.starts)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(row, column) where each view starts, in pixels, int64, shape (V, 2)."""
        grid = np.meshgrid(self.row_axis.starts, self.column_axis.starts, indexing="ij")
        return np.stack(grid, axis=-1).reshape(-1, 2)

    @property
    def row_indices(self) -> npt.NDArray[np.int64]:
        """Rows that each start row retains, int64, shape (R, rows); view v belongs to start row v // C."""
        return self.row_axis.indices

    @property
    def column_indices(self) -> npt.NDArray[np.int64]:
        """Columns that each start column retains, int64, shape (C, columns); view v belongs to start column v % C."""
        return self.column_axis.indices

    def retained(self, view_indices: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return the pixels that the given views retain, boolean, shape (len(view_indices), H, W)."""
        rows, columns = np.divmod(check_indices(view_indices, self.num_views), len(self.column_axis.starts))
        retained_rows = np.zeros((len(rows), self.image_size[0], 1), dtype=bool)
        retained_columns = np.zeros((len(rows), 1, self.image_size[1]), dtype=bool)
        np.put_along_axis(retained_rows, self.row_indices[rows][:, :, None], True, axis=1)
        np.put_along_axis(retained_columns, self.column_indices[columns][:, None, :], True, axis=2)
        return retained_rows & retained_columns

    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return which views each placement affects, boolean, shape (P, V); dense, see ``ViewSet``."""
        pattern_QR, touch_UPC = self._touched(patch, only_undominated)
        indices = np.arange(self.num_views) if view_indices is None else check_indices(view_indices, self.num_views)
        rows, columns = np.divmod(indices, touch_UPC.shape[2])
        touched_QVP = touch_UPC[pattern_QR[:, rows], :, columns]
        return touched_QVP.transpose(0, 2, 1).reshape(-1, len(indices))

    def affected_counts(self, patch: Patch) -> npt.NDArray[np.int64]:
        """Return the number of views that each placement affects, int64, shape (P,), row-major."""
        pattern_QR, touch_UPC = self._touched(patch)
        return touch_UPC.sum(axis=2, dtype=np.int64)[pattern_QR].sum(axis=1).ravel()

    def _make_affected_views(self, patch: Patch, only_undominated: bool) -> AffectedViews:
        pattern_QR, touch_UPC = self._touched(patch, only_undominated)
        return grid_rectangles(pattern_QR, touch_UPC, (self.row_axis.wraps, self.column_axis.wraps))

    def _touched(self, patch: Patch, only_undominated: bool = False) -> tuple[IntArray, BoolArray]:
        """Return the pattern of columns hit at each start row, and what each pattern touches (see grid_rectangles)."""
        num_rows, num_columns = patch.placements(self.image_size)
        placement_rows, placement_columns = np.arange(num_rows), np.arange(num_columns)

        # Equal neighbouring rows of the footprint act as one: a rectangle is a single group.
        group_first, group_masks = _groups_of_equal_rows(patch.mask)
        group_end = np.append(group_first[1:], patch.height)
        seen_GQR = np.stack(
            [
                self.row_axis.touched(placement_rows + first, end - first)
                for first, end, mask in zip(group_first, group_end, group_masks, strict=True)
                if mask.any()
            ]
        )
        group_masks = group_masks[group_masks.any(axis=1)]
        if only_undominated:
            seen_GQR = seen_GQR[:, undominated(seen_GQR.transpose(0, 2, 1).reshape(-1, num_rows))]

        # A start row that sees several groups is hit by the union of their columns.
        num_groups, num_rows, num_start_rows = seen_GQR.shape
        seen_groups, pattern = _unique_rows(seen_GQR.reshape(num_groups, -1).T)
        union_UW = seen_groups.astype(np.float32) @ group_masks.astype(np.float32) > 0
        union_UW, merged = _unique_rows(np.concatenate([np.zeros((1, patch.width), dtype=bool), union_UW]))
        pattern_QR = merged[1:][pattern].reshape(num_rows, num_start_rows)

        touch_UPC = np.zeros((len(union_UW), num_columns, len(self.column_axis.starts)), dtype=bool)
        for touch_PC, columns in zip(touch_UPC, union_UW, strict=True):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], columns, [False]])))
            for first, end in edges.reshape(-1, 2):
                touch_PC |= self.column_axis.touched(placement_columns + first, end - first)
        if only_undominated:
            touch_UPC = touch_UPC[:, undominated(touch_UPC.transpose(0, 2, 1).reshape(-1, num_columns))]
        return pattern_QR, touch_UPC


def _groups_of_equal_rows(mask: BoolArray) -> tuple[IntArray, BoolArray]:
    """Return where runs of equal rows begin, and one row of each run."""
    first = np.flatnonzero(np.append(True, (mask[1:] != mask[:-1]).any(axis=1)))
    return first, mask[first]


def _unique_rows(rows: BoolArray) -> tuple[BoolArray, IntArray]:
    """Return the distinct rows in lexicographic order (an empty row first) and the place of each row among them."""
    packed, inverse = np.unique(np.packbits(rows, axis=1), axis=0, return_inverse=True)
    return np.unpackbits(packed, axis=1, count=rows.shape[1]).astype(bool), inverse.ravel()
