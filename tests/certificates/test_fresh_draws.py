"""Draw laws against fractions, and the certificate of a fresh draw against every draw and a simulated attack."""

from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import incidence_by_pixels, placement_pixels, winner
from view_set_cases import patches_inside, view_sets

from patchcert.certificates import CertificateError, certify_fresh_draw, certify_placement
from patchcert.certificates.draw_laws import losing_probability, losing_probability_bound
from patchcert.geometry import BandViews, CropViews, DrawnViews, Patch

CASES = examples(400)
FEW_CASES = examples(250)


def losing_by_fractions(num_for, num_against, ties_lose, num_views, num_draws, replacement):
    """Sum over every pair of counts, in exact arithmetic."""
    rest, total = num_views - num_for - num_against, Fraction(0)
    for f, a in product(range(num_draws + 1), repeat=2):
        if f + a > num_draws or not (f < a or (f == a and ties_lose)):
            continue
        r = num_draws - f - a
        if replacement:
            ways = comb(num_draws, f) * comb(num_draws - f, a)
            total += Fraction(ways * num_for**f * num_against**a * rest**r, num_views**num_draws)
        else:
            total += Fraction(comb(num_for, f) * comb(num_against, a) * comb(rest, r), comb(num_views, num_draws))
    return float(total)


@CASES
@given(st.integers(1, 30), st.booleans(), st.booleans(), st.data())
def test_losing_probability_is_exact_and_its_bound_above_it(num_views, replacement, ties_lose, data):
    num_for = data.draw(st.integers(0, num_views))
    num_against = data.draw(st.integers(0, num_views - num_for))
    num_draws = data.draw(st.integers(1, 12 if replacement else min(12, num_views)))
    pair = np.array([num_for]), np.array([num_against])
    exact = losing_probability(*pair, np.array([ties_lose]), num_views, num_draws, replacement)[0]
    expected = losing_by_fractions(num_for, num_against, ties_lose, num_views, num_draws, replacement)
    assert exact == pytest.approx(expected, abs=1e-12)
    assert losing_probability_bound(*pair, num_views, num_draws)[0] >= expected - 1e-12


@pytest.mark.parametrize("replacement", [True, False])
def test_losing_probability_stays_exact_at_imagenet_size(replacement):
    arguments = 12_000, 7_500, True, 21_025, 100, replacement
    expected = losing_by_fractions(*arguments)
    exact = losing_probability(np.array([12_000]), np.array([7_500]), np.array([True]), *arguments[3:])[0]
    assert exact == pytest.approx(expected, rel=1e-6, abs=1e-10)


def all_draws(num_views, num_draws, replacement):
    draws = product(range(num_views), repeat=num_draws) if replacement else combinations(range(num_views), num_draws)
    return np.array(list(draws))


def worst_loss(classes, incidence_PV, num_classes, draws):
    """The strongest attacker: place first, then, for each draw, the best rival for all affected views."""
    y = winner(np.bincount(classes, minlength=num_classes))
    worst = 0.0
    for affected in incidence_PV:
        lost = np.zeros(len(draws), dtype=bool)
        for rival in range(num_classes):
            attacked = np.where(affected, rival, classes)[draws]
            counts = (attacked[:, :, None] == np.arange(num_classes)).sum(axis=1)
            lost |= counts.argmax(axis=1) != y
        worst = max(worst, lost.mean())
    return worst


@FEW_CASES
@given(st.data())
def test_confidence_is_never_above_the_share_of_all_draws_that_the_strongest_attacker_cannot_turn(data):
    views, pixels = data.draw(view_sets(max_height=4, max_width=4))
    assume(len(pixels) <= 9)
    patch = data.draw(patches_inside(views.image_size, max_side=2))
    num_classes = data.draw(st.integers(2, 4))
    pool = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=4))
    classes = np.array(data.draw(st.lists(st.sampled_from(pool), min_size=len(pixels), max_size=len(pixels))))
    replacement = data.draw(st.booleans())
    num_draws = data.draw(st.integers(1, 3 if replacement else min(4, len(pixels))))
    incidence = incidence_by_pixels(pixels, placement_pixels(views.image_size, patch.mask))
    loss = worst_loss(classes, incidence, num_classes, all_draws(len(pixels), num_draws, replacement))

    outcome = certify_fresh_draw(
        classes[None],
        views,
        patch,
        num_classes=num_classes,
        num_draws=num_draws,
        min_confidence=0.6,
        replacement=replacement,
    )

    assert outcome.guarantee == "probabilistic"
    assert outcome.predictions_N[0] == winner(np.bincount(classes, minlength=num_classes))
    assert outcome.confidence_N[0] <= 1 - loss + 1e-12
    if num_classes == 2:
        assert outcome.confidence_N[0] == pytest.approx(1 - loss, abs=1e-12), "with one rival the bound is exact"
    assert outcome.certified_N[0] == (outcome.confidence_N[0] >= 0.6)


@pytest.mark.parametrize("replacement", [True, False])
def test_confidence_agrees_with_simulated_draws_under_attack(replacement):
    """12x16 image, 5x6 crops, 3 classes, 20,000 draws of 20 crops: the loss is at most the bound and close to it."""
    views = CropViews(image_size=(12, 16), crop_size=(5, 6))
    patch = Patch(height=1, width=2)
    rng = np.random.default_rng(5)
    classes = rng.choice(3, size=views.num_views, p=[0.03, 0.94, 0.03])
    outcome = certify_fresh_draw(
        classes[None], views, patch, num_classes=3, num_draws=20, min_confidence=0.5, replacement=replacement
    )
    if replacement:
        draws = rng.integers(0, views.num_views, (20_000, 20))
    else:
        draws = np.argsort(rng.random((20_000, views.num_views)), axis=1)[:, :20]
    loss = worst_loss(classes, np.unique(views.incidence(patch, only_undominated=True), axis=0), 3, draws)
    bound = 1 - outcome.confidence_N[0]
    assert 0.05 < bound < 0.95, "the case must have something to show"
    # The maximum over places of simulated shares lies a little above the maximum of their expectations.
    assert loss <= bound + 4 * np.sqrt(bound * (1 - bound) / len(draws))
    assert loss >= 0.85 * bound


def test_more_classes_more_images_and_chunks_give_the_same_confidence():
    views = CropViews(image_size=(8, 10), crop_size=(3, 3))
    rng = np.random.default_rng(1)
    classes = np.where(
        rng.random((30, views.num_views)) < rng.random((30, 1)), 4, rng.integers(0, 40, (30, views.num_views))
    )
    options = {"num_classes": 40, "num_draws": 12, "min_confidence": 0.5}
    patches = [Patch(height=2, width=1), Patch(height=1, width=3)]
    whole = certify_fresh_draw(classes, views, patches, **options)
    parts = certify_fresh_draw(classes, views, patches, **options, chunk_bytes=10_000)
    np.testing.assert_allclose(whole.confidence_N, parts.confidence_N, atol=1e-12)
    each = [certify_fresh_draw(classes, views, patch, **options).confidence_N for patch in patches]
    np.testing.assert_allclose(whole.confidence_N, np.minimum(*each), atol=1e-12)
    for n in range(0, 30, 7):  # the sum over events straight from its definition
        y = whole.predictions_N[n]
        worst = 0.0
        for affected in views.incidence(patches[0]):
            out = np.bincount(classes[n, ~affected], minlength=40)
            voted = [c for c in range(40) if c != y and (classes[n] == c).any()]
            races = [(out[y], affected.sum(), False)] + [(out[y], out[c] + affected.sum(), c < y) for c in voted]
            if y > 0 and min(voted, default=40) > y:
                races.append((out[y], affected.sum(), True))
            num_for, num_against, ties = (np.array(part) for part in zip(*races, strict=True))
            base, *events = losing_probability(num_for, num_against, ties, views.num_views, 12, True)
            worst = max(worst, base + sum(event - base for event in events))
        assert each[0][n] == pytest.approx(max(0.0, 1 - worst), abs=1e-10)


def test_drawing_all_views_without_replacement_is_the_deterministic_certificate():
    views = BandViews(image_size=(5, 11), width=2)
    rng = np.random.default_rng(0)
    classes = np.where(rng.random((200, 11)) < 0.85, 1, rng.integers(0, 3, (200, 11)))
    patch = Patch(height=2, width=2)
    fresh = certify_fresh_draw(
        classes, views, patch, num_classes=3, num_draws=11, min_confidence=0.5, replacement=False
    )
    placement = certify_placement(classes, views, patch, num_classes=3)
    np.testing.assert_array_equal(fresh.certified_N, placement.certified_N)
    assert 0 < placement.certified_N.mean() < 1


@FEW_CASES
@given(st.data())
def test_a_fixed_draw_is_a_view_set_of_its_own(data):
    views, pixels = data.draw(view_sets())
    patch = data.draw(patches_inside(views.image_size))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    drawn = DrawnViews.draw(views, data.draw(st.integers(1, 8)), rng)
    indices = list(drawn.view_indices)
    expected = incidence_by_pixels([pixels[v] for v in indices], placement_pixels(views.image_size, patch.mask))
    np.testing.assert_array_equal(drawn.incidence(patch), expected)
    np.testing.assert_array_equal(drawn.retained(range(len(indices))), views.retained(indices))

    votes = rng.integers(0, 2, (5, views.num_views))
    margin = certify_placement(votes[:, indices], drawn, patch, num_classes=2).margin_N
    for n in range(5):
        drawn_votes = votes[n, indices]
        y = winner(np.bincount(drawn_votes, minlength=2))
        kept = [(drawn_votes[~row] == y).sum() - (drawn_votes[~row] != y).sum() - row.sum() for row in expected]
        assert margin[n] == min(kept) - (y == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draws": 0}, "0 draws from 9 views"),
        ({"num_draws": 10, "replacement": False}, "10 draws without replacement .* there are 9 views"),
        ({"min_confidence": 0.0}, "min_confidence is 0.0"),
        ({"patches": []}, "0 patches"),
        ({"votes": np.zeros((1, 9, 2), dtype=bool)}, "needs one vote of each view"),
    ],
)
def test_impossible_fresh_draws_are_refused(change, message):
    options = {
        "votes": np.zeros((1, 9), dtype=int),
        "views": BandViews(image_size=(8, 9), width=2),
        "patches": Patch(height=2, width=2),
        "num_classes": 2,
        "num_draws": 4,
        "min_confidence": 0.95,
    } | change
    with pytest.raises(CertificateError, match=message):
        certify_fresh_draw(**options)
