"""Probability laws of drawing views with and without replacement, vectorised over the numbers of marked views."""

import numpy as np
import numpy.typing as npt
from scipy import special

from patchcert.errors import CertificateError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def check_draw(num_draws: int, num_views: int, replacement: bool) -> None:
    """Raise CertificateError unless ``num_draws`` views can be drawn from ``num_views``."""
    if num_draws < 1 or num_views < 1:
        raise CertificateError(
            f"{num_draws} draws from {num_views} views are impossible.\n  Draw at least 1 view of at least 1."
        )
    if not replacement and num_draws > num_views:
        raise CertificateError(
            f"{num_draws} draws without replacement were asked for, but there are {num_views} views.\n"
            f"  Draw at most {num_views}, or with replacement."
        )


def marked_draws_pmf(
    num_draws: npt.ArrayLike,
    num_marked: npt.ArrayLike,
    num_views: npt.ArrayLike,
    replacement: bool,
    drawn: npt.ArrayLike,
) -> FloatArray:
    """Return P[``drawn`` of the draws are marked] when ``num_marked`` of ``num_views`` views are.

    Args:
        num_draws: draws (t).
        num_marked: marked views, in [0, num_views].
        num_views: views to draw from, >= 1.
        replacement: binomial if true, hypergeometric if false.
        drawn: marked draws (m); impossible numbers have probability 0.

    Returns:
        Probabilities of the common broadcast shape, accurate to about 1e-10 relative.
    """
    t, marked, total, m = np.broadcast_arrays(num_draws, num_marked, num_views, drawn)
    unmarked, missed = total - marked, t - m
    possible = (m >= 0) & (missed >= 0)
    if replacement:
        m, missed = np.where(possible, m, 0), np.where(possible, missed, 0)
        log = _log_choose(m + missed, m) + special.xlogy(m, marked / total) + special.xlogy(missed, unmarked / total)
    else:
        possible &= (m <= marked) & (missed <= unmarked)
        m, missed = np.where(possible, m, 0), np.where(possible, missed, 0)
        log = _log_choose(marked, m) + _log_choose(unmarked, missed) - _log_choose(total, m + missed)
    return np.where(possible, np.exp(log), 0.0)


def losing_probability(
    num_for: IntArray,
    num_against: IntArray,
    ties_lose: npt.NDArray[np.bool_],
    num_views: int,
    num_draws: int,
    replacement: bool,
) -> FloatArray:
    """Return the probability that a draw holds too few views "for" to beat those "against".

    With t views of either kind drawn, m(t) is the largest number of views "for" that loses. P[at most m(t) of t]
    follows from t to t + 1: the next view makes the count exceed m(t) iff it stood at m(t) and the view is "for"; and
    when m itself grows, the count m(t + 1) joins. So all t take one sum of single probabilities.

    Args:
        num_for: views "for", shape (U,).
        num_against: views "against", disjoint from those, shape (U,).
        ties_lose: whether equal numbers lose, shape (U,).
        num_views: all views, >= num_for + num_against.
        num_draws: views drawn.
        replacement: whether a view can be drawn twice.

    Returns:
        Probabilities, shape (U,), exact up to an absolute rounding error of about 1e-10.
    """
    t = np.arange(num_draws + 1)
    pro, either = num_for[:, None], np.maximum(num_for + num_against, 1)[:, None]
    limit = np.where(ties_lose[:, None], t // 2, (t - 1) // 2)  # -1 at t = 0 if ties win: no count loses
    at_limit = marked_draws_pmf(t, pro, either, replacement, limit)
    # P[the next view is "for"] after t views of either kind, m(t) of them "for".
    next_for = pro / either if replacement else ((pro - limit) / np.maximum(either - t, 1))[:, :-1]
    joins = np.where(np.diff(limit, axis=1) > 0, at_limit[:, 1:], 0.0)
    steps = joins - at_limit[:, :-1] * next_for
    loses_given_t = np.cumsum(np.concatenate([at_limit[:, :1], steps], axis=1), axis=1)
    of_either = marked_draws_pmf(num_draws, num_for[:, None] + num_against[:, None], num_views, replacement, t)
    return np.clip((of_either * loses_given_t).sum(axis=1), 0.0, 1.0)


def losing_probability_bound(
    num_for: npt.NDArray[np.integer], num_against: npt.NDArray[np.integer], num_views: int, num_draws: int
) -> FloatArray:
    """Return an upper bound of ``losing_probability`` at little cost, for draws with and without replacement.

    Chernoff's bound for the difference of the two numbers, (1 - (sqrt(p) - sqrt(q))**2)**n if p > q, else 1. Without
    replacement it holds too (Hoeffding 1963, Theorem 4).
    """
    gap = np.sqrt(num_for / num_views) - np.sqrt(num_against / num_views)
    return (1 - np.maximum(gap, 0.0) ** 2) ** num_draws


def _log_choose(n: npt.NDArray[np.integer], k: npt.NDArray[np.integer]) -> FloatArray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
