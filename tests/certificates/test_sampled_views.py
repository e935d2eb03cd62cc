"""Sampled smoothing against the defining property of the exact bound, and its coverage by simulation."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from patchcert.certificates import CertificateError, certify_sampled, clopper_pearson_lower
from patchcert.geometry import BandViews, Patch, PixelViews

CASES = examples(300)


@CASES
@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0, 0.6), st.sampled_from([0.9, 0.95, 0.999]))
def test_certified_iff_the_clopper_pearson_bound_exceeds_one_half_plus_affected(total, share, affected, confidence):
    votes = round(share * total)
    outcome = certify_sampled(
        [[0, 9]], [[total - votes, votes]], num_samples=total, affected_probability=affected, min_confidence=confidence
    )
    bound = clopper_pearson_lower(votes, total, confidence)
    assert outcome.predictions_N.tolist() == [1]
    if abs(bound - 0.5 - affected) > 1e-9:
        assert outcome.certified_N[0] == (bound > 0.5 + affected)


def test_clopper_pearson_known_values():
    """All 10,000 of 10,000: alpha ** (1 / n). 0 successes: 0. 9 of 10 at 95 %: P[Binomial(10, p) >= 9] = 0.05."""
    assert clopper_pearson_lower(10_000, 10_000) == pytest.approx(0.05 ** (1 / 10_000))
    assert clopper_pearson_lower(0, 10) == 0.0
    p = clopper_pearson_lower(9, 10)
    assert 10 * p**9 * (1 - p) + p**10 == pytest.approx(0.05)


def test_wrong_certificates_are_rarer_than_promised():
    """True share just at 1/2 + P(affected): at most 5 % of 4,000 images may be certified."""
    rng = np.random.default_rng(0)
    votes = rng.binomial(500, 0.7, size=4000)
    counts = np.stack([votes, 500 - votes], axis=1)
    outcome = certify_sampled(np.tile([9, 1], (4000, 1)), counts, num_samples=500, affected_probability=0.2)
    assert 0.02 < outcome.certified_N.mean() < 0.06


def test_sampling_needs_more_than_counting_every_band():
    """DRS Table 6: 28 columns of width 6, a 5x5 patch: P(affected) = 10/28; 10,000 equal votes certify, 86 % do not."""
    affected = BandViews(image_size=(28, 28), width=6).affected_probability(Patch(height=5, width=5))
    assert affected == 10 / 28
    counts = [[10_000, 0], [8_600, 1_400]]
    outcome = certify_sampled(counts, counts, num_samples=10_000, affected_probability=affected)
    assert outcome.certified_N.tolist() == [True, False]
    assert outcome.guarantee == "probabilistic"


def test_sparse_ablation_probability():
    """Levine & Feizi 2019: 1 - C(HW - hw, k) / C(HW, k); k = 5 pixels of MNIST, 5x5 patch."""
    views = PixelViews(image_size=(28, 28), num_pixels=5)
    product = np.prod([(784 - 25 - i) / (784 - i) for i in range(5)])
    assert views.affected_probability(Patch(height=5, width=5)) == pytest.approx(1 - product)


def test_abstentions_and_certain_defeat():
    outcome = certify_sampled([[0, 0]], [[0, 0]], num_samples=100, affected_probability=0.1)
    assert outcome.confidence_N.tolist() == [0.0]
    outcome = certify_sampled([[9, 0]], [[100, 0]], num_samples=100, affected_probability=0.5)
    assert outcome.certified_N.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimation_counts_NK": [[1, 2], [3, 4]]}, r"shape \(1, 2\), but the estimation has \(2, 2\)"),
        ({"affected_probability": 1.5}, "affected probability is 1.5"),
        ({"num_samples": 2}, "3 successes of 2 trials"),
        ({"min_confidence": 1.0}, "min_confidence is 1.0"),
    ],
)
def test_impossible_samples_are_refused(change, message):
    options = {
        "selection_counts_NK": [[1, 2]],
        "estimation_counts_NK": [[1, 2]],
        "num_samples": 3,
        "affected_probability": 0.1,
    } | change
    with pytest.raises(CertificateError, match=message):
        certify_sampled(**options)
