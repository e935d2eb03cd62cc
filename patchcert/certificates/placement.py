"""Votes of every view in, verdicts out: the exact certificate against a patch at every place it may take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchcert.certificates.ballots import Ballots
from patchcert.certificates.outcomes import Outcome
from patchcert.errors import CertificateError
from patchcert.geometry import Patch, ViewSet
from patchcert.geometry.affected import AffectedViews

IntArray = npt.NDArray[np.int64]
CHUNK_BYTES = 2**24
_FAR = np.iinfo(np.int64).max


def certify_placement(
    votes: npt.ArrayLike,
    views: ViewSet,
    patches: Patch | Sequence[Patch],
    *,
    num_classes: int | None = None,
    doubtful: npt.ArrayLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Outcome:
    """Certify the predictions that no patch changes, whatever the affected views vote at its worst place.

    A prediction y holds against a patch at placement l iff its votes outside the affected views A(l) beat those of each
    rival c outside A(l) plus one from every view in A(l); a class without votes is a rival too.

    Args:
        votes: bool (N, V, K), none, one or several votes a view; or integer classes (N, V) with ``num_classes``.
        views: the view set that the votes were cast on, V views.
        patches: one patch, or several: then certified means certified against each of them.
        num_classes: K; needed for integer votes.
        doubtful: votes to be counted for the attacker wherever the patch lies (see ``doubtful_votes``), boolean, of
            the shape of ``votes``; a doubtful integer vote may go to any class. Predictions stay those of ``votes``.
        chunk_bytes: bound on the working memory, beyond the votes themselves, in bytes; at least one image's worth is
            always used.

    Returns:
        Verdicts with ``margin_N`` = min over patches, placements and rivals of N_y - N_y^A - (N_c - N_c^A) - a(l), one
        less where c wins ties.

    Raises:
        CertificateError: the votes, their doubts and the view set do not fit together, or no patch is given.
        GeometryError: a patch is larger than the image.

    Source: Levine & Feizi 2020, Theorems 1 and 2, sharpened per placement (as PatchGuard does for its own votes).
    Guarantee: deterministic; exact for an attacker who controls every affected view freely.
    """
    patches = [patches] if isinstance(patches, Patch) else list(patches)
    if not patches:
        raise CertificateError("There are 0 patches to certify against, but at least 1 is needed.\n  Give a patch.")
    ballots = Ballots(votes, views.num_views, num_classes, doubtful)
    affected = [views.affected_views(patch) for patch in patches]
    predictions_N = np.zeros(ballots.num_images, dtype=np.int64)
    margin_N = np.zeros(ballots.num_images, dtype=np.int64)
    for images in image_chunks(ballots, np.arange(ballots.num_images), affected, chunk_bytes):
        tally = Tally(ballots, images)
        predictions_N[images] = tally.predictions_B
        margin_N[images] = np.min([tally.margins(sets, chunk_bytes) for sets in affected], axis=0)
    return Outcome(predictions_N=predictions_N, certified_N=margin_N >= 0, guarantee="deterministic", margin_N=margin_N)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementFailures:
    """Where a patch can lie to change predictions, over N images and P placements (row-major places of its box)."""

    images_P: IntArray
    """How many of the images the patch can change at each placement, int64, shape (P,); adds up over parts."""

    placements_N: IntArray
    """At how many placements the patch can change each image, int64, shape (N,); 0 iff it is certified."""

    worst_N: IntArray
    """The placement with the least margin, the first of equal ones, int64, shape (N,)."""


def failing_placements(
    votes: npt.ArrayLike,
    views: ViewSet,
    patch: Patch,
    *,
    num_classes: int | None = None,
    doubtful: npt.ArrayLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> PlacementFailures:
    """Find where the patch can lie to change predictions: the placements at which ``certify_placement`` fails.

    Args:
        votes: as for ``certify_placement``.
        views: as for ``certify_placement``.
        patch: the footprint.
        num_classes: as for ``certify_placement``.
        doubtful: as for ``certify_placement``.
        chunk_bytes: as for ``certify_placement``.

    Raises:
        CertificateError: the votes, their doubts and the view set do not fit together.
        GeometryError: the patch is larger than the image.

    Guarantee: deterministic; exact for an attacker who controls every affected view freely.
    """
    ballots = Ballots(votes, views.num_views, num_classes, doubtful)
    affected = views.affected_views(patch, every_placement=True)
    images_P = np.zeros(math.prod(patch.placements(views.image_size)), dtype=np.int64)
    placements_N, worst_N = np.zeros((2, ballots.num_images), dtype=np.int64)
    for images in image_chunks(ballots, np.arange(ballots.num_images), [affected], chunk_bytes):
        margin_BP = Tally(ballots, images).margins_by_placement(affected, chunk_bytes)
        images_P += (margin_BP < 0).sum(axis=0)
        placements_N[images] = (margin_BP < 0).sum(axis=1)
        worst_N[images] = margin_BP.argmin(axis=1)
    return PlacementFailures(images_P=images_P, placements_N=placements_N, worst_N=worst_N)


def image_chunks(
    ballots: Ballots, images: IntArray, affected: Sequence[AffectedViews], chunk_bytes: int
) -> list[IntArray]:
    """Split images so that the work on one chunk stays within ``chunk_bytes``."""
    if chunk_bytes < 1:
        raise CertificateError(f"chunk_bytes is {chunk_bytes}, but must be at least 1.\n  Give a number of bytes.")
    votes = ballots.num_views * (8 if ballots.is_top_class else ballots.num_classes)
    bytes_per_image = votes + 32 * ballots.num_classes + max(sets.bytes_per_plane for sets in affected)
    images_per_chunk = max(1, chunk_bytes // bytes_per_image)
    return [images[start : start + images_per_chunk] for start in range(0, len(images), images_per_chunk)]


class Tally:
    """Counts and predictions of a chunk of B images, from which the margin against any patch is found.

    Args:
        ballots: all votes.
        images: the images of the chunk, shape (B,).
    """

    def __init__(self, ballots: Ballots, images: IntArray) -> None:
        self._ballots, self._images = ballots, images
        counts_BK, certain_BK, self._possible_BK = ballots.counts(images)
        self._rows_B = np.arange(len(images))
        self.predictions_B: IntArray = counts_BK.argmax(axis=1)
        self._own_B = certain_BK[self._rows_B, self.predictions_B]
        self._own_planes_BV = ballots.certain_planes(images, self.predictions_B)
        # A rival that wins ties needs one vote less.
        self._ties_BK = (np.arange(ballots.num_classes) < self.predictions_B[:, None]).astype(np.int64)

    def margins(self, affected: AffectedViews, chunk_bytes: int) -> IntArray:
        """Return the least margin over all placements and rivals, int64, shape (B,).

        At most ``possible`` votes of a rival lie outside the affected views, so that its margin is at least the margin
        without it less those; only rivals that could thereby undercut the strongest one are summed over placements.
        """
        kept_BP = self._own_B.astype(np.int32)[:, None] - affected.counts_P.astype(np.int32)
        kept_BP -= affected.sums(self._own_planes_BV)
        floor_BK = kept_BP.min(axis=1)[:, None] - self._possible_BK - self._ties_BK
        floor_BK[self._rows_B, self.predictions_B] = _FAR
        # A rival without votes has nothing to lose, so its margin is its floor.
        has_votes_BK = self._possible_BK > 0
        margin_B = np.where(has_votes_BK, _FAR, floor_BK).min(axis=1)
        floor_BK[~has_votes_BK] = _FAR

        strongest_B = floor_BK.argmin(axis=1)
        near_B = np.flatnonzero(floor_BK[self._rows_B, strongest_B] < margin_B)
        self._lower(margin_B, kept_BP, affected, chunk_bytes, near_B, strongest_B[near_B])
        floor_BK[self._rows_B, strongest_B] = _FAR
        self._lower(margin_B, kept_BP, affected, chunk_bytes, *np.nonzero(floor_BK < margin_B[:, None]))
        return margin_B

    def margins_by_placement(self, affected: AffectedViews, chunk_bytes: int) -> IntArray:
        """Return the least margin over rivals at every placement, int64, shape (B, P).

        It is exact wherever it is negative or the least of its image, and an upper bound elsewhere: rivals that are
        neither are not summed over.
        """
        kept_BP = self._own_B.astype(np.int32)[:, None] - affected.counts_P.astype(np.int32)
        kept_BP -= affected.sums(self._own_planes_BV)
        floor_BK = kept_BP.min(axis=1)[:, None] - self._possible_BK - self._ties_BK
        floor_BK[self._rows_B, self.predictions_B] = _FAR
        # Of the rivals without votes only the ties differ; where every rival has votes the bound is the kept votes.
        has_votes_BK = self._possible_BK > 0
        without_votes_BK = np.where(has_votes_BK, 0, self._ties_BK)
        margin_BP = kept_BP.astype(np.int64) - without_votes_BK.max(axis=1)[:, None]
        no_such_B = (has_votes_BK | (floor_BK == _FAR)).all(axis=1)
        margin_BP[no_such_B] = _FAR
        least_B = self.margins(affected, chunk_bytes)
        rows, rivals = np.nonzero(has_votes_BK & (floor_BK <= np.maximum(least_B, -1)[:, None]))
        step = max(1, chunk_bytes // (affected.bytes_per_plane + self._ballots.num_views))
        for start in range(0, len(rows), step):
            row, rival = rows[start : start + step], rivals[start : start + step]
            rival_BP = kept_BP[row] + affected.sums(self._ballots.possible_planes(self._images[row], rival))
            needed = self._possible_BK[row, rival] + self._ties_BK[row, rival]
            np.minimum.at(margin_BP, row, rival_BP - needed[:, None])
        return margin_BP

    def _lower(
        self,
        margin_B: IntArray,
        kept_BP: npt.NDArray[np.int32],
        affected: AffectedViews,
        chunk_bytes: int,
        rows: IntArray,
        rivals: IntArray,
    ) -> None:
        """Lower ``margin_B`` in place to the margins of the given pairs of a row and a rival."""
        step = max(1, chunk_bytes // (affected.bytes_per_plane + self._ballots.num_views))
        for start in range(0, len(rows), step):
            row, rival = rows[start : start + step], rivals[start : start + step]
            rival_affected = affected.sums(self._ballots.possible_planes(self._images[row], rival))
            least = (kept_BP[row] + rival_affected).min(axis=1)
            np.minimum.at(margin_B, row, least - self._possible_BK[row, rival] - self._ties_BK[row, rival])
