"""Scores of every view in; which votes rounding might change, and how near each verdict is to changing, out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchcert.certificates.placement import CHUNK_BYTES, certify_placement
from patchcert.errors import CertificateError
from patchcert.geometry import Patch, ViewSet

BoolArray = npt.NDArray[np.bool_]


def doubtful_votes(
    scores_NVK: npt.ArrayLike, tolerance: npt.ArrayLike, *, vote_threshold: float | None = None
) -> BoolArray:
    """Return the votes that change when every score may be off by ``tolerance``.

    Threshold rule: scores within the tolerance of the threshold. Top-class rule: classes within twice the tolerance of
    the top score, and the top class itself if there is such a class.

    Args:
        scores_NVK: finite scores, shape (num_images, num_views, num_classes).
        tolerance: largest error of a score, >= 0; one number, or one per image, shape (num_images,).
        vote_threshold: least score that casts a vote; None: the top class gets the vote.

    Returns:
        Boolean, shape (N, V, K), for the ``doubtful`` of ``certify_placement`` with boolean votes.

    Raises:
        CertificateError: the scores are no such array, or a tolerance is negative.
    """
    scores, tolerance_N11 = _checked_scores(scores_NVK), np.asarray(tolerance, dtype=np.float64).reshape(-1, 1, 1)
    if not (tolerance_N11 >= 0).all():
        raise CertificateError(
            f"The tolerance is {tolerance_N11.min()}, but must be at least 0.\n  Give an error of scores."
        )
    if vote_threshold is not None:
        return np.abs(scores - vote_threshold) <= tolerance_N11
    within = scores.max(axis=2, keepdims=True) - scores <= 2 * tolerance_N11
    return within & (within.sum(axis=2, keepdims=True) > 1)


def cast_votes(scores_NVK: npt.ArrayLike, *, vote_threshold: float | None = None) -> BoolArray:
    """Return the votes that scores cast: score >= threshold, or the (lowest) top class if there is no threshold.

    Args:
        scores_NVK: finite scores, shape (num_images, num_views, num_classes).
        vote_threshold: least score that casts a vote; None: the top class gets the vote.

    Returns:
        Boolean, shape (N, V, K).

    Raises:
        CertificateError: the scores are no such array.
    """
    scores = _checked_scores(scores_NVK)
    if vote_threshold is not None:
        return scores >= vote_threshold
    return scores.argmax(axis=2)[:, :, None] == np.arange(scores.shape[2])


def score_margins(
    scores_NVK: npt.ArrayLike,
    views: ViewSet,
    patches: Patch | Sequence[Patch],
    *,
    vote_threshold: float | None = None,
    max_tolerance: float = 0.1,
    num_halvings: int = 20,
    chunk_bytes: int = CHUNK_BYTES,
) -> npt.NDArray[np.float64]:
    """Return how far all scores may be off before each verdict of ``certify_placement`` might change.

    For a certified image: the largest error that leaves it certified with every doubtful vote counted for the attacker.
    For any other: the smallest error that might make it certified, every doubtful vote counted for the prediction.

    Args:
        scores_NVK: finite scores, shape (num_images, num_views, num_classes).
        views: the view set of the scores.
        patches: one patch, or several that must all be withstood.
        vote_threshold: least score that casts a vote; None: the top class gets the vote.
        max_tolerance: where the search ends; images whose verdict holds that far get this value.
        num_halvings: steps of the bisection; the result is exact to max_tolerance / 2**num_halvings.
        chunk_bytes: as for ``certify_placement``.

    Returns:
        float64, in [0, max_tolerance], shape (num_images,).

    Raises:
        CertificateError: the scores do not fit the view set, or the search range is empty.
        GeometryError: a patch is larger than the image.

    Guarantee: deterministic.
    """
    if not max_tolerance > 0 or num_halvings < 1:
        raise CertificateError(
            f"A search up to {max_tolerance} in {num_halvings} halvings finds nothing.\n"
            "  Give a positive max_tolerance and at least 1 halving."
        )
    votes_NVK = cast_votes(scores_NVK, vote_threshold=vote_threshold)
    outcome = certify_placement(votes_NVK, views, patches, chunk_bytes=chunk_bytes)
    own_NVK = np.arange(votes_NVK.shape[2]) == outcome.predictions_N[:, None, None]

    def verdict_holds(tolerance_N: npt.NDArray[np.float64]) -> BoolArray:
        doubtful_NVK = doubtful_votes(scores_NVK, tolerance_N, vote_threshold=vote_threshold)
        against = certify_placement(votes_NVK, views, patches, doubtful=doubtful_NVK, chunk_bytes=chunk_bytes)
        favoured_NVK = np.where(doubtful_NVK, own_NVK, votes_NVK)
        in_favour = certify_placement(favoured_NVK, views, patches, chunk_bytes=chunk_bytes)
        could_hold_N = in_favour.certified_N & (in_favour.predictions_N == outcome.predictions_N)
        return np.where(outcome.certified_N, against.certified_N, ~could_hold_N)

    holds_N, changes_N = np.zeros(len(votes_NVK)), np.full(len(votes_NVK), max_tolerance)
    holds_to_the_end_N = verdict_holds(changes_N)
    for _ in range(num_halvings):
        middle_N = (holds_N + changes_N) / 2
        still_N = verdict_holds(middle_N)
        holds_N = np.where(still_N, middle_N, holds_N)
        changes_N = np.where(still_N, changes_N, middle_N)
    return np.where(holds_to_the_end_N, max_tolerance, holds_N)


def _checked_scores(scores_NVK: npt.ArrayLike) -> npt.NDArray[np.float64]:
    scores = np.asarray(scores_NVK, dtype=np.float64)
    if scores.ndim != 3 or not np.isfinite(scores).all():
        raise CertificateError(
            f"The scores have the shape {scores.shape}; {int((~np.isfinite(scores)).sum())} of them are not finite.\n"
            "  Give finite scores of the shape (images, views, classes)."
        )
    return scores
