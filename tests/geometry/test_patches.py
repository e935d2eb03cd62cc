"""Patches: the field's published sizes, the forms of the command line, and the footprints of turned rectangles."""

import math
import tracemalloc

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.errors import GeometryError
from patchcert.geometry import Patch

CASES = examples(200)


@pytest.mark.parametrize(
    ("text", "image_size", "label"),
    [
        ("5x5", (32, 32), "5x5"),
        ("3x8", (32, 40), "3x8"),
        ("2.4%", (32, 32), "5x5"),  # RC Table 4, all rows
        ("2.4%@2.7:1", (32, 32), "8x3"),
        ("2.4%@6:1", (32, 32), "12x2"),
        ("2.4%@1:2.7", (32, 32), "3x8"),
        ("2.4%@1:6", (32, 32), "2x12"),
        ("5x5@45deg", (32, 32), "7x7"),
        ("0.4%", (32, 32), "2x2"),
        ("1%", (224, 224), "23x23"),  # PatchGuard and RC Table 2
        ("2%", (224, 224), "32x32"),
        ("3%", (224, 224), "39x39"),
        ("2%", (299, 299), "42x42"),  # DRS Table 3
        ("0.001%", (32, 32), "1x1"),
    ],
)
def test_pitfall_15_published_sizes_come_out_and_are_echoed(text, image_size, label):
    patch = Patch.parse(text, image_size)
    assert patch.label == label
    assert Patch.parse(patch.label, image_size) == patch


def test_equal_footprints_are_equal_patches():
    assert Patch() == Patch(height=5, width=5, footprint=np.ones((5, 5), dtype=bool))
    assert hash(Patch()) == hash(Patch.rotated(5, 5, 90.0, "exact"))
    ring = [[True, True], [True, False]]
    assert Patch(height=2, width=2, footprint=ring) == Patch(height=2, width=2, footprint=np.array(ring), name="ring")
    assert Patch(height=2, width=2, footprint=ring).area == 3
    assert Patch(height=2, width=2, footprint=ring).label.startswith("2x2-3px-")
    assert Patch(height=2, width=3).area_fraction((4, 6)) == 0.25


def test_exact_footprint_of_a_turned_square():
    """A 5x5 square at 45 degrees loses the corners of its 7x7 box: |x| + |y| < 5 / sqrt(2) + 2 from the centre."""
    exact = Patch.rotated(5, 5, 45, "exact")
    y, x = np.mgrid[-3:4, -3:4]
    np.testing.assert_array_equal(exact.mask, np.abs(x) + np.abs(y) < 5 / math.sqrt(2) + 2)
    assert (exact.area, exact.label) == (45, "5x5@45deg-exact")
    assert Patch.parse(exact.label, (32, 32)) == exact


@CASES
@given(st.integers(1, 12), st.integers(1, 12), st.floats(-180, 180), st.integers(0, 2**32 - 1))
def test_exact_footprint_holds_every_pixel_touched_at_any_offset_of_the_centre(height, width, degrees, seed):
    exact, box = Patch.rotated(height, width, degrees, "exact"), Patch.rotated(height, width, degrees)
    assert exact.size == box.size
    rng = np.random.default_rng(seed)
    angle = math.radians(degrees)
    for offset in [*rng.uniform(-0.5, 0.5, size=(3, 2)), (0.5, 0.5), (-0.5, 0.5)]:
        # Points of the rectangle, a little inside its edges, turned counter-clockwise with rows growing downwards.
        along_height, along_width = rng.uniform(-0.5, 0.5, size=(2, 500)) * np.array([[height], [width]]) * 0.999
        x = along_width * math.cos(angle) + along_height * math.sin(angle) + offset[0]
        y = -along_width * math.sin(angle) + along_height * math.cos(angle) + offset[1]
        rows, columns = np.floor(y + box.height / 2).astype(int), np.floor(x + box.width / 2).astype(int)
        inside = (rows >= 0) & (rows < box.height) & (columns >= 0) & (columns < box.width)
        assert exact.mask[rows[inside], columns[inside]].all()


def test_turning_by_right_angles_swaps_the_sides():
    assert Patch.rotated(12, 2, 90) == Patch.rotated(12, 2, 90, "exact") == Patch(height=2, width=12)
    assert Patch.rotated(12, 2, 180) == Patch(height=12, width=2)


def test_a_positive_angle_turns_counter_clockwise():
    """A tall bar turned a little counter-clockwise leans to the left: upper left is covered, upper right is free."""
    mask = Patch.rotated(12, 2, 30, "exact").mask
    assert mask[0, 0] and not mask[0, -1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patch(height=0), "patch height is 0"),
        (lambda: Patch(width=2.5), "patch width is 2.5, but must be an integer"),
        (lambda: Patch(height=True), "patch height is True"),
        (lambda: Patch(height=2, width=2, footprint=np.ones((2, 3), bool)), r"shape \(2, 3\) .* patch is 2x2"),
        (lambda: Patch(height=1, width=2, footprint=np.ones((1, 2))), "type float64"),
        (lambda: Patch(height=1, width=2, footprint=[[False, False]]), "covers 0 of 2 pixels"),
        (lambda: Patch.from_area(0.0, (32, 32)), "fraction 0.0 of the image"),
        (lambda: Patch.from_area(float("nan"), (32, 32)), "fraction nan of the image"),
        (lambda: Patch.from_area(0.5, (32, 32), aspect_ratio=0.0), "aspect ratio is 0.0"),
        (lambda: Patch.from_area(0.5, (32, 32), aspect_ratio=6.0), "the image is only 32x32"),
        (lambda: Patch.rotated(5, 5, float("inf")), "turned by inf degrees"),
        (lambda: Patch.rotated(5, 5, 45, "circle"), "footprint is 'circle'"),
        (lambda: Patch.parse("5by5", (32, 32)), "patch '5by5' is none of the known forms"),
        (lambda: Patch.parse("-2%", (32, 32)), "none of the known forms"),
        (lambda: Patch.parse("0x5", (32, 32)), "patch height is 0"),
        (lambda: Patch.parse("2%@6:0", (32, 32)), "has the width 0"),
        (lambda: Patch.parse("2%@0:6", (32, 32)), "aspect ratio is 0.0"),
        (lambda: Patch.parse("33x1", (32, 40)), "patch 33x1 is 33x1, but the image is only 32x40"),
        (lambda: Patch.parse("24x24@45deg", (32, 32)), "34x34, but the image is only 32x32"),
        (lambda: Patch.parse("9" * 90 + "x1", (32, 32)), "but the image is only 32x32"),
        (lambda: Patch.parse("9" * 5000 + "x1", (32, 32)), r"9\.\.\.' is none of the known forms"),
        (lambda: Patch.parse("5x5@" + "9" * 90 + "deg-exact-exact", (32, 32)), "none of the known forms"),
    ],
)
def test_impossible_patches_are_refused(make, message):
    with pytest.raises(GeometryError, match=message):
        make()


@pytest.mark.parametrize("text", ["6000x6000@45deg-exact", "1x100000@1deg-exact", "100000x100000"])
def test_a_patch_that_does_not_fit_is_refused_before_its_pixels_are_listed(text):
    tracemalloc.start()
    with pytest.raises(GeometryError, match="but the image is only 32x32"):
        Patch.parse(text, (32, 32))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
