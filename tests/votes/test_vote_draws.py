import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from patchcert.errors import VoteTableError
from patchcert.votes import draw_views

# Draws are deterministic, so these tests pass always or never; a fair draw fails one in ten thousand.
UNLIKELY = 1e-4

GOLDEN_WITH = [[48, 276, 490, 303, 517], [488, 48, 395, 502, 235]]
GOLDEN_WITHOUT = [[3, 27, 7, 31, 19], [9, 7, 0, 25, 5]]


@st.composite
def draws(draw):
    num_views = draw(st.integers(1, 70))
    replacement = draw(st.booleans())
    return {
        "num_views": num_views,
        "num_draws": draw(st.integers(1, 90 if replacement else num_views)),
        "replacement": replacement,
        "seed": draw(st.integers(0, 2**40)),
        "repeat": draw(st.integers(0, 300)),
    }


@given(draws(), st.integers(0, 10**12), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_row_has_one_draw_whatever_the_part_borders(settings, first, lengths):
    borders = first + np.cumsum([0, *lengths])
    whole = draw_views(rows=range(first, int(borders[-1])), **settings)
    parts = [draw_views(rows=range(int(a), int(b)), **settings) for a, b in itertools.pairwise(borders)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.int64
    assert whole.shape == (sum(lengths), settings["num_draws"])
    assert whole.min() >= 0
    assert whole.max() < settings["num_views"]


@given(draws(), st.integers(0, 10**6))
def test_same_seed_same_draw(settings, row):
    rows = range(row, row + 3)
    np.testing.assert_array_equal(draw_views(rows=rows, **settings), draw_views(rows=rows, **settings))


@given(draws(), st.integers(0, 10**6))
def test_nothing_reads_or_moves_the_global_seed(settings, row):
    np.random.seed(1)  # noqa: NPY002
    one = draw_views(rows=range(row, row + 2), **settings)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002
    np.testing.assert_array_equal(one, draw_views(rows=range(row, row + 2), **settings))


@given(draws(), st.integers(0, 10**6), st.integers(1, 70))
def test_without_replacement_views_are_distinct_and_fewer_draws_are_the_first_ones(settings, row, fewer):
    settings |= {"replacement": False, "num_draws": settings["num_views"]}
    rows = range(row, row + 4)
    orders = draw_views(rows=rows, **settings)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(settings["num_views"]), (4, 1)))
    fewer = min(fewer, settings["num_views"])
    np.testing.assert_array_equal(draw_views(rows=rows, **settings | {"num_draws": fewer}), orders[:, :fewer])


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("num_views", [2, 13, 32, 529])
def test_every_view_is_equally_likely_in_every_place(num_views, replacement):
    """Pitfall 7: an off-by-one makes view 0 twice as likely."""
    drawn = draw_views(num_views, 2, range(5000, 45_000), replacement=replacement, seed=11)
    for place in drawn.T:
        counts = np.bincount(place, minlength=num_views)
        assert len(counts) == num_views
        assert chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("replacement", [True, False])
def test_pairs_of_one_draw_are_equally_likely(replacement):
    num_views = 7
    first, second = draw_views(num_views, 2, range(60_000), replacement=replacement, seed=12).T
    counts = np.bincount(first * num_views + second, minlength=num_views**2).reshape(num_views, num_views)
    if replacement:
        assert chisquare(counts.ravel()).pvalue > UNLIKELY
    else:
        assert (np.diag(counts) == 0).all()
        assert chisquare(counts[~np.eye(num_views, dtype=bool)]).pvalue > UNLIKELY


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"repeat": 0}, {"repeat": 1}),
        ({"repeat": 1}, {"repeat": 2}),
        ({"seed": 0}, {"seed": 1}),
        ({"rows": range(40_000)}, {"rows": range(1, 40_001)}),
        ({"seed": 0, "repeat": 1}, {"seed": 1, "repeat": 0}),
    ],
)
def test_repeats_seeds_and_rows_are_independent(one, other, replacement):
    usual = {"num_views": 9, "num_draws": 3, "rows": range(40_000), "replacement": replacement, "seed": 13}
    a, b = (draw_views(**usual | changes)[:, 0] for changes in (one, other))
    table = np.bincount(a * 9 + b, minlength=81).reshape(9, 9)
    assert chi2_contingency(table).pvalue > UNLIKELY


def test_draws_with_and_without_replacement_are_different_draws():
    a, b = (draw_views(9, 2, range(40_000), replacement=replacement, seed=14)[:, 0] for replacement in (True, False))
    assert chi2_contingency(np.bincount(a * 9 + b, minlength=81).reshape(9, 9)).pvalue > UNLIKELY


def test_draws_are_those_of_the_first_release():
    """Golden: what version 0.1.0 drew; published studies must stay reproducible."""
    np.testing.assert_array_equal(draw_views(529, 5, range(3, 5), replacement=True, seed=0), GOLDEN_WITH)
    np.testing.assert_array_equal(draw_views(32, 5, range(3, 5), replacement=False, seed=0, repeat=7), GOLDEN_WITHOUT)


def test_more_draws_than_views_need_replacement():
    assert draw_views(4, 10, range(2), replacement=True, seed=0).shape == (2, 10)
    words = "5 views cannot be drawn without replacement from 4.\n  Draw at most 4, or with replacement"
    with pytest.raises(VoteTableError, match=words):
        draw_views(4, 5, range(2), replacement=False, seed=0)
