"""The randomized-cropping paper's confidence: its published shapes, where it is out of reach, its flaws in numbers."""

import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.certificates import (
    CertificateError,
    certify_counting,
    certify_random_crops_reported,
    reported_feasibility,
)
from patchcert.geometry import CropViews, Patch

CASES = examples(300)
CIFAR = CropViews(image_size=(32, 32), crop_size=(10, 10))
CIFAR_WRAP = CropViews(image_size=(32, 32), crop_size=(10, 10), domain="wrap")
IMAGENET = CropViews(image_size=(224, 224), crop_size=(80, 80))


def feasibility(views, patch, num_draws, **options):
    return reported_feasibility(num_draws, views.affected(patch), views.num_views, 0.95, **options)


def binomial_tail(num_draws, p, most):
    return sum(math.comb(num_draws, k) * p**k * (1 - p) ** (num_draws - k) for k in range(most + 1))


@pytest.mark.parametrize(
    ("views", "text", "num_draws", "feasible", "needed"),
    [
        (CIFAR, "5x5", 128, True, 112),
        (CIFAR, "8x3", 128, True, 116),
        (CIFAR, "12x2", 128, False, 130),  # RC Table 4 prints 47.5 %
        (CIFAR_WRAP, "5x5", 128, True, 64),  # RC's "1024 possible locations"
        (IMAGENET, "32x32", 256, False, 326),  # RC Table 2 prints 16.4 %
    ],
)
def test_pitfall_18_published_rows_that_the_formula_cannot_reach_are_called_infeasible(
    views, text, num_draws, feasible, needed
):
    answer = feasibility(views, Patch.parse(text, views.image_size), num_draws)
    assert (answer.feasible, answer.needed_margin) == (feasible, needed)
    assert f"margin of {needed} of {num_draws} votes" in answer.text
    assert answer.text.startswith("infeasible") != feasible
    unanimous = certify_random_crops_reported(
        [[num_draws, 0]],
        num_draws=num_draws,
        affected=views.affected(Patch.parse(text, views.image_size)),
        num_views=views.num_views,
        min_confidence=0.95,
    )
    assert unanimous.certified_N.tolist() == [feasible]
    assert unanimous.guarantee == "heuristic"


def test_confidence_is_the_published_formula():
    """RC Eq. 2-6 by hand: n = 128, p_a = 196 / 529, margin 112: n_2to1 = 57, p_c = P[Binomial <= 56]."""
    outcome = certify_random_crops_reported(
        [[119, 7, 2], [7, 119, 2], [118, 7, 3]], num_draws=128, affected=196, num_views=529, min_confidence=0.95
    )
    expected = [binomial_tail(128, 196 / 529, 56)] * 2 + [binomial_tail(128, 196 / 529, 55)]
    np.testing.assert_allclose(outcome.confidence_N, expected, rtol=1e-10)
    assert outcome.certified_N.tolist() == [True, True, False]
    assert outcome.predictions_N.tolist() == [0, 1, 0]


def test_reported_law_without_replacement_is_a_poisson_binomial():
    """Against all 2**6 patterns of affected draws; the fifth of 8 views with 4 affected ones is affected for sure."""
    num_draws, affected, num_views = 6, 4, 8
    p = [min(1.0, affected / (num_views - i)) for i in range(num_draws)]
    law = np.zeros(num_draws + 1)
    for pattern in np.ndindex(*[2] * num_draws):
        law[sum(pattern)] += math.prod(q if hit else 1 - q for q, hit in zip(p, pattern, strict=True))
    outcome = certify_random_crops_reported(
        [[k, 6 - k] for k in (3, 4, 5, 6)], num_draws=6, affected=4, num_views=8, min_confidence=0.5, replacement=False
    )
    np.testing.assert_allclose(outcome.confidence_N, np.cumsum(law)[[0, 1, 2, 3]], rtol=1e-12)


@CASES
@given(st.integers(1, 9), st.data())
def test_exact_law_without_replacement_is_hypergeometric(num_views, data):
    affected = data.draw(st.integers(0, num_views))
    num_draws = data.draw(st.integers(1, num_views))
    margin = data.draw(st.integers(0, num_draws))
    outcome = certify_random_crops_reported(
        [[margin, 0]],
        num_draws=num_draws,
        affected=affected,
        num_views=num_views,
        min_confidence=0.5,
        replacement=False,
        law="exact",
    )
    ways = sum(math.comb(affected, k) * math.comb(num_views - affected, num_draws - k) for k in range(margin // 2 + 1))
    assert outcome.confidence_N[0] == pytest.approx(ways / math.comb(num_views, num_draws), abs=1e-12)


def test_drawing_every_crop_without_replacement_is_certain():
    """With n = V all affected crops are drawn, so p_c is 0 or 1. The reported law asks for more than all votes."""
    answer = reported_feasibility(529, 196, 529, 0.95, replacement=False, law="exact")
    assert answer.needed_margin == 2 * 196
    # RC Table 5 falls to 24.7 % at n = 256 and 0.8 % at n = 512; its formula allows nothing at either.
    feasible = [feasibility(CIFAR, Patch(), n, replacement=False).feasible for n in (64, 128, 256, 512)]
    assert feasible == [True, True, False, False]


def test_the_reported_confidence_ignores_a_tie_that_the_rival_wins():
    """A margin of 112 with 56 affected crops is a tie. The rival of lower index wins it, but p_c counts it as safe."""
    counts = [[8, 120]]
    reported = certify_random_crops_reported(counts, num_draws=128, affected=196, num_views=529, min_confidence=0.95)
    assert reported.certified_N[0]
    assert reported.confidence_N[0] == pytest.approx(binomial_tail(128, 196 / 529, 56))
    assert not certify_counting(counts, 56).certified_N[0]


@CASES
@given(st.integers(1, 40), st.integers(0, 60), st.sampled_from([0.5, 0.9, 0.99]), st.booleans(), st.booleans())
def test_needed_margin_is_where_certification_begins(num_draws, affected, confidence, replacement, exact):
    options = {"replacement": replacement, "law": "exact" if exact else "reported"}
    answer = reported_feasibility(num_draws, affected, 60, confidence, **options)
    counts = [[margin, 0] for margin in range(num_draws + 1)]
    outcome = certify_random_crops_reported(
        counts, num_draws=num_draws, affected=affected, num_views=60, min_confidence=confidence, **options
    )
    assert outcome.certified_N.tolist() == [margin >= answer.needed_margin for margin in range(num_draws + 1)]
    assert answer.feasible == outcome.certified_N.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draws": 0}, "0 draws from 529 views"),
        ({"affected": 530}, "530 affected views of 529 are impossible"),
        ({"affected": -1}, "-1 affected views of 529 are impossible"),
        ({"min_confidence": 1.0}, "min_confidence is 1.0"),
        ({"law": "guessed"}, "law is 'guessed'"),
        ({"num_draws": 600, "replacement": False}, "600 draws without replacement .* there are 529 views"),
        ({"num_draws": 5}, "class has 9 votes, but only 5 crops"),
    ],
)
def test_impossible_draws_are_refused(change, message):
    options = {"num_draws": 128, "affected": 196, "num_views": 529, "min_confidence": 0.95} | change
    with pytest.raises(CertificateError, match=message):
        certify_random_crops_reported([[9, 0]], **options)
