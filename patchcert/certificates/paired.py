"""Two defenses' results on the same images in, their difference with its uncertainty out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from patchcert.certificates.outcomes import checked_share
from patchcert.errors import CertificateError


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """How two defenses differ on the same images."""

    num_images: int
    """Images that both were measured on."""

    only_first: int
    """Images on which only the first succeeds."""

    only_second: int
    """Images on which only the second succeeds."""

    difference: float
    """Accuracy of the first minus that of the second, in [-1, 1]."""

    low: float
    """Lower end of the bootstrap interval of the difference."""

    high: float
    """Upper end of the bootstrap interval of the difference."""

    p_value: float
    """Exact two-sided McNemar test: the chance of so uneven a split if both were equally good."""


def compare_paired(
    first_N: npt.ArrayLike,
    second_N: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> PairedComparison:
    """Compare two defenses image by image.

    Args:
        first_N: whether the first succeeds (label predicted, or predicted and certified), boolean, shape (N >= 1,).
        second_N: the same for the second, on the same images in the same order.
        rng: source of randomness of the bootstrap.
        confidence: two-sided coverage of the interval, in (0, 1).
        num_resamples: bootstrap resamples, >= 1.

    Raises:
        CertificateError: the arrays are not boolean, differ in length or are empty, or a number is out of range.

    Source: McNemar 1947, exact conditional form; Efron's percentile bootstrap over images.
    Guarantee: probabilistic over the draw of the images; the bootstrap interval has approximate coverage.
    """
    first, second = np.asarray(first_N), np.asarray(second_N)
    if first.dtype != np.bool_ or second.dtype != np.bool_ or first.ndim != 1 or first.shape != second.shape:
        raise CertificateError(
            f"The results have the shapes {first.shape} and {second.shape} and the types {first.dtype} and "
            f"{second.dtype}.\n  Give one boolean per image for each defense, on the same images."
        )
    if not len(first) or num_resamples < 1:
        raise CertificateError(
            f"{len(first)} images and {num_resamples} resamples give no interval.\n  Give at least one of each."
        )
    tail = (1 - checked_share(confidence, "The confidence")) / 2
    num_images = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    # A resample of images is a multinomial draw of the three kinds that matter.
    shares = np.array([only_first, only_second, num_images - discordant]) / num_images
    resampled = rng.multinomial(num_images, shares, size=num_resamples)
    differences = (resampled[:, 0] - resampled[:, 1]) / num_images
    low, high = np.quantile(differences, [tail, 1 - tail])
    return PairedComparison(
        num_images=num_images,
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / num_images,
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * special.bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0,
    )
