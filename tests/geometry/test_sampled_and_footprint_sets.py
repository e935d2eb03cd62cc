"""Random pixels, drawn views and sets of footprints."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from patchcert.errors import GeometryError
from patchcert.geometry import (
    BandViews,
    CellViews,
    CropViews,
    DrawnViews,
    Patch,
    PixelViews,
    SampledViews,
    patches_of_area,
    rectangles_up_to,
    view_set_from_identity,
)

BANDS = BandViews(image_size=(5, 7), width=2)
PIXELS = PixelViews(image_size=(9, 7), num_pixels=4)


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


@pytest.mark.parametrize("num_pixels", [1, 2, 5, 6])
def test_every_choice_of_pixels_is_sampled_alike(num_pixels):
    pixels = PixelViews(image_size=(2, 3), num_pixels=num_pixels)
    views = SampledViews(views=pixels, num_samples=6_000, seed=1)
    chosen = [tuple(sorted(sample)) for sample in views.pixels(7).tolist()]
    expected = list(combinations(range(6), num_pixels))
    counts = [chosen.count(choice) for choice in expected]
    assert sum(counts) == 6_000 and len(expected) == pixels.num_views
    assert len(expected) == 1 or stats.chisquare(counts).pvalue > 0.01


def test_samples_are_a_function_of_seed_and_row_and_begin_alike():
    pixels = PixelViews(image_size=(9, 7), num_pixels=4)
    views = SampledViews(views=pixels, num_samples=50, seed=3)
    np.testing.assert_array_equal(views.pixels(5), views.pixels(5))
    fewer = SampledViews(views=pixels, num_samples=20, seed=3)
    np.testing.assert_array_equal(fewer.pixels(5), views.pixels(5)[:20])
    assert (views.pixels(6) != views.pixels(5)).any()
    assert (SampledViews(views=pixels, num_samples=50, seed=4).pixels(5) != views.pixels(5)).any()
    # Made by this function when it was written: finished vote tables hold votes on these very samples.
    assert fewer.pixels(5)[:3].tolist() == [[14, 59, 11, 4], [2, 53, 1, 42], [33, 58, 0, 22]]


def test_blocks_of_samples_leave_the_samples_as_they_are(monkeypatch):
    views = SampledViews(views=PixelViews(image_size=(9, 7), num_pixels=40), num_samples=50)
    whole = views.pixels(0)
    monkeypatch.setattr("patchcert.geometry.pixels._BLOCK_PIXELS", 63 * 7)
    np.testing.assert_array_equal(views.pixels(0), whole)
    assert (np.sort(whole, axis=1)[:, 1:] > np.sort(whole, axis=1)[:, :-1]).all(), "no pixel twice in a sample"


def test_affected_samples_are_those_of_the_probability():
    """20 of 63 pixels are covered: 1 - C(43, 4) / C(63, 4) = 0.79..., of 50 samples 39.6, rounded up."""
    pixels = PixelViews(image_size=(9, 7), num_pixels=4)
    views = SampledViews(views=pixels, num_samples=50)
    patch = Patch(height=5, width=4)
    assert views.affected_probability(patch) == pixels.affected_probability(patch) == pytest.approx(0.79282, abs=1e-5)
    assert views.affected(patch) == 40
    covered = np.zeros((9, 7), dtype=bool)
    covered[2:7, 1:5] = True
    many = SampledViews(views=pixels, num_samples=20_000)
    assert covered.ravel()[many.pixels(0)].any(axis=1).mean() == pytest.approx(0.79282, abs=0.01)
    # More choices than a float can count.
    huge = PixelViews(image_size=(224, 224), num_pixels=2_000)
    assert 0 < SampledViews(views=huge, num_samples=10).affected_probability(Patch(height=2, width=2)) < 1


def test_sampled_views_are_known_by_their_identity():
    views = SampledViews(views=PixelViews(image_size=(9, 7), num_pixels=4), num_samples=5_000, seed=3)
    assert view_set_from_identity(json.loads(json.dumps(views.identity()))) == views
    assert views.describe() == "5,000 samples of 4 random pixels of 9x7"
    assert (views.num_views, views.view_size, views.image_size) == (5_000, (9, 7), (9, 7))


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
        (lambda: SampledViews(views=BANDS, num_samples=3), "all of those can be listed"),
        (lambda: SampledViews(views=PIXELS, num_samples=0), "number of samples is 0"),
        (lambda: SampledViews(views=PIXELS, num_samples=3, seed=-1), "seed of the samples is -1"),
        (lambda: SampledViews(views=PIXELS, num_samples=3).incidence(Patch()), "they cannot be listed"),
        (lambda: SampledViews(views=PIXELS, num_samples=3).retained([0]), "they cannot be listed"),
        (lambda: PIXELS.incidence(Patch()), "they cannot be listed"),
        (lambda: PIXELS.retained([0]), "they cannot be listed"),
        (lambda: CellViews(image_size=(28, 28), pitch=2, num_cells=3), "1,235,780 views of each image, but at most"),
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
