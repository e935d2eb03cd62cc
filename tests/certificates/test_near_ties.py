"""Near-ties: which votes an error of the scores can change, and how far each verdict is from changing."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.certificates import (
    CertificateError,
    cast_votes,
    certify_counting,
    certify_placement,
    doubtful_votes,
    score_margins,
)
from patchcert.geometry import BandViews, Patch

CASES = examples(300)
VIEWS = BandViews(image_size=(4, 6), width=2)
PATCH = Patch(height=2, width=1)


@CASES
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0.3]), st.floats(0, 0.2))
def test_errors_within_the_tolerance_change_only_doubtful_votes(seed, vote_threshold, tolerance):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(4), size=(3, 6))
    doubtful = doubtful_votes(scores, tolerance, vote_threshold=vote_threshold)
    votes = cast_votes(scores, vote_threshold=vote_threshold)
    for _ in range(5):
        moved = scores + tolerance * rng.choice([-1.0, 1.0], scores.shape)
        changed = cast_votes(moved, vote_threshold=vote_threshold) != votes
        assert not (changed & ~doubtful).any()


@CASES
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0.3]))
def test_verdicts_hold_within_their_score_margin_and_not_beyond(seed, vote_threshold):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet([1.5, 0.4, 0.3], size=(6, VIEWS.num_views))
    margins = score_margins(scores, VIEWS, PATCH, vote_threshold=vote_threshold, max_tolerance=0.5)
    votes = cast_votes(scores, vote_threshold=vote_threshold)
    outcome = certify_placement(votes, VIEWS, PATCH)
    beyond = doubtful_votes(scores, margins + 1e-5, vote_threshold=vote_threshold)
    within = doubtful_votes(scores, margins - 1e-9 * (margins > 0), vote_threshold=vote_threshold)
    fewest = certify_placement(votes, VIEWS, PATCH, doubtful=within)
    most = certify_placement(votes, VIEWS, PATCH, doubtful=beyond)
    certified, found = outcome.certified_N, margins < 0.5
    assert fewest.certified_N[certified & (margins > 0)].all()
    assert not most.certified_N[certified & found].any()
    # An uncertified verdict does not change under any error below its margin.
    for _ in range(5):
        error = rng.uniform(-1, 1, scores.shape) * (margins * 0.999)[:, None, None]
        moved = certify_placement(cast_votes(scores + error, vote_threshold=vote_threshold), VIEWS, PATCH)
        same = moved.predictions_N == outcome.predictions_N
        assert (moved.certified_N == certified)[same & (margins > 0)].all()
        assert same[certified & (margins > 0)].all()


def test_a_certificate_that_hangs_on_one_score_says_so():
    """Six bands, 3 affected: all 6 votes for class 0 give a margin of 0; one score is 0.001 above the threshold."""
    scores = np.zeros((2, 6, 2))
    scores[:, :, 0] = 0.9
    scores[1, 2, 0] = 0.301
    votes = cast_votes(scores, vote_threshold=0.3)
    patch = Patch(height=1, width=2)
    assert certify_placement(votes, VIEWS, patch).margin_N.tolist() == [0, 0]
    margins = score_margins(scores, VIEWS, patch, vote_threshold=0.3, max_tolerance=0.05)
    assert margins == pytest.approx([0.05, 0.001], abs=1e-6)
    doubtful = doubtful_votes(scores, 0.002, vote_threshold=0.3)
    assert certify_placement(votes, VIEWS, patch, doubtful=doubtful).certified_N.tolist() == [True, False]


def test_counting_margin_is_the_number_of_votes_to_spare():
    assert certify_counting([[9, 3], [9, 4], [3, 9], [9, 2]], 3).margin_N.tolist() == [0, -1, -1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: doubtful_votes(np.zeros((1, 6, 2)), -0.1), "tolerance is -0.1"),
        (lambda: cast_votes(np.zeros((6, 2))), r"shape \(6, 2\)"),
        (lambda: cast_votes(np.full((1, 6, 2), np.nan)), "12 of them are not finite"),
        (lambda: score_margins(np.zeros((1, 6, 2)), VIEWS, PATCH, max_tolerance=0.0), "search up to 0.0"),
        (lambda: score_margins(np.zeros((1, 6, 2)), VIEWS, PATCH, num_halvings=0), "in 0 halvings"),
        (lambda: score_margins(np.zeros((1, 5, 2)), VIEWS, PATCH), "5 views, but the view set has 6"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(make, message):
    with pytest.raises(CertificateError, match=message):
        make()
