"""Cells: views that keep a few cells of a fixed grid, as in multi-block and multi-band smoothing."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.affected import BoolArray, IntArray
from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size, check_fits, positive_integer, size_pair, size_text
from patchcert.geometry.starts import GridViews, StartAxis
from patchcert.geometry.view_sets import ViewSet, check_indices

# Each view costs a pass of the model and a place in every vote table; beyond this nobody waits for either.
MAX_CELL_VIEWS = 2**17


@dataclass(frozen=True, kw_only=True)
class CellViews(ViewSet):
    """Every choice of ``num_cells`` cells of a grid that begins in the upper-left corner, in lexicographic order.

    The last row and the last column of cells are cut where the pitch does not divide the image.

    Raises:
        GeometryError: a size is not positive, a cell is larger than the image, there are fewer cells than
            ``num_cells``, more than ``MAX_CELL_VIEWS`` choices, the axis is unknown, or bands are given a pitch of two
            numbers.

    Source: Levine & Feizi 2020, Appendix D.
    """

    kind: ClassVar[str] = "cell"

    image_size: tuple[int, int]
    """(height, width) of the image, in pixels."""

    pitch: int | tuple[int, int]
    """(height, width) of a cell, in pixels; one number means a square, or the width (height) of column (row) cells."""

    num_cells: int
    """Cells that one view keeps."""

    axis: Literal["both", "column", "row"] = "both"
    """Whether cells are blocks, full-height columns or full-width rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, "The image size"))
        object.__setattr__(self, "num_cells", positive_integer(self.num_cells, "The number of cells in a view"))
        if self.axis == "both":
            object.__setattr__(self, "pitch", size_pair(self.pitch, "The pitch"))
        elif self.axis in ("column", "row"):
            object.__setattr__(self, "pitch", positive_integer(self.pitch, "The pitch"))
        else:
            raise GeometryError(
                f"The cell axis is {self.axis!r}, but only 'both', 'column' and 'row' exist.\n"
                "  Choose 'both' for blocks, 'column' or 'row' for bands."
            )
        check_fits(self.cell_size, self.image_size, "The cell")
        if self.num_cells > self.num_grid_cells:
            raise GeometryError(
                f"Views of {self.num_cells} cells were asked for, but a grid of {size_text(self.cell_size)} cells "
                f"on an image of {size_text(self.image_size)} has {self.num_grid_cells}.\n"
                f"  Choose at most {self.num_grid_cells} cells, or a smaller pitch."
            )
        if self.num_views > MAX_CELL_VIEWS:
            raise GeometryError(
                f"Choices of {self.num_cells} from {self.num_grid_cells} cells of {size_text(self.cell_size)} are "
                f"{self.num_views:,} views of each image, but at most {MAX_CELL_VIEWS:,} can be voted on.\n"
                "  Choose fewer cells or a larger pitch."
            )

    @property
    def cell_size(self) -> Size:
        """(height, width) of an uncut cell, in pixels."""
        if isinstance(self.pitch, tuple):
            return self.pitch
        height, width = self.image_size
        return (height, self.pitch) if self.axis == "column" else (self.pitch, width)

    @property
    def _grid(self) -> GridViews:
        return _CellGrid(image_size=self.image_size, cell_size=self.cell_size)

    @property
    def grid_size(self) -> Size:
        """Number of (rows, columns) of cells, cut cells included."""
        return -(-self.image_size[0] // self.cell_size[0]), -(-self.image_size[1] // self.cell_size[1])

    @property
    def num_grid_cells(self) -> int:
        """Number of cells of the grid, G."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_views(self) -> int:
        """Number of views, V = C(G, num_cells)."""
        return math.comb(self.num_grid_cells, self.num_cells)

    @cached_property
    def cells(self) -> npt.NDArray[np.int64]:
        """Cells that each view keeps, row-major numbers in [0, G), increasing, int64, shape (V, num_cells)."""
        return np.array(list(combinations(range(self.num_grid_cells), self.num_cells)), dtype=np.int64)

    @property
    def cell_of_pixel(self) -> npt.NDArray[np.int64]:
        """Number of the cell that each pixel lies in, int64 in [0, G), shape (H, W)."""
        rows, columns = (np.arange(size) // pitch for size, pitch in zip(self.image_size, self.cell_size, strict=True))
        return rows[:, None] * self.grid_size[1] + columns

    def retained(self, view_indices: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return the pixels that the given views retain, boolean, shape (len(view_indices), H, W)."""
        indices = check_indices(view_indices, self.num_views)
        kept = np.zeros((len(indices), self.num_grid_cells), dtype=bool)
        np.put_along_axis(kept, self.cells[indices], True, axis=1)
        return kept[:, self.cell_of_pixel]

    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return which views each placement affects, boolean, shape (P, V); dense, see ``ViewSet``."""
        touched_PG = self._grid.incidence(patch, only_undominated=only_undominated)
        if only_undominated:
            touched_PG = np.unique(touched_PG, axis=0)
        cells = self.cells if view_indices is None else self.cells[check_indices(view_indices, self.num_views)]
        affected_PV = np.zeros((len(touched_PG), len(cells)), dtype=bool)
        for cell_V in cells.T:
            affected_PV |= touched_PG[:, cell_V]
        return affected_PV

    def affected_counts(self, patch: Patch) -> npt.NDArray[np.int64]:
        """Return the number of views that each placement affects, int64, shape (P,), row-major."""
        num_touched_P = self._grid.affected_counts(patch)
        untouched = range(self.num_grid_cells, -1, -1)
        by_touched = np.array(
            [self.num_views - math.comb(cells, self.num_cells) for cells in untouched], dtype=np.int64
        )
        return by_touched[num_touched_P]

    def describe(self) -> str:
        """Return the view set in a few words."""
        shape = "blocks" if self.axis == "both" else f"{self.axis} bands"
        return (
            f"{self.num_cells} of {self.num_grid_cells} {shape} of {size_text(self.cell_size)}, "
            f"{self.num_views} views of {size_text(self.image_size)}"
        )


class _CellAxis(StartAxis):
    """Intervals side by side; the last one is cut at the end of the image."""

    @property
    def starts(self) -> IntArray:
        return np.arange(0, self.size, self.length)

    def touched(self, first_P: IntArray, extent: int) -> BoolArray:
        first = first_P[:, None]
        return (self.starts < first + extent) & (first < self.starts + self.length)


@dataclass(frozen=True, kw_only=True)
class _CellGrid(GridViews):
    """The single cells of a grid, to find which of them a patch touches."""

    image_size: Size
    cell_size: Size

    @property
    def row_axis(self) -> StartAxis:
        return _CellAxis(size=self.image_size[0], length=self.cell_size[0])

    @property
    def column_axis(self) -> StartAxis:
        return _CellAxis(size=self.image_size[1], length=self.cell_size[1])

    def describe(self) -> str:
        return "single cells"
