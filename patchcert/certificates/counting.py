"""Vote counts and the number of affected views in, verdicts out: the certificate of derandomized smoothing."""

import numpy as np
import numpy.typing as npt

from patchcert.certificates.outcomes import Outcome, checked_counts, predict
from patchcert.errors import CertificateError


def votes_to_flip(counts_NK: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Fewest views an attacker must control to change each prediction.

    Controlling a view moves one vote: one less for the predicted class, one more for a rival.

    Args:
        counts_NK: votes per image and class, integers >= 0, shape (num_images, num_classes >= 2).

    Returns:
        int64, >= 1, shape (num_images,).

    Raises:
        CertificateError: the counts are no such array.

    Source: Levine & Feizi 2020, Theorem 1 (its condition is ``affected < votes_to_flip``).
    Deviation: Eq. 5 of the randomized-cropping paper ignores a tie that the rival wins; this does not.
    Guarantee: deterministic.
    """
    return leads(checked_counts(counts_NK)) // 2 + 1


def certify_counting(
    counts_NK: npt.ArrayLike, affected: int, *, doubtful: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
) -> Outcome:
    """Certify the predictions that survive when the attacker moves ``affected`` votes, wherever those were cast.

    Args:
        counts_NK: votes per image and class, integers >= 0, shape (num_images, num_classes >= 2); views may cast none,
            one or several votes.
        affected: most views that the patch can touch (Delta), >= 0.
        doubtful: votes to be counted for the attacker, whose own they are beside the ``affected`` ones, as the pair of
            certain and possible votes per image and class, both of the shape of ``counts_NK``: those cast however the
            doubtful ones fall, and those that could be cast. Predictions stay those of ``counts_NK``.

    Returns:
        Verdicts with ``margin_N`` = N_y - N_c - 2 Delta for the strongest rival c, one less where c wins ties; with
        doubtful votes N_y are the certain and N_c the possible ones.

    Raises:
        CertificateError: the counts are no such array, certain, cast and possible votes do not rise in this order, or
            ``affected`` is negative or no integer.

    Source: Levine & Feizi 2020, Theorems 1 and 2.
    Guarantee: deterministic.
    """
    counts = checked_counts(counts_NK)
    certain, possible = (counts, counts) if doubtful is None else map(checked_counts, doubtful)
    if certain.shape != counts.shape or possible.shape != counts.shape:
        raise CertificateError(
            f"The certain and possible votes have the shapes {certain.shape} and {possible.shape}, but the counts have "
            f"{counts.shape}.\n  Count all three for the same images and classes."
        )
    if (certain > counts).any() or (counts > possible).any():
        num_outside = int(((certain > counts) | (counts > possible)).sum())
        raise CertificateError(
            f"{num_outside} counts do not lie between their certain and their possible votes.\n"
            "  Give the pair in this order: certain votes, possible votes."
        )
    margin_N = leads(counts, certain, possible) - 2 * checked_affected(affected)
    return Outcome(
        predictions_N=predict(counts), certified_N=margin_N >= 0, guarantee="deterministic", margin_N=margin_N
    )


def leads(
    counts_NK: npt.NDArray[np.int64],
    certain_NK: npt.NDArray[np.int64] | None = None,
    possible_NK: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Return by how many votes each prediction leads its strongest rival, less one if that rival wins ties.

    At least 0 for plain counts; with ``certain_NK`` and ``possible_NK``, the least lead that doubtful votes leave.
    """
    predictions_N = counts_NK.argmax(axis=1)
    own_NK, rivals_NK = (counts_NK if votes is None else votes for votes in (certain_NK, possible_NK))
    rivals_NK = rivals_NK + (np.arange(counts_NK.shape[1]) < predictions_N[:, None])
    np.put_along_axis(rivals_NK, predictions_N[:, None], -1, axis=1)
    return np.take_along_axis(own_NK, predictions_N[:, None], axis=1)[:, 0] - rivals_NK.max(axis=1)


def checked_affected(affected: int) -> int:
    """Return the number of affected views.

    Raises:
        CertificateError: it is negative or no integer.
    """
    if not isinstance(affected, int | np.integer) or affected < 0:
        raise CertificateError(
            f"The number of affected views is {affected!r}, but must be an integer of at least 0.\n"
            "  Take it from the view set: views.affected(patch)."
        )
    return int(affected)
