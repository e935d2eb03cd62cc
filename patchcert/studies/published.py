"""A study and one of its rows in, the numbers that papers published for the same question out."""

import csv
import dataclasses
import functools
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from patchcert.studies.subject import Subject

Metric = Literal[
    "certified", "clean", "milliseconds", "n_2to1_interval", "n_2to1_variance", "p_c_interval", "p_c_variance"
]
_SHAPES = {"both": "blocks", "column": "columns", "row": "rows"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published number.

    Attributes:
        source: paper or list.
        table: where in it.
        dataset: registered name of the dataset.
        defense: family: column, row, block, crop, sparse (random pixels), two_blocks (two cells of a grid; and so on),
            or a method that is not built from these views.
        size: width of a band, side of a block, crop or cell, number of random pixels; None when it does not apply or
            was not given.
        certificate: name of ours that computes the same, or empty.
        vote_rule: "top_class", "threshold", or empty when not given.
        vote_threshold: threshold, or None.
        num_draws: views drawn, or None for all; for the certificate "sampled" those that estimate.
        replacement: "with", "without", or empty.
        min_confidence: confidence asked for, or None.
        patch: label of the patch in pixels, or empty when the paper gives none.
        patch_fraction: share of the image as published, or None.
        metric: certified or clean accuracy; milliseconds an image; interval and variance, over repeated draws, of
            n_2to1 and p_c.
        value: in [0, 1] for accuracies, in the metric's own unit for others.
        note: what a reader must know.
    """

    source: str
    table: str
    dataset: str
    defense: str
    size: int | None
    certificate: str
    vote_rule: str
    vote_threshold: float | None
    num_draws: int | None
    replacement: str
    min_confidence: float | None
    patch: str
    patch_fraction: float | None
    metric: Metric
    value: float
    note: str


@functools.cache
def published_numbers() -> tuple[Published, ...]:
    """All published numbers, as they stand in ``published.csv``."""
    text = resources.files("patchcert.studies").joinpath("published.csv").read_text(encoding="utf-8")
    readers: dict[str, Any] = {"size": int, "num_draws": int}
    readers |= dict.fromkeys(("vote_threshold", "min_confidence", "patch_fraction", "value"), float)

    def read(name: str, cell: str) -> Any:
        return cell if name not in readers else readers[name](cell) if cell else None

    rows = csv.DictReader(text.splitlines())
    return tuple(Published(**{name: read(name, cell) for name, cell in row.items()}) for row in rows)


def reported(subject: Subject, row: Mapping[str, Any], metric: Literal["certified", "clean"]) -> list[Published]:
    """Finds the published numbers that answer the same question as a row of a study.

    Dataset, view family and size, certificate, vote rule and threshold, draw, confidence and patch in pixels must
    agree; numbers published without one of these match nothing, and only the test split is compared. A JPEG edition is
    compared with the original's numbers.

    Args:
        subject: what the study attacked.
        row: a row of its answers.
        metric: which accuracy.

    Returns:
        Published numbers, the order of ``published.csv``; empty when there are none.
    """
    if subject.split != "test":
        return []
    family, size = _family(subject.views)
    dataset = subject.dataset.removesuffix("-jpeg")
    drawn = row["draws"] != "all"
    wanted = {
        "dataset": dataset,
        "defense": family,
        "size": size,
        "certificate": row["certificate"],
        "vote_rule": row["vote_rule"],
        "vote_threshold": _number(row["vote_threshold"]),
        "num_draws": int(row["num_draws"]) if drawn else None,
        "replacement": row["draws"].removesuffix(" replacement") if drawn else "",
        "min_confidence": _number(row["min_confidence"]),
        "patch": row["patch"],
        "metric": metric,
    }
    return [
        number
        for number in published_numbers()
        if number.patch and all(getattr(number, name) == value for name, value in wanted.items())
    ]


def _family(views: dict[str, Any]) -> tuple[str, int | None]:
    """Family and size of a view set as the papers name them; the size is None for strides and rectangles."""
    kind = views["kind"]
    if kind == "sampled":
        return _family(views["views"])
    if kind == "pixel":
        return "sparse", views["num_pixels"]
    if kind == "cell":
        number = {2: "two", 3: "three"}.get(views["num_cells"], str(views["num_cells"]))
        return f"{number}_{_SHAPES[views['axis']]}", _one_size(views["pitch"])
    size = views.get("width", views.get("block_size", views.get("crop_size")))
    return views.get("axis", kind), _one_size(size) if _one_size(views.get("stride", 1)) == 1 else None


def _one_size(sizes: Any) -> int | None:
    """The one number that a size of one or two numbers comes down to, or None."""
    distinct = {sizes} if isinstance(sizes, int) else set(sizes or ())
    return distinct.pop() if len(distinct) == 1 else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
