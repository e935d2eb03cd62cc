"""Vote counts of a random draw of crops in, the confidence of the randomized-cropping paper out. Not a theorem."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from patchcert.certificates.draw_laws import check_draw, marked_draws_pmf
from patchcert.certificates.outcomes import Outcome, checked_counts, checked_share, predict
from patchcert.errors import CertificateError

Law = Literal["reported", "exact"]


@dataclass(frozen=True, kw_only=True)
class Feasibility:
    """Whether any tally of a draw could be certified by ``certify_random_crops_reported``."""

    feasible: bool
    """Whether a draw in which all crops agree is certified."""

    needed_margin: int
    """Smallest difference of the two largest counts that is certified; more than the number of crops if infeasible."""

    text: str
    """The same in one sentence."""


def certify_random_crops_reported(
    counts_NK: npt.ArrayLike,
    *,
    num_draws: int,
    affected: int,
    num_views: int,
    min_confidence: float,
    replacement: bool = True,
    law: Law = "reported",
) -> Outcome:
    """Give each prediction the confidence p_c that fewer crops of one draw are affected than would flip it.

    n_2to1 = floor((n_1 - n_2) / 2) + 1 for the two largest counts; p_c is the probability that at most n_2to1 - 1 of
    ``num_draws`` crops are affected.

    Args:
        counts_NK: top-class votes of the drawn crops, integers >= 0, shape (num_images, num_classes >= 2).
        num_draws: crops drawn for each image (n), >= 1.
        affected: crops that the patch can touch (n_adv, Delta), in [0, num_views].
        num_views: crops that could be drawn (n_all, V), >= 1.
        min_confidence: p_c from which a prediction is called certified, in (0, 1).
        replacement: whether a crop can be drawn twice.
        law: without replacement, ``reported`` is the paper's Poisson binomial (crop i is affected with probability
            n_adv / (n_all - i), at most 1), ``exact`` the hypergeometric law. With replacement both are the binomial.

    Returns:
        Verdicts with ``confidence_N`` = p_c.

    Raises:
        CertificateError: counts or numbers are out of range, the law is unknown, or more crops are drawn without
            replacement than there are.

    Source: the randomized-cropping paper, Eq. 2-6 and Appendix C.
    Deviation: none; the confidence is kept as published to reproduce its numbers. It ignores a tie that the rival wins,
        and it treats the votes and the overlaps of one draw as independent. Sound: ``certify_fresh_draw``.
    Guarantee: heuristic.
    """
    counts = checked_counts(counts_NK)
    min_confidence = checked_share(min_confidence, "min_confidence")
    by_lead = reported_confidences(num_draws, affected, num_views, replacement=replacement, law=law)
    if counts.size and counts.max() > num_draws:
        raise CertificateError(
            f"A class has {counts.max()} votes, but only {num_draws} crops are drawn.\n"
            "  Count the votes of the drawn crops, one vote a crop."
        )
    largest_N2 = np.partition(counts, -2, axis=1)[:, -2:]
    confidence_N = by_lead[largest_N2[:, 1] - largest_N2[:, 0]]
    return Outcome(
        predictions_N=predict(counts),
        certified_N=confidence_N >= min_confidence,
        guarantee="heuristic",
        confidence_N=confidence_N,
    )


def reported_confidences(
    num_draws: int, affected: int, num_views: int, *, replacement: bool = True, law: Law = "reported"
) -> npt.NDArray[np.float64]:
    """Return p_c of ``certify_random_crops_reported`` for every lead n_1 - n_2 that a tally can have.

    Args:
        num_draws: crops drawn for each image, >= 1.
        affected: crops that the patch can touch, in [0, num_views].
        num_views: crops that could be drawn, >= 1.
        replacement: whether a crop can be drawn twice.
        law: as for ``certify_random_crops_reported``.

    Returns:
        Confidences in [0, 1] for the leads 0, 1, ..., num_draws, never falling, shape (num_draws + 1,).

    Raises:
        CertificateError: a number is out of range.

    Guarantee: heuristic.
    """
    at_most = _affected_draws_cdf(num_draws, affected, num_views, replacement, law)
    return at_most[np.arange(num_draws + 1) // 2]


def reported_feasibility(
    num_draws: int,
    affected: int,
    num_views: int,
    min_confidence: float,
    *,
    replacement: bool = True,
    law: Law = "reported",
) -> Feasibility:
    """Say whether any tally could be certified by ``certify_random_crops_reported``, and the margin that it needs.

    Args:
        num_draws: crops drawn for each image, >= 1.
        affected: crops that the patch can touch, in [0, num_views].
        num_views: crops that could be drawn, >= 1.
        min_confidence: confidence asked for, in (0, 1).
        replacement: whether a crop can be drawn twice.
        law: as for ``certify_random_crops_reported``.

    Raises:
        CertificateError: a number is out of range.
    """
    at_most = _affected_draws_cdf(num_draws, affected, num_views, replacement, law)
    needed = 2 * int(np.argmax(at_most >= checked_share(min_confidence, "min_confidence")))
    feasible = needed <= num_draws
    need = f"a margin of {needed} of {num_draws} votes is needed for a confidence of {min_confidence:g}"
    return Feasibility(feasible=feasible, needed_margin=needed, text=need if feasible else f"infeasible: {need}")


def _affected_draws_cdf(
    num_draws: int, affected: int, num_views: int, replacement: bool, law: Law
) -> npt.NDArray[np.float64]:
    """Return P[at most m of the drawn crops are affected] for m = 0 ... num_draws."""
    check_draw(num_draws, num_views, replacement)
    if not 0 <= affected <= num_views:
        raise CertificateError(
            f"{affected} affected views of {num_views} are impossible.\n"
            "  Take the number from the view set: views.affected(patch)."
        )
    if law not in ("reported", "exact"):
        raise CertificateError(f"The law is {law!r}, but only 'reported' and 'exact' exist.\n  Choose one of them.")
    if replacement or law == "exact":
        pmf = marked_draws_pmf(num_draws, affected, num_views, replacement, np.arange(num_draws + 1))
    else:
        pmf = np.zeros(num_draws + 1)
        pmf[0] = 1.0
        for i in range(num_draws):
            p = min(1.0, affected / (num_views - i))
            pmf[1:] = pmf[1:] * (1 - p) + pmf[:-1] * p
            pmf[0] *= 1 - p
    at_most = np.minimum(np.cumsum(pmf), 1.0)
    at_most[-1] = 1.0  # whatever rounding says, no more than all are affected
    return at_most
