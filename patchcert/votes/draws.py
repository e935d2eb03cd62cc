"""A seed and row numbers in, the views drawn for those images out; the same whatever part a row is read with."""

import numpy as np

from patchcert.errors import VoteTableError

_WORDS_PER_COUNTER = 4


def draw_views(
    num_views: int, num_draws: int, rows: range, *, replacement: bool, seed: int, repeat: int = 0
) -> np.ndarray:
    """Draws views for images, independently for each image.

    Args:
        num_views: views to draw from, V >= 1.
        num_draws: views drawn for each image, n >= 1; at most V without replacement.
        rows: consecutive row numbers of the images in their dataset.
        replacement: whether a view can come twice.
        seed: of the study.
        repeat: number of the repetition; repetitions are independent.

    Returns:
        int64 view numbers, shape (len(rows), n). Without replacement the first n of one random order.

    Raises:
        VoteTableError: more views than there are, without replacement.
    """
    if not replacement and num_draws > num_views:
        raise VoteTableError(
            f"{num_draws} views cannot be drawn without replacement from {num_views}.\n"
            f"  Draw at most {num_views}, or with replacement."
        )
    per_row = num_draws if replacement else num_views
    per_row += -per_row % _WORDS_PER_COUNTER
    key = np.random.SeedSequence([seed, repeat, int(replacement)]).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key)
    # A counter-based generator can start at any row: one counter step gives four 64-bit words.
    bits.advance(rows.start * (per_row // _WORDS_PER_COUNTER))
    uniform = np.random.Generator(bits).random((len(rows), per_row))
    if replacement:
        return (uniform[:, :num_draws] * num_views).astype(np.int64)
    return np.argsort(uniform[:, :num_views], axis=1, kind="stable")[:, :num_draws]
