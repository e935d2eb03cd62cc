"""Affected views of many placements at once: from boolean sets of starts to sums of votes over them."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class AffectedViews(Protocol):
    """The sets A(l) of affected views for the placements l that matter (P of them)."""

    counts_P: IntArray
    """Number of affected views a(l), shape (P,)."""

    bytes_per_plane: int
    """Working memory of ``sums`` for one plane, in bytes."""

    def sums(self, planes_BV: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
        """Sum each plane of small non-negative integers or flags over every A(l).

        Args:
            planes_BV: one value per view, shape (B, V).

        Returns:
            int32, shape (B, P).
        """
        ...


class ListedViews:
    """Affected views given as one boolean row per placement, for view sets that are no grid of starts.

    Args:
        incidence_PV: whether each placement affects each view.
        distinct: drop duplicate rows.
    """

    def __init__(self, incidence_PV: BoolArray, *, distinct: bool = True) -> None:
        rows_PV = incidence_PV
        if distinct:
            _, kept = np.unique(np.packbits(incidence_PV, axis=1), axis=0, return_index=True)
            rows_PV = incidence_PV[np.sort(kept)]
        # float32 uses fast matrix products and holds every count up to 2**24 exactly.
        self._rows_VP = np.ascontiguousarray(rows_PV.T, dtype=np.float32)
        self.counts_P: IntArray = rows_PV.sum(axis=1, dtype=np.int64)
        self.bytes_per_plane = 4 * (rows_PV.shape[1] + 2 * rows_PV.shape[0])

    def sums(self, planes_BV: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
        """Sum each plane (B, V) over every A(l); int32, shape (B, P)."""
        return (planes_BV.astype(np.float32) @ self._rows_VP).astype(np.int32)


class GridRectangles:
    """Affected views of a grid of starts as disjoint cyclic rectangles, summed by summed-area tables.

    The rectangle t of the placement (r, c) is the cyclic run of start rows ``row_first[t, r]`` ... of length
    ``row_count[t, r]`` times the run of start columns given likewise by c; a length of 0 is no rectangle.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        row_first: IntArray,
        row_count: IntArray,
        column_first: IntArray,
        column_count: IntArray,
    ) -> None:
        self._grid_size = grid_size
        self._rows = (row_first, row_first + row_count)
        self._columns = (column_first, column_first + column_count)
        # Runs that pass the seam continue on a copy of the first starts, appended before summing.
        self._seam = tuple(
            max(0, int(ends.max()) - size)
            for (_, ends), size in zip((self._rows, self._columns), grid_size, strict=True)
        )
        self.counts_P: IntArray = (row_count.T @ column_count).ravel()
        rows, columns = (size + seam + 1 for size, seam in zip(grid_size, self._seam, strict=True))
        self.bytes_per_plane = 4 * (3 * rows * columns + 3 * row_first.shape[1] * columns + 3 * self.counts_P.size)

    def sums(self, planes_BV: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
        """Sum each plane (B, V) over every A(l); int32, shape (B, P)."""
        (num_rows, num_columns), (row_seam, column_seam) = self._grid_size, self._seam
        num_planes = len(planes_BV)
        planes = planes_BV.reshape(num_planes, num_rows, num_columns)
        table = np.zeros((num_planes, num_rows + row_seam + 1, num_columns + column_seam + 1), dtype=np.int32)
        body = table[:, 1:, 1:]
        body[:, :num_rows, :num_columns] = planes
        body[:, num_rows:, :num_columns] = body[:, :row_seam, :num_columns]
        body[:, :, num_columns:] = body[:, :, :column_seam]
        np.cumsum(body, axis=2, dtype=np.int32, out=body)
        np.cumsum(body, axis=1, dtype=np.int32, out=body)

        total = np.zeros((num_planes, self._rows[0].shape[1], self._columns[0].shape[1]), dtype=np.int32)
        for row_first, row_end, column_first, column_end in zip(*self._rows, *self._columns, strict=True):
            rows = table[:, row_end]
            rows -= table[:, row_first]
            total += rows[:, :, column_end]
            total -= rows[:, :, column_first]
        return total.reshape(num_planes, len(self.counts_P))


def grid_rectangles(pattern_QR: IntArray, touch_UPC: BoolArray, wraps: tuple[bool, bool]) -> GridRectangles:
    """Split the affected starts of every placement into disjoint rectangles.

    Args:
        pattern_QR: for each row of placements and each start row, which pattern of columns is hit there; pattern 0 is
            none at all. Shape (Q rows of placements, R start rows).
        touch_UPC: for each pattern, which start columns each column of placements touches, shape (U patterns,
            P columns of placements, C start columns).
        wraps: whether runs of start rows and of start columns may pass the seam.

    Returns:
        The rectangles of the Q x P placements.
    """
    runs: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    for pattern in range(1, len(touch_UPC)):
        column_runs = _cyclic_runs(touch_UPC[pattern], wraps[1])
        runs += [
            (*row_run, *column_run)
            for row_run in _cyclic_runs(pattern_QR == pattern, wraps[0])
            for column_run in column_runs
        ]
    if not runs:  # a patch between the views of a strided set touches none
        row, column = (np.zeros(length, dtype=np.int64) for length in (len(pattern_QR), touch_UPC.shape[1]))
        runs = [(row, row, column, column)]
    row_first, row_count, column_first, column_count = (np.stack(part) for part in zip(*runs, strict=True))
    return GridRectangles((pattern_QR.shape[1], touch_UPC.shape[2]), row_first, row_count, column_first, column_count)


def _cyclic_runs(touch_PS: BoolArray, wraps: bool) -> list[tuple[IntArray, IntArray]]:
    """Return runs of neighbouring true starts: pairs (first, count) of shape (P,), as many as the fullest row needs."""
    before_PS = np.roll(touch_PS, 1, axis=1)
    if not wraps:
        before_PS[:, 0] = False
    begins_PS = touch_PS & ~before_PS
    begins_PS[touch_PS.all(axis=1), 0] = True
    run_PS = np.cumsum(begins_PS, axis=1)
    num_runs_P = run_PS[:, -1]
    # What lies before the first beginning came over the seam and belongs to the last run.
    run_PS = np.where(run_PS == 0, num_runs_P[:, None], run_PS) * touch_PS
    return [
        (np.argmax(begins_PS & (run_PS == run), axis=1), (run_PS == run).sum(axis=1))
        for run in range(1, int(num_runs_P.max(initial=0)) + 1)
    ]


def undominated(touch_SP: BoolArray) -> IntArray:
    """Return the placements along one axis that a neighbour does not make superfluous.

    A placement is superfluous when the next one touches all that it touches, or the previous one touches more:
    following such neighbours always ends at a placement that is kept, and an attacker who controls more views can do
    no less.

    Args:
        touch_SP: what each placement touches, shape (things, P).
    """
    here, after = touch_SP[:, :-1], touch_SP[:, 1:]
    within_next = ~(here & ~after).any(axis=0)
    within_previous = ~(after & ~here).any(axis=0)
    superfluous = np.zeros(touch_SP.shape[1], dtype=bool)
    superfluous[:-1] = within_next
    superfluous[1:] |= within_previous & ~within_next
    return np.flatnonzero(~superfluous)
