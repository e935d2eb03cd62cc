"""Intervals of shares against their defining equations."""

import math

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.certificates import CertificateError, wilson_interval

CASES = examples(200)


@CASES
@given(st.integers(1, 50_000), st.floats(0, 1))
def test_wilson_bounds_solve_the_score_equation(total, share):
    successes = round(share * total)
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            score = abs(successes / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert score == pytest.approx(1.959963984540054, rel=1e-6)


def test_wilson_known_values():
    """Wilson 1927 as tabulated by Newcombe 1998, Table I: 81/263 and 0/20."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "0 successes of 0 trials"), ((-1, 5), "-1 successes"), ((6, 5), "6 successes"), ((1, 5, 1.0), "is 1.0")],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(CertificateError, match=message):
        wilson_interval(*arguments)
