"""Which images are scored again, and what a sample of that size would have shown."""

import math

import numpy as np

_FRACTION = 0.05


def sampled(rows: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """Draw images without replacement.

    Args:
        rows: rows of the images that have votes, int64, ascending, shape (N,).
        num_images: size of the sample; all rows are taken if there are no more.
        seed: of the draw.

    Returns:
        Rows of the sample, ascending, shape (min(N, num_images),).
    """
    chosen = np.random.default_rng(seed).choice(len(rows), size=min(len(rows), num_images), replace=False)
    return np.sort(rows[chosen])


def chance_to_see(num_forged: int, num_images: int, num_sampled: int) -> float:
    """Return the probability that a sample holds at least one of the forged images, in [0, 1].

    Args:
        num_forged: images that were forged before the sample was drawn, 0 to num_images.
        num_images: images that the sample is drawn from.
        num_sampled: images of the sample, 0 to num_images.

    Guarantee: probabilistic over the sample; exact (hypergeometric), and at least
        ``1 - (1 - num_forged / num_images) ** num_sampled``.
    """
    return 1 - math.comb(num_images - num_forged, num_sampled) / math.comb(num_images, num_sampled)


def reach_in_words(num_images: int, num_sampled: int) -> str:
    """Say how likely a sample shows a forgery: ``64 of 10,000 images scored again: forgery of 5 % ...``."""
    what = f"{num_sampled:,} of {num_images:,} images scored again"
    if num_sampled == num_images:
        return f"{what}: forgery of any image would be seen"
    num_forged = math.ceil(_FRACTION * num_images)
    # Rounded down: no more is claimed than holds.
    percent = math.floor(100 * chance_to_see(num_forged, num_images, num_sampled))
    if num_sampled <= num_images - num_forged:
        percent = min(percent, 99)
    return f"{what}: forgery of {100 * _FRACTION:g} % or more of the images would be seen with {percent} %"
