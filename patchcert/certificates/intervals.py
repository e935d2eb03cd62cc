"""Counts of successes in, confidence intervals of the share behind them out."""

import numpy as np
from scipy import stats

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
    z = stats.norm.ppf((1 + checked_share(confidence, "The confidence")) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    # Rounding must not push a bound past the share itself at 0 or 1.
    return float(max(0.0, min(centre - half, share))), float(min(1.0, max(centre + half, share)))


def check_successes(successes: int, total: int) -> None:
    """Raise CertificateError unless 0 <= successes <= total and total >= 1."""
    if total < 1 or not 0 <= successes <= total:
        raise CertificateError(
            f"{successes} successes of {total} trials are impossible.\n"
            "  Give at least 1 trial, and successes between 0 and the number of trials."
        )
