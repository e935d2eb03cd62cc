"""A seed and row numbers in, the views drawn for those images (or their votes) out; the same whatever the parts are."""

import functools

import numpy as np

from patchcert.errors import VoteTableError

_WORDS_PER_COUNTER = 4
_TALLIES = 1
"""Sets the streams of ``draw_tallies`` apart from those of ``draw_views``."""


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
    _check_enough(num_views, num_draws, replacement)
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


def draw_tallies(
    counts_K: np.ndarray, num_draws: int, row: int, *, replacement: bool, seed: int, num_repeats: int
) -> np.ndarray:
    """Draws views of one image several times and counts the votes of each draw, without drawing single views.

    A uniform draw with replacement casts each vote for class k with probability N_k / V, independently: the tally is
    multinomial. Without replacement every set of n views is equally likely, and of n_1, ..., n_K votes it is one of
    prod_k C(N_k, n_k) among C(V, n): the tally is multivariate hypergeometric. So the tally of drawn views has this law
    whatever the views are, and sampling it costs work by classes that have votes, not by views drawn.

    Args:
        counts_K: top-class votes of all views by class, integers >= 0 with a positive sum V. Classes without votes may
            be left out, and any order will do: each order has a stream of its own, largest first is the fastest.
        num_draws: views drawn, n >= 1; at most V without replacement.
        row: row number of the image in its dataset; rows, seeds, numbers and ways of draws are independent.
        replacement: whether a view can come twice.
        seed: of the study.
        num_repeats: independent draws; a larger number keeps the first ones.

    Returns:
        int64, rows sum to n, shape (num_repeats, K). The same for the same arguments, for one version of numpy.

    Raises:
        VoteTableError: more views than there are, without replacement.
    """
    num_views = int(counts_K.sum())
    _check_enough(num_views, num_draws, replacement)
    key = _tally_key(seed, num_draws, replacement)
    # The row counts in the third word, so that each row has 2**128 counters of its own.
    rng = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, row, 0], dtype=np.uint64)))
    if replacement:
        return rng.multinomial(num_draws, counts_K / num_views, size=num_repeats)
    return rng.multivariate_hypergeometric(counts_K, num_draws, size=num_repeats)


@functools.lru_cache
def _tally_key(seed: int, num_draws: int, replacement: bool) -> np.ndarray:
    key = np.random.SeedSequence([seed, num_draws, int(replacement), _TALLIES]).generate_state(2, np.uint64)
    key.setflags(write=False)
    return key


def _check_enough(num_views: int, num_draws: int, replacement: bool) -> None:
    if not replacement and num_draws > num_views:
        raise VoteTableError(
            f"{num_draws} views cannot be drawn without replacement from {num_views}.\n"
            f"  Draw at most {num_views}, or with replacement."
        )
