import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from patchcert.errors import VoteTableError
from patchcert.votes import draw_tallies, draw_views

# Draws are deterministic, so these tests pass always or never; a fair draw fails one in ten thousand.
UNLIKELY = 1e-4


def law_by_enumeration(counts, num_draws, replacement):
    """Probability of every tally, from every equally likely sequence (or set) of single views."""
    classes = [k for k, count in enumerate(counts) for _ in range(count)]
    ways = itertools.product(classes, repeat=num_draws) if replacement else itertools.combinations(classes, num_draws)
    tallies = [tuple(way.count(k) for k in range(len(counts))) for way in ways]
    return {tally: tallies.count(tally) / len(tallies) for tally in set(tallies)}


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(("counts", "num_draws"), [((3, 2, 1), 3), ((1, 4), 2), ((2, 0, 2, 1), 4), ((5,), 3)])
def test_tallies_have_the_law_of_single_views(counts, num_draws, replacement):
    law = law_by_enumeration(counts, num_draws, replacement)
    drawn = draw_tallies(np.array(counts), num_draws, 7, replacement=replacement, seed=0, num_repeats=20_000)
    found, times = np.unique(drawn, axis=0, return_counts=True)
    seen = {tuple(int(count) for count in tally): int(count) for tally, count in zip(found, times, strict=True)}
    assert set(seen) <= set(law)
    expected = [20_000 * law[tally] for tally in law]
    if len(law) > 1:
        assert chisquare([seen.get(tally, 0) for tally in law], expected).pvalue > UNLIKELY


@pytest.mark.parametrize("replacement", [True, False])
def test_tallies_and_drawn_views_agree_in_law_on_a_full_size_image(replacement):
    """Lead of the winner, over many draws of 128 of 529 views: views drawn one by one, and tallies drawn at once."""
    counts = np.array([200, 150, 100, 50, 29])
    classes = np.repeat(np.arange(5), counts)
    views = draw_views(529, 128, range(4000), replacement=replacement, seed=1)
    by_views = np.stack([(classes[views] == k).sum(axis=1) for k in range(5)], axis=1)
    at_once = draw_tallies(counts, 128, 3, replacement=replacement, seed=1, num_repeats=4000)
    assert (at_once.sum(axis=1) == 128).all()
    for figure in (lambda tallies: tallies[:, 0], lambda tallies: np.sort(tallies)[:, -1] - np.sort(tallies)[:, -2]):
        edges = np.quantile(figure(by_views), np.linspace(0, 1, 9)[1:-1])
        table = [np.bincount(np.searchsorted(edges, figure(tallies)), minlength=8) for tallies in (by_views, at_once)]
        assert chi2_contingency(np.array(table)).pvalue > UNLIKELY


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.booleans(),
    st.integers(0, 2**40),
    st.integers(0, 10**12),
    st.data(),
)
def test_more_repeats_keep_the_first_ones_and_nothing_else_moves_a_row(counts, replacement, seed, row, data):
    num_draws = data.draw(st.integers(1, 40 if replacement else sum(counts)))
    settings = {"replacement": replacement, "seed": seed}
    few = draw_tallies(np.array(counts), num_draws, row, num_repeats=3, **settings)
    many = draw_tallies(np.array(counts), num_draws, row, num_repeats=11, **settings)
    np.testing.assert_array_equal(many[:3], few)
    assert (many.sum(axis=1) == num_draws).all() and (many[:, np.array(counts) == 0] == 0).all()
    assert replacement or (many <= counts).all()


def test_rows_seeds_draws_and_ways_are_independent():
    """No pair of streams that a study uses side by side is correlated."""
    counts = np.array([300, 229])
    streams = [
        draw_tallies(counts, num_draws, row, replacement=replacement, seed=seed, num_repeats=1000)[:, 0]
        for num_draws, row, replacement, seed in itertools.product((64, 128), (0, 1), (True, False), (0, 1))
    ]
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(1000)


def test_more_views_than_there_are_are_refused():
    with pytest.raises(VoteTableError, match="6 views cannot be drawn without replacement from 5"):
        draw_tallies(np.array([2, 3]), 6, 0, replacement=False, seed=0, num_repeats=1)
