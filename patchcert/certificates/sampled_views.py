"""Votes of sampled views in, verdicts that hold with a stated confidence out: the estimate of randomized smoothing."""

import numpy as np
import numpy.typing as npt
from scipy import special

from patchcert.certificates.intervals import check_successes
from patchcert.certificates.outcomes import Outcome, checked_counts, checked_share, predict
from patchcert.errors import CertificateError


def certify_sampled(
    selection_counts_NK: npt.ArrayLike,
    estimation_counts_NK: npt.ArrayLike,
    *,
    num_samples: int,
    affected_probability: float,
    min_confidence: float = 0.95,
) -> Outcome:
    """Certify the classes whose share of all views exceeds one half by more than the patch can touch.

    A few samples choose the class y, so that the many others estimate its share p_y without bias. The one-sided
    Clopper-Pearson bound of p_y at ``min_confidence`` must exceed 1/2 + P(affected): then y keeps more than half of all
    views under every attack.

    Args:
        selection_counts_NK: top-class votes of the samples that choose (n0 = 1,000 in the papers), integers >= 0.
        estimation_counts_NK: top-class votes of independent samples (n = 10,000 in the papers), same shape.
        num_samples: samples behind each row of ``estimation_counts_NK`` (n), >= 1; views may abstain.
        affected_probability: greatest probability that a sampled view is affected, in [0, 1]
            (``affected_probability(patch)`` of the view set).
        min_confidence: confidence of the bound, in (0, 1).

    Returns:
        Verdicts with ``confidence_N``, the confidence at which each would just be certified: 1 - P[Binomial(n,
        1/2 + P(affected)) >= votes for y]; certified iff it exceeds ``min_confidence``.

    Raises:
        CertificateError: counts or numbers are out of range or do not fit together.

    Source: Cohen et al. 2019 (CERTIFY), as used by Levine & Feizi 2020, Tables 2 and 6.
    Guarantee: probabilistic over the samples, per image: a wrong certificate has a chance of at most
        1 - ``min_confidence``.
    """
    selection, estimation = checked_counts(selection_counts_NK), checked_counts(estimation_counts_NK)
    if selection.shape != estimation.shape:
        raise CertificateError(
            f"The selection has the shape {selection.shape}, but the estimation has {estimation.shape}.\n"
            "  Sample both for the same images and classes."
        )
    if not 0 <= affected_probability <= 1:
        raise CertificateError(
            f"The affected probability is {affected_probability}, but must lie in [0, 1].\n"
            "  Take it from the view set: views.affected_probability(patch)."
        )
    check_successes(int(estimation.sum(axis=1).max(initial=0)), num_samples)
    predictions_N = predict(selection)
    votes_N = np.take_along_axis(estimation, predictions_N[:, None], axis=1)[:, 0]
    needed = min(0.5 + affected_probability, 1.0)
    # P[Binomial(n, needed) < votes], as an incomplete beta function.
    confidence_N = np.where(
        votes_N == 0, 0.0, special.betainc(num_samples - votes_N + 1, np.maximum(votes_N, 1), 1 - needed)
    )
    return Outcome(
        predictions_N=predictions_N,
        certified_N=confidence_N > checked_share(min_confidence, "min_confidence"),
        guarantee="probabilistic",
        confidence_N=confidence_N,
    )
