"""The suites of (de)randomized smoothing (DRS): its tables of columns, rows and blocks as data."""

import dataclasses
from typing import Any

from patchcert.studies.config import StudyConfig
from patchcert.studies.paper import PaperFigure, PaperRow, PaperTable
from patchcert.suites.registry import Experiment, Networks, Suite, filed_as, suite

_SOURCE = "Levine & Feizi 2020"
_THRESHOLDS = (0.3, 0.2, 0.4)
_PATCH = "5x5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Paper:
    """What differs between the datasets of the paper, and between editions of a suite."""

    dataset: str
    """Of the published numbers."""
    recipes: str
    """The dataset's word in names of recipes."""
    columns_number: str
    """Number of the table of columns."""
    best_number: str
    """Number of the table of structures."""
    sizes: tuple[int, ...]
    """Widths of columns."""
    rows: int
    """Height of the row band of the table of structures."""
    block: tuple[int, float]
    """Side of the block of the table of structures, and its threshold."""
    best: int
    """Width of the column band of the table of structures."""
    one_pass: bool
    """Whether networks that score all views in one pass stand for the paper's."""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a quick edition."""
    published_only: tuple[tuple[str, dict[str, Any]], ...] = ()
    """(title, fields of the published number) of further lines of the table of structures."""

    @property
    def quick(self) -> bool:
        """Whether this is a quick edition."""
        return bool(self.changes)


@suite("drs-mnist")
def smoothing_mnist(name: str, networks: Networks, quick: bool) -> Suite:
    """(De)randomized smoothing on MNIST: columns by width and threshold, rows, blocks (--quick: few images, MNIST)."""
    one_pass = networks == "one-pass"
    paper = _Paper(
        dataset="mnist",
        recipes="mnist" if one_pass or quick else "mnist-published",
        columns_number="Table 2",
        best_number="Tables 2, 5-9",
        sizes=(1, 2, 3, 4) if quick else tuple(range(1, 10)),
        rows=2,
        block=(8, 0.2),
        best=2,
        one_pass=one_pass,
        changes={"data": {"limit": 4000}, "training": {"epochs": 10}} if quick else {},
        published_only=(
            ("two blocks", {"defense": "two_blocks"}),
            ("interval bounds (IBP)", {"defense": "ibp"}),
            ("sparse ablation, 5 pixels", {"defense": "sparse", "size": 5}),
            ("sparse ablation, 10 pixels", {"defense": "sparse", "size": 10}),
        ),
    )
    what = "the first 4,000 training and test images of MNIST, few epochs"
    return _suite(paper, name, "MNIST", what)


@suite("drs-cifar10")
def smoothing_cifar10(name: str, networks: Networks, quick: bool) -> Suite:
    """(De)randomized smoothing on CIFAR-10: columns by width and threshold, rows, blocks (--quick: on the digits)."""
    one_pass = networks == "one-pass"
    paper = _Paper(
        dataset="cifar10",
        recipes="digits" if quick else "cifar10" if one_pass else "cifar10-published",
        columns_number="Table 4",
        best_number="Table 4",
        sizes=(2, 4, 6) if quick else tuple(range(1, 12)),
        rows=4,
        block=(12, 0.3),
        best=4,
        one_pass=one_pass,
        changes={"training": {"epochs": 8}} if quick else {},
        published_only=(("interval bounds (IBP)", {"defense": "ibp", "table": "Table 1"}),),
    )
    return _suite(paper, name, "digits" if quick else "CIFAR-10", "1,797 bundled handwritten digits, small networks")


def _suite(paper: _Paper, name: str, images: str, what: str) -> Suite:
    notes = []
    if paper.quick:
        notes.append(f"Quick edition: {what}. It shows that everything works, not how far the defense leads.")
    if paper.one_pass:
        notes.append(
            "The networks are not the paper's: one-pass networks score all views of an image at once and train on "
            "CPUs; --networks published trains the paper's own. A row band is read by the column network turned, a "
            "block as a crop that wraps around the border: the same pixels, hence the same certificates."
        )
    return Suite(
        name=name,
        title=f"(De)randomized smoothing on {images}: reported and measured",
        source=_SOURCE,
        headline=(
            (f"columns{paper.best}", _PATCH, f"All columns of {paper.best} pixels vote"),
            ("blocks", _PATCH, f"All blocks of {paper.block[0]}x{paper.block[0]} pixels vote"),
        ),
        experiments=tuple(_experiments(paper)),
        tables=(_columns(paper), _structures(paper), _top_class(paper)),
        figures=_figures(paper),
        notes=tuple(notes),
    )


def _experiments(paper: _Paper) -> list[Experiment]:
    def experiment(name: str, defense: str, size: int, what: str = "", **changes: Any) -> Experiment:
        recipe = f"{defense}{size}-{paper.recipes}"
        return Experiment(
            name=name,
            recipe=recipe,
            study=StudyConfig(
                patches=(_PATCH, "1x1", "2x2", "3x3", "4x4", "6x6", "7x7"),
                headline_patch=_PATCH,
                vote_thresholds=_THRESHOLDS,
                score_margins=False,
            ),
            filed_as=filed_as(recipe, what, quick=paper.quick),
            changes=paper.changes | changes,
        )

    bands = "bandnet" if paper.one_pass else "column"
    experiments = [experiment(f"columns{size}", bands, size) for size in paper.sizes]
    if paper.one_pass:
        experiments.append(experiment("rows", bands, paper.rows, "rows", views={"axis": "row"}))
        experiments.append(experiment("blocks", "cropnet", paper.block[0], "wrap", views={"domain": "wrap"}))
    else:
        experiments.append(experiment("rows", "row", paper.rows))
        experiments.append(experiment("blocks", "block", paper.block[0]))
    return experiments


def _table(paper: _Paper, name: str, number: str, **values: Any) -> PaperTable:
    metrics = ("certified", "clean")
    return PaperTable(name=name, number=number, source=_SOURCE, dataset=paper.dataset, metrics=metrics, **values)


def _line(labels: tuple[str, ...], experiment: str, threshold: float | None, family: str, size: int) -> PaperRow:
    """Counting against the 5x5 patch, as the paper certifies, and the published number of the same question."""
    rule = {"vote_rule": "top_class"} if threshold is None else {"vote_threshold": threshold}
    return PaperRow(
        labels=labels,
        experiment=experiment,
        certificate="counting",
        patches=(_PATCH,),
        vote_threshold=threshold,
        published={"defense": family, "size": size, "certificate": "counting", "patch": _PATCH, **rule},
    )


def _placed(labels: tuple[str, ...], experiment: str, threshold: float | None) -> PaperRow:
    """The same votes, certified by placement, which the paper did not have."""
    return PaperRow(
        labels=labels, experiment=experiment, certificate="placement", patches=(_PATCH,), vote_threshold=threshold
    )


def _columns(paper: _Paper) -> PaperTable:
    return _table(
        paper,
        "columns",
        paper.columns_number,
        title=f"column bands by width and vote threshold, {_PATCH} patch",
        row_names=("width", "threshold"),
        rows=tuple(
            _line((str(size), f"{threshold:g}"), f"columns{size}", threshold, "column", size)
            for size in paper.sizes
            for threshold in sorted(_THRESHOLDS)
        ),
    )


def _structures(paper: _Paper) -> PaperTable:
    side, threshold = paper.block
    found = (
        (f"columns of width {paper.best}", f"columns{paper.best}", _THRESHOLDS[0], "column", paper.best),
        (f"rows of height {paper.rows}", "rows", _THRESHOLDS[0], "row", paper.rows),
        (f"blocks of {side}x{side}", "blocks", threshold, "block", side),
    )
    rows: list[PaperRow] = []
    for title, experiment, at, family, size in found:
        rows.append(_line((title, f"{at:g}"), experiment, at, family, size))
        rows.append(_placed((title, f"{at:g}"), experiment, at))
    rows += [PaperRow(labels=(title, "–"), published=where) for title, where in paper.published_only]
    return _table(
        paper,
        "structures",
        paper.best_number,
        title=f"structures at their best published setting, {_PATCH} patch",
        row_names=("structure", "threshold"),
        rows=tuple(rows),
        note="Placement certifies the same votes as counting and is never weaker; the paper did not have it.",
    )


def _top_class(paper: _Paper) -> PaperTable:
    rows = [
        _line((str(size), "all columns, top class"), f"columns{size}", None, "column", size) for size in paper.sizes
    ]
    if paper.dataset == "mnist":
        where = {"defense": "column", "size": 6, "certificate": "sampled"}
        rows.append(PaperRow(labels=("6", "sampled columns, top class"), published=where))
    return _table(
        paper,
        "top_class",
        "Table 6" if paper.dataset == "mnist" else "Top-class votes",
        title=f"deterministic and randomized columns, {_PATCH} patch",
        row_names=("width", "votes"),
        rows=tuple(rows),
    )


def _figures(paper: _Paper) -> tuple[PaperFigure, ...]:
    threshold = f"{_THRESHOLDS[0]:g}"
    x = {"table": "columns", "x": "width", "x_label": "width of the column band (pixels)"}
    return (
        PaperFigure(
            name="columns_reported",
            number=paper.columns_number,
            caption=(
                f"Certified accuracy against a {_PATCH} patch and clean accuracy by width of the column band, vote "
                f"threshold {threshold}: measured, with 95 % intervals, and as published."
            ),
            metrics=("certified", "clean"),
            where={"threshold": (threshold,)},
            **x,
        ),
        PaperFigure(
            name="columns_thresholds",
            number=paper.columns_number,
            caption=f"Certified accuracy against a {_PATCH} patch by width of the column band for each vote threshold.",
            metrics=("certified",),
            **x,
        ),
    )
