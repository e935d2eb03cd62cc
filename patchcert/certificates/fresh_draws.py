"""Top-class votes of every view in, a proven confidence for defenses that draw their views anew for each answer out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchcert.certificates.ballots import Ballots
from patchcert.certificates.draw_laws import check_draw, losing_probability, losing_probability_bound
from patchcert.certificates.outcomes import Outcome, checked_share
from patchcert.certificates.placement import CHUNK_BYTES, image_chunks
from patchcert.errors import CertificateError
from patchcert.geometry import Patch, ViewSet
from patchcert.geometry.affected import AffectedViews

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Below this, a bound on a probability stands for it: it changes the confidence by less than its rounding error.
_NEGLIGIBLE = 1e-15


def certify_fresh_draw(
    votes: npt.ArrayLike,
    views: ViewSet,
    patches: Patch | Sequence[Patch],
    *,
    num_classes: int,
    num_draws: int,
    min_confidence: float,
    replacement: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> Outcome:
    """Bound from below the probability that a fresh draw of views still predicts what all views together predict.

    For a patch at placement l, y loses to a rival c only in the event E_c that the drawn views that vote for y outside
    A(l) do not beat those that vote for c outside A(l) or lie in A(l). Each E_c contains the event E_0 that those for y
    outside A(l) are fewer than those in A(l), so that some E_c occurs with probability at most
    P(E_0) + sum over c of (P(E_c) - P(E_0)). All are computed exactly; the confidence is one minus the greatest such
    sum over patches and placements.

    Args:
        votes: the class that each view votes for, integers in [0, num_classes), shape (N, V).
        views: the view set that the votes were cast on, V views.
        patches: one patch, or several, of which the attacker picks one.
        num_classes: K; classes without votes are rivals too.
        num_draws: views drawn for one answer (n), >= 1.
        min_confidence: confidence from which a prediction is called certified, in (0, 1).
        replacement: whether a view can be drawn twice.
        chunk_bytes: bound on the working memory, beyond the votes themselves, in bytes.

    Returns:
        Verdicts with ``confidence_N``, exact up to a rounding error of about 1e-8.

    Raises:
        CertificateError: votes and view set do not fit together, or a number is out of range.
        GeometryError: a patch is larger than the image.

    Source: the defense is that of the randomized-cropping paper; this certificate replaces its Eq. 2-6.
    Deviation: the plain sum of all P(E_c) counts E_0 once for every rival, which certifies nothing at 1,000 classes.
    Guarantee: probabilistic over the draw, for an attacker who knows the model, fixes the place before the draw and
        controls every affected view freely, even after seeing the draw. An attacker who also picks the place after the
        draw is not covered: the maximum over places stands outside the probability.
    """
    patches = [patches] if isinstance(patches, Patch) else list(patches)
    if not patches:
        raise CertificateError("There are 0 patches to certify against, but at least 1 is needed.\n  Give a patch.")
    min_confidence = checked_share(min_confidence, "min_confidence")
    check_draw(num_draws, views.num_views, replacement)
    ballots = Ballots(votes, views.num_views, num_classes)
    if not ballots.is_top_class:
        raise CertificateError(
            "The votes are booleans (images, views, classes), but a fresh draw needs one vote of each view.\n"
            "  Give integer classes (images, views)."
        )
    affected = [views.affected_views(patch) for patch in patches]
    predictions_N = np.zeros(ballots.num_images, dtype=np.int64)
    flip_probability_N = np.zeros(ballots.num_images)
    # Every rival with votes takes a plane of its own.
    bytes_for_one_plane = max(1, chunk_bytes // min(num_classes, views.num_views))
    for images in image_chunks(ballots, np.arange(ballots.num_images), affected, bytes_for_one_plane):
        counts_BK = ballots.counts(images)[0]
        predictions_N[images] = counts_BK.argmax(axis=1)
        worst = [
            _Rivals(ballots, images, counts_BK, sets).worst_sum(num_draws, replacement, chunk_bytes)
            for sets in affected
        ]
        flip_probability_N[images] = np.max(worst, axis=0)
    confidence_N = 1 - np.minimum(flip_probability_N, 1.0)
    return Outcome(
        predictions_N=predictions_N,
        certified_N=confidence_N >= min_confidence,
        guarantee="probabilistic",
        confidence_N=confidence_N,
    )


class _Rivals:
    """The races of every prediction of B images against each rival (E of them) at each placement (P).

    The last 2 B races are those against a rival without votes, one that wins ties (E_s) and one that loses them (E_0).
    A rival with votes contains E_0, and E_s too if it wins ties. ``weight`` says how often each race counts.
    """

    def __init__(self, ballots: Ballots, images: IntArray, counts_BK: IntArray, affected: AffectedViews) -> None:
        self._num_views = ballots.num_views
        num_images, rows_B, predictions_B = len(images), np.arange(len(images)), counts_BK.argmax(axis=1)
        own_B = counts_BK[rows_B, predictions_B]
        self._for_BP = own_B[:, None] - affected.sums(ballots.certain_planes(images, predictions_B))

        wins_ties_BK = np.arange(ballots.num_classes) < predictions_B[:, None]
        is_rival_BK = np.arange(ballots.num_classes) != predictions_B[:, None]
        row, rival = np.nonzero(is_rival_BK & (counts_BK > 0))
        voted_EP = counts_BK[row, rival][:, None] - affected.sums(ballots.certain_planes(images[row], rival))
        silent_EP = np.zeros((2 * num_images, len(affected.counts_P)), dtype=np.int64)
        # E_s is an event of its own only where every rival that wins ties is without votes.
        silent_B = wins_ties_BK.any(axis=1) & ~(wins_ties_BK & (counts_BK > 0)).any(axis=1)
        num_events_B = (is_rival_BK & (counts_BK > 0)).sum(axis=1) + silent_B

        self._row_E = np.concatenate([row, rows_B, rows_B])
        self._against_EP = np.concatenate([voted_EP, silent_EP]) + affected.counts_P
        self._ties_lose_E = np.concatenate([wins_ties_BK[row, rival], np.repeat([True, False], num_images)])
        self._weight_E = np.concatenate([np.ones(len(row), dtype=np.int64), silent_B, 1 - num_events_B])

    def worst_sum(self, num_draws: int, replacement: bool, chunk_bytes: int) -> FloatArray:
        """Return the greatest sum, over placements, of the probabilities to lose against each rival, shape (B,).

        Bounds that cost little pick the likely worst placement, and rule out most of the others.
        """
        bound_EP = losing_probability_bound(self._for_BP[self._row_E], self._against_EP, self._num_views, num_draws)
        bound_BP = np.zeros(self._for_BP.shape)
        np.add.at(bound_BP, self._row_E, np.maximum(self._weight_E, 0)[:, None] * bound_EP)
        first_BP = bound_BP.argmax(axis=1)[:, None] == np.arange(bound_BP.shape[1])

        def sums(look_BP: npt.NDArray[np.bool_]) -> FloatArray:
            race, place = np.nonzero(look_BP[self._row_E] & (self._weight_E != 0)[:, None])
            probability = bound_EP[race, place]
            exact = probability > _NEGLIGIBLE
            probability[~exact & (self._weight_E[race] < 0)] = 0.0  # a bound may be added, not taken away
            probability[exact] = self._losing(race[exact], place[exact], num_draws, replacement, chunk_bytes)
            total_BP = np.zeros(self._for_BP.shape)
            np.add.at(total_BP, (self._row_E[race], place), self._weight_E[race] * probability)
            return total_BP.max(axis=1)

        worst_B = sums(first_BP)
        undecided_BP = (bound_BP > worst_B[:, None]) & (worst_B < 1)[:, None] & ~first_BP
        return np.maximum(worst_B, sums(undecided_BP))

    def _losing(
        self, race: IntArray, place: IntArray, num_draws: int, replacement: bool, chunk_bytes: int
    ) -> FloatArray:
        """Return the exact probabilities of the given races, each distinct one computed once."""
        num_for = self._for_BP[self._row_E[race], place]
        keys = (num_for * (self._num_views + 1) + self._against_EP[race, place]) * 2 + self._ties_lose_E[race]
        distinct, inverse = np.unique(keys, return_inverse=True)
        pairs, ties_lose = np.divmod(distinct, 2)
        distinct_for, distinct_against = np.divmod(pairs, self._num_views + 1)
        step = max(1, chunk_bytes // (100 * (num_draws + 1)))
        parts = [
            losing_probability(
                distinct_for[start : start + step],
                distinct_against[start : start + step],
                ties_lose[start : start + step] == 1,
                self._num_views,
                num_draws,
                replacement,
            )
            for start in range(0, len(distinct), step)
        ]
        return np.concatenate([np.zeros(0), *parts])[inverse]
