"""Small view sets and footprints for hypothesis, each with its pixels by definition (non-square on purpose)."""

import numpy as np
from hypothesis import strategies as st
from oracles import band_pixels, cell_pixels, crop_pixels

from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, Patch


@st.composite
def view_sets(draw, max_height=6, max_width=7, kinds=("valid", "wrap", "block", "column", "row", "cell")):
    """Return (view set, retained pixels of each view)."""
    height = draw(st.integers(1, max_height))
    width = draw(st.integers(1, max_width))
    image_size = (height, width)
    size = (draw(st.integers(1, height)), draw(st.integers(1, width)))
    stride = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    kind = draw(st.sampled_from(kinds))
    if kind in ("valid", "wrap"):
        views = CropViews(image_size=image_size, crop_size=size, domain=kind, stride=stride)
        return views, crop_pixels(image_size, size, kind == "wrap", stride)
    if kind == "block":
        views = BlockViews(image_size=image_size, block_size=size, stride=stride)
        return views, crop_pixels(image_size, size, True, stride)
    if kind in ("column", "row"):
        band = size[1] if kind == "column" else size[0]
        views = BandViews(image_size=image_size, width=band, axis=kind, stride=stride[0])
        return views, band_pixels(image_size, band, kind, stride[0])
    axis = draw(st.sampled_from(["both", "column", "row"]))
    cell = {"both": size, "column": (height, size[1]), "row": (size[0], width)}[axis]
    num_grid_cells = -(-height // cell[0]) * -(-width // cell[1])
    num_cells = draw(st.integers(1, min(2, num_grid_cells)))
    pitch = {"both": size, "column": size[1], "row": size[0]}[axis]
    views = CellViews(image_size=image_size, pitch=pitch, num_cells=num_cells, axis=axis)
    return views, cell_pixels(image_size, cell, num_cells)


@st.composite
def patches_inside(draw, image_size, max_side=4):
    """Return a patch that fits inside the image; half of the footprints are no rectangle."""
    height = draw(st.integers(1, min(max_side, image_size[0])))
    width = draw(st.integers(1, min(max_side, image_size[1])))
    if draw(st.booleans()):
        return Patch(height=height, width=width)
    bits = draw(st.integers(1, 2 ** (height * width) - 1))
    mask = np.array([bits >> i & 1 for i in range(height * width)], dtype=bool).reshape(height, width)
    return Patch(height=height, width=width, footprint=mask)
