"""Counts of successes in, confidence intervals of the share behind them out."""

import numpy as np
import numpy.typing as npt
from scipy import special

from patchcert.certificates.outcomes import checked_share
from patchcert.errors import CertificateError


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval for a share.

    Args:
        successes: images that count, in [0, total].
        total: images looked at, >= 1.
        confidence: two-sided coverage, in (0, 1).

    Returns:
        (low, high), both in [0, 1], low <= successes / total <= high.

    Raises:
        CertificateError: no image, successes out of range or confidence out of range.

    Source: Wilson 1927.
    Guarantee: probabilistic over the draw of the images, approximate coverage.
    """
    check_successes(successes, total)
    z = special.ndtri((1 + checked_share(confidence, "The confidence")) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    # Rounding must not push a bound past the share itself at 0 or 1.
    return float(max(0.0, min(centre - half, share))), float(min(1.0, max(centre + half, share)))


def clopper_pearson_lower(successes: npt.ArrayLike, total: int, confidence: float = 0.95) -> npt.NDArray[np.float64]:
    """Return the one-sided exact lower bound of a share: the true share lies above it with the given confidence.

    Args:
        successes: trials that count, integers in [0, total], any shape.
        total: trials, >= 1.
        confidence: one-sided coverage, in (0, 1).

    Returns:
        Bounds in [0, 1), of the shape of ``successes``.

    Raises:
        CertificateError: no trial, successes out of range or confidence out of range.

    Source: Clopper & Pearson 1934.
    Guarantee: probabilistic over the trials, coverage at least ``confidence``.
    """
    counts = np.asarray(successes)
    check_successes(int(counts.min(initial=0)), total)
    check_successes(int(counts.max(initial=0)), total)
    alpha = 1 - checked_share(confidence, "The confidence")
    return np.where(counts == 0, 0.0, special.betaincinv(np.maximum(counts, 1), total - counts + 1, alpha))


def check_successes(successes: int, total: int) -> None:
    """Raise CertificateError unless 0 <= successes <= total and total >= 1."""
    if total < 1 or not 0 <= successes <= total:
        raise CertificateError(
            f"{successes} successes of {total} trials are impossible.\n"
            "  Give at least 1 trial, and successes between 0 and the number of trials."
        )
