"""A score threshold in, the smallest stored score that reaches it out; the one place where scores meet thresholds."""

import math
from fractions import Fraction

from patchcert.errors import VoteTableError

SCORE_SCALE = 65535
"""Scores are stored as integers round(score * SCORE_SCALE), uint16. A vote is a statement about that integer."""


def rounded_score(threshold: float) -> int:
    """Smallest stored score that counts as ``score >= threshold``.

    The threshold is taken as the decimal number it prints as, so 0.2 is 13107 / 65535 exactly.

    Args:
        threshold: softmax score in [0, 1].

    Returns:
        Integer in [0, SCORE_SCALE].

    Raises:
        VoteTableError: outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise VoteTableError(f"a vote threshold is a softmax score in [0, 1], not {threshold}.")
    return math.ceil(Fraction(repr(float(threshold))) * SCORE_SCALE)
