from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchcert.errors import VoteTableError
from patchcert.votes import SCORE_SCALE, rounded_score


@given(st.floats(0, 1))
@example(0.0)
@example(1.0)
@example(5e-324)
@example(0.1)
@example(0.3)
@example(float(np.nextafter(1.0, 0.0)))
def test_is_the_smallest_stored_score_that_reaches_the_threshold(threshold):
    smallest = rounded_score(threshold)
    # The decimal number that people wrote, not the binary one next to it.
    exact = Fraction(repr(threshold))
    assert Fraction(smallest, SCORE_SCALE) >= exact
    assert smallest == 0 or Fraction(smallest - 1, SCORE_SCALE) < exact
    assert type(smallest) is int


@pytest.mark.parametrize(
    ("threshold", "smallest"),
    [
        (0, 0),
        (0.1, 6554),
        (0.2, 13107),
        (0.3, 19661),
        (0.4, 26214),
        (0.5, 32768),
        (0.6, 39321),
        (0.7, 45875),
        (0.8, 52428),
        (0.9, 58982),
        (1, 65535),
    ],
)
@pytest.mark.parametrize("kind", [float, np.float64])
def test_tenths(threshold, smallest, kind):
    """By hand: 65535 divides by 5, so that every second tenth is a stored score; the others lie on a half."""
    assert rounded_score(kind(threshold)) == smallest


@given(st.floats(0, 1), st.floats(0, 1))
def test_higher_thresholds_need_higher_scores(one, other):
    low, high = sorted((one, other))
    assert rounded_score(low) <= rounded_score(high)


@pytest.mark.parametrize("threshold", [-0.1, 1.0000001, 30, float("nan"), float("inf")])
def test_thresholds_that_are_no_score_are_refused(threshold):
    with pytest.raises(VoteTableError, match=rf"a vote threshold is a softmax score in \[0, 1\], not {threshold}"):
        rounded_score(threshold)
