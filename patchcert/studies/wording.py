"""A row of answers in, the words that name its certificate, its setting and its accuracy everywhere out."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

Row = Mapping[str, Any] | pd.Series

_SHORT = {
    "counting": "counting",
    "placement": "placement",
    "random_crops_reported": "p_c as reported",
    "random_crops_exact": "p_c, exact draw",
    "fresh_draw": "fresh draw",
    "sampled": "sampled smoothing",
}

GUARANTEES = {
    "deterministic": "A theorem: no patch of this shape, at any place and with any pixels, changes the prediction.",
    "probabilistic": "A theorem that holds with the stated confidence over the defense's own random draw.",
    "heuristic": (
        "A formula without proof, kept to compare with published numbers. An attacker may change a prediction that it "
        "calls certified."
    ),
}


def certificate_words(row: Row) -> str:
    """Name of the certificate; heuristics carry the word."""
    name = _SHORT.get(row["certificate"], str(row["certificate"]))
    return f"{name} (heuristic)" if row["guarantee"] == "heuristic" else name


def rule_words(row: Row) -> str:
    """How views vote: "top class" or "score >= 0.3"."""
    return "top class" if row["vote_rule"] == "top_class" else f"score \u2265 {row['vote_threshold']:g}"


def draw_words(row: Row) -> str:
    """Which views vote: "all 32", or "128 with replacement, p_c >= 0.95"."""
    if row["draws"] == "all":
        return f"all {row['num_views']}"
    confidence = "p_c" if row["guarantee"] == "heuristic" else "confidence"
    return f"{row['num_draws']} {row['draws']}, {confidence} \u2265 {row['min_confidence']:g}"


def patch_words(label: str) -> str:
    """A patch in words: "5×5", or "5×5 turned by 45°, exact footprint" for the label "5x5@45deg-exact"."""
    found = re.fullmatch(r"(\d+)x(\d+)(?:@([\d.]+)deg(-exact)?)?", label)
    if found is None:
        return label
    height, width, angle, is_exact = found.groups()
    turned = f" turned by {angle}°" if angle else ""
    return f"{height}×{width}{turned}" + ", exact footprint" * bool(is_exact)


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as percent with one decimal, without the sign."""
    return f"{100 * fraction:.1f}"


def interval_words(row: Row, metric: str) -> str:
    """Accuracy and its 95 % interval in percent: "57.8 [56.8, 58.8]".

    Args:
        row: a row of answers.
        metric: "clean" or "certified".
    """
    bounds = f"[{percent(row[f'{metric}_low'])}, {percent(row[f'{metric}_high'])}]"
    return f"{percent(row[f'{metric}_accuracy'])} {bounds}"
