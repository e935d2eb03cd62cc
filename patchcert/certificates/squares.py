"""Votes of every view in, the largest certified square of each image out, and certified accuracy against area."""

import numpy as np
import numpy.typing as npt

from patchcert.certificates.ballots import Ballots
from patchcert.certificates.placement import CHUNK_BYTES, Tally, image_chunks
from patchcert.errors import CertificateError
from patchcert.geometry import Patch, ViewSet


def largest_certified_square(
    votes: npt.ArrayLike,
    views: ViewSet,
    *,
    num_classes: int | None = None,
    doubtful: npt.ArrayLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> npt.NDArray[np.int64]:
    """Return the side p of the largest square patch that cannot change each prediction, by ``certify_placement``.

    A square at any place holds a smaller one at each of its places, so that everything below p is certified too.

    Args:
        votes: as for ``certify_placement``.
        views: as for ``certify_placement``.
        num_classes: as for ``certify_placement``.
        doubtful: as for ``certify_placement``.
        chunk_bytes: as for ``certify_placement``.

    Returns:
        Pixels, int64, in [0, shorter side of the image], shape (num_images,); 0: no square is certified.

    Raises:
        CertificateError: the votes, their doubts and the view set do not fit together.

    Guarantee: deterministic.
    """
    ballots = Ballots(votes, views.num_views, num_classes, doubtful)
    largest_N = np.zeros(ballots.num_images, dtype=np.int64)
    images = np.arange(ballots.num_images)
    for side in range(1, min(views.image_size) + 1):
        affected = views.affected_views(Patch(height=side, width=side))
        for chunk in image_chunks(ballots, images, [affected], chunk_bytes):
            largest_N[chunk] += Tally(ballots, chunk).margins(affected, chunk_bytes) >= 0
        images = images[largest_N[images] == side]
    return largest_N


def certified_accuracy_by_side(
    largest_N: npt.ArrayLike, predictions_N: npt.ArrayLike, labels_N: npt.ArrayLike, max_side: int
) -> npt.NDArray[np.float64]:
    """Return the certified accuracy against squares of side 0 (clean accuracy), 1, ..., ``max_side``.

    Args:
        largest_N: from ``largest_certified_square``, shape (num_images >= 1,).
        predictions_N: predicted classes, shape (num_images,).
        labels_N: true classes, shape (num_images,).
        max_side: last side of the curve, in pixels, >= 0.

    Returns:
        Shares of all images in [0, 1], never rising, shape (max_side + 1,).

    Raises:
        CertificateError: the three arrays have different lengths or no image.
    """
    largest, predictions, labels = (np.asarray(values) for values in (largest_N, predictions_N, labels_N))
    if not len(largest) or not largest.shape == predictions.shape == labels.shape:
        raise CertificateError(
            f"There are {largest.shape} largest squares, {predictions.shape} predictions and {labels.shape} labels.\n"
            "  Give one of each per image, and at least one image."
        )
    holds = largest[:, None] >= np.arange(max_side + 1)
    return (holds & (predictions == labels)[:, None]).mean(axis=0)
