"""Random pixels, drawn views and sets of footprints."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from patchcert.errors import GeometryError
from patchcert.geometry import (
    BandViews,
    CropViews,
    DrawnViews,
    Patch,
    PixelViews,
    patches_of_area,
    rectangles_up_to,
    view_set_from_identity,
)

BANDS = BandViews(image_size=(5, 7), width=2)


def test_affected_random_pixels_are_counted_by_enumeration():
    """All C(12, 3) views of a 3x4 image: those with a pixel in the 2x2 patch."""
    views = PixelViews(image_size=(3, 4), num_pixels=3)
    patch = {0, 1, 4, 5}
    affected = [bool(patch & set(view)) for view in combinations(range(12), 3)]
    assert (views.num_views, views.affected(Patch(height=2, width=2))) == (len(affected), sum(affected))
    assert views.affected_probability(Patch(height=2, width=2)) == pytest.approx(np.mean(affected))


def test_pitfall_7_draws_are_uniform_and_repeatable():
    views = PixelViews(image_size=(3, 5), num_pixels=2)
    masks = views.draw(30_000, np.random.default_rng(0))
    assert masks.shape == (30_000, 3, 5) and (masks.sum(axis=(1, 2)) == 2).all()
    assert stats.chisquare(masks.sum(axis=0).ravel()).pvalue > 0.01
    np.testing.assert_array_equal(views.draw(5, np.random.default_rng(3)), views.draw(5, np.random.default_rng(3)))
    drawn = DrawnViews.draw(BANDS, 21_000, np.random.default_rng(0))
    assert stats.chisquare(np.bincount(drawn.view_indices, minlength=7)).pvalue > 0.01
    assert DrawnViews.draw(BANDS, 7, np.random.default_rng(1)) == DrawnViews.draw(BANDS, 7, np.random.default_rng(1))
    without = DrawnViews.draw(BANDS, 7, np.random.default_rng(1), replacement=False)
    assert sorted(without.view_indices) == list(range(7))


def test_drawn_views_are_known_by_their_identity():
    drawn = DrawnViews(views=BANDS, view_indices=(3, 3, 0))
    assert view_set_from_identity(json.loads(json.dumps(drawn.identity()))) == drawn
    assert drawn.describe() == "a fixed draw of 3 from column bands of width 2, 7 views of 5x7"
    assert (drawn.num_views, drawn.view_size, drawn.image_size) == (3, (5, 7), (5, 7))


def test_table_4_shapes():
    ratios = (1.0, 2.7, 6.0, 1 / 2.7, 1 / 6)
    labels = [patch.label for patch in patches_of_area(0.024, (32, 32), aspect_ratios=ratios)]
    assert labels == ["5x5", "8x3", "12x2", "3x8", "2x12"]
    boxes = patches_of_area(0.024, (32, 32), degrees=(0, 45, 90), footprint="bounding_box")
    assert [patch.label for patch in boxes] == ["5x5", "7x7"]


@pytest.mark.parametrize("area", [1, 2, 6, 7, 12, 40, 99])
def test_rectangles_up_to_an_area_contain_all_others_and_none_of_each_other(area):
    image = (5, 8)
    chosen = [patch.size for patch in rectangles_up_to(area, image)]
    every = [(h, w) for h in range(1, 6) for w in range(1, 9) if h * w <= area]

    def inside(small, large):
        return small[0] <= large[0] and small[1] <= large[1]

    assert set(chosen) <= set(every)
    assert all(any(inside(size, large) for large in chosen) for size in every)
    assert not any(inside(a, b) for a in chosen for b in chosen if a != b)


def test_views_that_share_a_kept_placement_of_imagenet_need_no_dense_array():
    """1,024 drawn crops of 21,025: 1,225 of 37,249 placements matter."""
    crops = CropViews(image_size=(224, 224), crop_size=(80, 80))
    drawn = DrawnViews.draw(crops, 1024, np.random.default_rng(0))
    assert drawn.incidence(Patch(height=32, width=32), only_undominated=True).shape == (35 * 35, 1024)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelViews(image_size=(3, 4), num_pixels=13), "13 pixels were asked for, but the image has 12"),
        (lambda: PixelViews(image_size=(3, 4), num_pixels=0), "kept pixels is 0"),
        (lambda: PixelViews(image_size=(3, 4), num_pixels=2).affected(Patch()), "the image is only 3x4"),
        (lambda: DrawnViews(views=BANDS, view_indices=()), "0 views were drawn"),
        (lambda: DrawnViews(views=BANDS, view_indices=(7,)), "there are 7 views"),
        (lambda: DrawnViews.draw(BANDS, 0, np.random.default_rng(0)), "0 views were to be drawn"),
        (lambda: DrawnViews.draw(BANDS, 8, np.random.default_rng(0), replacement=False), "8 views were to be drawn"),
        (lambda: rectangles_up_to(0, (3, 4)), "patch area is 0"),
        (lambda: patches_of_area(0.3, (32, 32), aspect_ratios=(6.0,)), "the image is only 32x32"),
    ],
)
def test_impossible_draws_and_sets_are_refused(make, message):
    with pytest.raises(GeometryError, match=message):
        make()
