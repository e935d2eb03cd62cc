"""View sets against the pixels of their definition, the papers' closed forms, and the public mistakes."""

import json
import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from oracles import incidence_by_pixels, placement_pixels
from view_set_cases import patches_inside, view_sets

from patchcert.errors import GeometryError
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, GridViews, Patch, view_set_from_identity

CASES = examples(600)


@CASES
@given(st.data())
def test_affected_views_are_those_whose_pixels_the_patch_covers(data):
    views, pixels = data.draw(view_sets())
    patch = data.draw(patches_inside(views.image_size))
    expected = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))

    np.testing.assert_array_equal(views.incidence(patch), expected)
    np.testing.assert_array_equal(views.affected_counts(patch), expected.sum(axis=1))
    assert views.affected(patch) == expected.sum(axis=1).max()
    assert views.num_views == len(pixels)


@CASES
@given(st.data())
def test_sums_over_affected_views_cover_every_placement_that_matters(data):
    """The kept placements are rows of the incidence, and every row is contained in a kept one."""
    views, _ = data.draw(view_sets())
    patch = data.draw(patches_inside(views.image_size))
    incidence = views.incidence(patch)
    affected = views.affected_views(patch)
    kept = affected.sums(np.eye(views.num_views, dtype=bool)).T  # (P kept, V): which views each kept set holds

    assert set(np.unique(kept)) <= {0, 1}, "the rectangles of one placement overlap"
    rows = {tuple(row) for row in incidence.astype(int)}
    assert {tuple(row) for row in kept} <= rows
    assert all((incidence[p] <= kept.astype(bool)).all(axis=1).any() for p in range(len(incidence)))
    np.testing.assert_array_equal(affected.counts_P, kept.sum(axis=1))


@CASES
@given(st.data())
def test_retained_pixels_and_indices_follow_the_definition(data):
    views, pixels = data.draw(view_sets())
    masks = views.retained(np.arange(views.num_views))
    for mask, expected in zip(masks, pixels, strict=True):
        assert set(zip(*np.nonzero(mask), strict=True)) == expected
    assert view_set_from_identity(json.loads(json.dumps(views.identity()))) == views
    assert str(views.num_views) in views.describe()
    if isinstance(views, GridViews):
        num_columns = len(views.column_indices)
        for v, expected in enumerate(pixels):
            rows, columns = views.row_indices[v // num_columns], views.column_indices[v % num_columns]
            assert {(r, c) for r in rows for c in columns} == expected
            assert tuple(views.starts[v]) == (rows[0], columns[0])


@pytest.mark.parametrize(
    ("width", "stride", "affected"), [(19, 10, 6), (19, 5, 11), (37, 10, 8), (19, 1, 50), (1, 1, 32)]
)
def test_pitfall_1_strided_bands_are_counted_across_the_seam(width, stride, affected):
    assert BandViews(image_size=(224, 224), width=width, stride=stride).affected(Patch(height=32, width=32)) == affected


def test_pitfall_1_strided_blocks_are_counted_across_the_seam():
    blocks = BlockViews(image_size=(224, 224), block_size=75, stride=10)
    assert blocks.affected(Patch(height=32, width=32)) == 12**2


def test_pitfall_8_row_bands_count_rows_of_a_non_square_image():
    views = BandViews(image_size=(20, 30), width=4, axis="row")
    assert views.num_views == 20
    assert views.affected(Patch(height=3, width=9)) == 3 + 4 - 1


def test_pitfall_11_cut_cells_are_counted():
    assert CellViews(image_size=(28, 28), pitch=3, num_cells=1).num_grid_cells == 100
    assert CellViews(image_size=(30, 20), pitch=7, num_cells=2).num_views == math.comb(5 * 3, 2)
    assert CellViews(image_size=(30, 20), pitch=7, num_cells=2, axis="column").num_grid_cells == 3


SIDES = st.integers(1, 12)


@CASES
@given(SIDES, SIDES, SIDES, SIDES, SIDES, SIDES)
def test_closed_forms_at_stride_1(height, width, k_height, k_width, h, w):
    k_height, k_width, h, w = min(k_height, height), min(k_width, width), min(h, height), min(w, width)
    image_size, patch = (height, width), Patch(height=h, width=w)
    valid = CropViews(image_size=image_size, crop_size=(k_height, k_width))
    wrap = CropViews(image_size=image_size, crop_size=(k_height, k_width), domain="wrap")
    rows, columns = height - k_height + 1, width - k_width + 1
    assert (valid.num_views, wrap.num_views) == (rows * columns, height * width)
    assert valid.affected(patch) == min(h + k_height - 1, rows) * min(w + k_width - 1, columns)
    across = (min(h + k_height - 1, height), min(w + k_width - 1, width))
    assert wrap.affected(patch) == across[0] * across[1]
    assert BlockViews(image_size=image_size, block_size=(k_height, k_width)).affected(patch) == across[0] * across[1]
    assert BandViews(image_size=image_size, width=k_width).affected(patch) == across[1]
    assert BandViews(image_size=image_size, width=k_height, axis="row").affected(patch) == across[0]


@pytest.mark.parametrize("num_cells", [1, 2, 3])
def test_multi_block_closed_form(num_cells):
    """DRS App. D: g cells per axis are touched where the grid is long enough, ceil((h-1)/s) + 1."""
    views = CellViews(image_size=(28, 20), pitch=4, num_cells=num_cells)
    touched = (math.ceil(4 / 4) + 1) * (math.ceil(2 / 4) + 1)
    expected = math.comb(35, num_cells) - math.comb(35 - touched, num_cells)
    assert views.affected(Patch(height=5, width=3)) == expected


def test_published_crop_counts():
    """RC: 529 crops of CIFAR-10 with 196 affected by 5x5; ImageNet 21,025 crops with 12,321 affected by 2 %."""
    cifar = CropViews(image_size=(32, 32), crop_size=(10, 10))
    assert (cifar.num_views, cifar.affected(Patch(height=5, width=5))) == (529, 196)
    imagenet = CropViews(image_size=(224, 224), crop_size=(80, 80))
    patch = Patch.parse("2%", (224, 224))
    assert (imagenet.num_views, imagenet.affected(patch)) == (21_025, 12_321)
    assert len(imagenet.affected_counts(patch)) == 37_249


def test_view_size_is_what_the_classifier_measures():
    assert CropViews(image_size=(20, 30), crop_size=(5, 7)).view_size == (5, 7)
    assert BandViews(image_size=(20, 30), width=4).view_size == (20, 30)


def test_one_number_means_a_square_and_is_the_same_view_set():
    assert CropViews(image_size=(20, 30), crop_size=5) == CropViews(image_size=(20, 30), crop_size=(5, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropViews(image_size=(8, 9), crop_size=(8, 10)), "crop is 8x10, but the image is only 8x9"),
        (lambda: CropViews(image_size=(8, 9), crop_size=0), "crop size .height. is 0, but must be at least 1"),
        (lambda: CropViews(image_size=(8, 9), crop_size=3, stride=0), "stride .height. is 0"),
        (lambda: CropViews(image_size=(8, 9), crop_size=3, domain="torus"), "domain is 'torus'"),
        (lambda: CropViews(image_size=(8, 9, 3), crop_size=3), "image size has 3 parts, but must have 2"),
        (lambda: CropViews(image_size=(8, 9.5), crop_size=3), "image size .width. is 9.5, but must be an integer"),
        (lambda: BandViews(image_size=(8, 9), width=10), "column band is 8x10, but the image is only 8x9"),
        (lambda: BandViews(image_size=(8, 9), width=9, axis="row"), "row band is 9x9, but the image is only 8x9"),
        (lambda: BandViews(image_size=(8, 9), width=2, axis="diagonal"), "band axis is 'diagonal'"),
        (lambda: BandViews(image_size=(8, 9), width=2, stride=-1), "stride is -1"),
        (lambda: BlockViews(image_size=(8, 9), block_size=9), "block is 9x9, but the image is only 8x9"),
        (lambda: CellViews(image_size=(8, 9), pitch=10, num_cells=1), "cell is 10x10, but the image is only 8x9"),
        (lambda: CellViews(image_size=(8, 9), pitch=5, num_cells=5), "Views of 5 cells .* has 4"),
        (lambda: CellViews(image_size=(8, 9), pitch=5, num_cells=1, axis="x"), "cell axis is 'x'"),
        (lambda: CellViews(image_size=(8, 9), pitch=(5, 5), num_cells=1, axis="row"), "pitch is .5, 5., but must be"),
        (lambda: view_set_from_identity({"kind": "spiral"}), "kind 'spiral'"),
        (lambda: view_set_from_identity({"kind": "band", "image_size": [8, 9]}), "do not fit"),
    ],
)
def test_impossible_view_sets_are_refused(make, message):
    with pytest.raises(GeometryError, match=message):
        make()


@pytest.mark.parametrize("index", [-1, 9])
def test_view_indices_out_of_range_are_refused(index):
    with pytest.raises(GeometryError, match="there are 9 views"):
        BandViews(image_size=(8, 9), width=2).retained([index])


def test_patch_larger_than_the_image_is_refused():
    with pytest.raises(GeometryError, match="patch 9x2 is 9x2, but the image is only 8x9"):
        BandViews(image_size=(8, 9), width=2).affected(Patch(height=9, width=2))
