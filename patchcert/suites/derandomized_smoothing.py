"""The suites of (de)randomized smoothing (DRS): its tables of columns, rows, blocks, several of them, and samples.

The paper's Tables 5, 7 to 9 and 12 are the ones of rows, of blocks, of views of several bands or blocks, and of random
pixels. Which number belongs to which, and most of their values, are not at hand: these tables are named by what they
show, ask the same questions, and print what is known as reported.
"""

import dataclasses
from typing import Any

from patchcert.recipes import size_words
from patchcert.studies.config import StudyConfig
from patchcert.studies.paper import PaperFigure, PaperRow, PaperTable
from patchcert.suites.registry import Experiment, Networks, Suite, filed_as, suite

_SOURCE = "Levine & Feizi 2020"
_THRESHOLDS = (0.3, 0.2, 0.4)
_PATCH = "5x5"
_SAMPLES = {"num_draws": 10_000, "replacement": "with", "min_confidence": 0.95}
_SEVERAL = {
    "columns": "columns of width {0}",
    "rows": "rows of height {0}",
    "blocks": "blocks of {0}x{0}",
}
_NUMBERS = {2: "two", 3: "three"}
_NOT_AT_HAND = (
    "Which of the paper's Tables 5, 7-9 and 12 this is, and its values other than those shown as reported, are not at "
    "hand."
)

Size = int | tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Paper:
    """What differs between the datasets of the paper, and between editions of a suite."""

    dataset: str
    """Of the published numbers."""
    recipes: str
    """The dataset's word in names of recipes."""
    numbers: dict[str, str]
    """Number of each table whose number is known, by its name."""
    elsewhere: str
    """Where ``published.csv`` files the numbers of the other tables."""
    columns: tuple[int, ...]
    """Widths of column bands; the best published one is ``best``."""
    best: int
    """Width that stands for columns among the structures."""
    rows: tuple[int, ...]
    """Heights of row bands, the best published one first."""
    blocks: tuple[int, ...]
    """Sides of blocks, the best published one first."""
    block_threshold: float
    """Vote threshold of the best published block."""
    several: tuple[tuple[str, int, int], ...] = ()
    """(defense, pitch, how many) of views that are several cells of a grid; one-pass networks cannot read them."""
    sparse: tuple[int, ...] = ()
    """Numbers of random pixels."""
    one_pass: bool
    """Whether networks that score all views in one pass stand for the paper's."""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a quick edition."""

    @property
    def quick(self) -> bool:
        """Whether this is a quick edition."""
        return bool(self.changes)

    @property
    def bands(self) -> str:
        """Defense of column bands."""
        return "bandnet" if self.one_pass else "column"


@suite("drs-mnist")
def smoothing_mnist(name: str, networks: Networks, quick: bool) -> Suite:
    """(De)randomized smoothing on MNIST: Tables 2 and 5 to 9, all structures (--quick: few images of MNIST)."""
    one_pass = networks == "one-pass"
    paper = _Paper(
        dataset="mnist",
        recipes="mnist" if one_pass or quick else "mnist-published",
        numbers={"columns": "Table 2", "structures": "Tables 2, 5-9", "samples": "Table 6"},
        elsewhere="Tables 2, 5-9",
        columns=(1, 2, 3, 4) if quick else tuple(range(1, 10)),
        best=2,
        rows=(2,) if quick else (2, 1, 3, 4),
        blocks=(8,) if quick else (8, 6, 10),
        block_threshold=0.2,
        several=(
            *((kind, pitch, number) for kind in ("columns", "rows") for pitch, number in ((2, 2), (1, 2), (1, 3))),
            *(("blocks", pitch, 2) for pitch in (4, 3, 5, 7)),
        ),
        sparse=(5, 10),
        one_pass=one_pass,
        changes={"data": {"limit": 3000}, "training": {"epochs": 8}} if quick else {},
    )
    return _suite(paper, name, "MNIST", "the first 3,000 training and test images of MNIST, few epochs")


@suite("drs-cifar10")
def smoothing_cifar10(name: str, networks: Networks, quick: bool) -> Suite:
    """(De)randomized smoothing on CIFAR-10: Tables 1 and 4, columns, rows, blocks (--quick: on the bundled digits)."""
    one_pass = networks == "one-pass"
    paper = _Paper(
        dataset="cifar10",
        recipes="digits" if quick else "cifar10" if one_pass else "cifar10-published",
        numbers={"columns": "Table 4", "structures": "Tables 1, 4", "samples": "Samples"},
        elsewhere="Table 4",
        columns=(2, 4, 6) if quick else tuple(range(1, 12)),
        best=4,
        rows=(4,) if quick else (4, 2, 6),
        blocks=(12,) if quick else (12, 8, 16),
        block_threshold=0.3,
        one_pass=one_pass,
        changes={"training": {"epochs": 8}} if quick else {},
    )
    return _suite(paper, name, "digits" if quick else "CIFAR-10", "1,797 bundled handwritten digits, small networks")


def _suite(paper: _Paper, name: str, images: str, what: str) -> Suite:
    notes = []
    if paper.quick:
        notes.append(f"Quick edition: {what}. It shows that everything works, not how far the defense leads.")
    if paper.one_pass:
        several = (
            " Views of several bands or blocks, and random pixels, stand there as published; their own tables need "
            "--networks published, too."
        )
        notes.append(
            "The networks are not the paper's: one-pass networks score all views of an image at once and train on "
            f"CPUs; --networks published trains the paper's own.{several if paper.several else ''}"
        )
    return Suite(
        name=name,
        title=f"(De)randomized smoothing on {images}: reported and measured",
        source=_SOURCE,
        headline=(
            (f"columns{paper.best}", _PATCH, f"All columns of {paper.best} pixels vote"),
            (f"blocks{paper.blocks[0]}", _PATCH, f"All blocks of {paper.blocks[0]}x{paper.blocks[0]} pixels vote"),
        ),
        experiments=tuple(_experiments(paper)),
        tables=(
            _columns(paper),
            _structures(paper),
            _samples(paper),
            _rows(paper),
            _blocks(paper),
            *((_several_bands(paper), _several_blocks(paper), _random_pixels(paper)) if _has_several(paper) else ()),
        ),
        figures=_figures(paper),
        notes=tuple(notes),
    )


def _has_several(paper: _Paper) -> bool:
    """Whether views of several cells and random pixels are measured: not in minutes, and not in one pass."""
    return bool(paper.several) and not paper.one_pass and not paper.quick


def _several_name(kind: str, pitch: int, number: int) -> str:
    """Experiment of views of several cells."""
    return f"{_NUMBERS[number]}-{kind}{pitch}"


def _experiments(paper: _Paper) -> list[Experiment]:
    patches = (_PATCH, "1x1", "2x2", "3x3", "4x4", "6x6", "7x7")

    def experiment(name: str, defense: str, size: Size, **study: Any) -> Experiment:
        recipe = f"{defense}{size_words(size)}-{paper.recipes}"
        return Experiment(
            name=name,
            recipe=recipe,
            study=StudyConfig(patches=patches, headline_patch=_PATCH, **study),
            filed_as=filed_as(recipe, quick=paper.quick),
            changes=paper.changes,
        )

    by_score: dict[str, Any] = {"vote_thresholds": _THRESHOLDS, "score_margins": False}
    drawn = {"certificates": ("counting", "placement", "sampled")}
    rows, blocks = ("bandnetrow", "blocknet") if paper.one_pass else ("row", "block")
    experiments = [experiment(f"columns{size}", paper.bands, size, **by_score, **drawn) for size in paper.columns]
    experiments += [experiment(f"rows{size}", rows, size, **by_score) for size in paper.rows]
    experiments += [experiment(f"blocks{size}", blocks, size, **by_score) for size in paper.blocks]
    if _has_several(paper):
        experiments += [
            experiment(_several_name(kind, pitch, number), kind, (pitch, number), **by_score)
            for kind, pitch, number in paper.several
        ]
        experiments += [
            experiment(f"sparse{pixels}", "sparse", pixels, certificates=("sampled",)) for pixels in paper.sparse
        ]
    return experiments


def _table(paper: _Paper, name: str, **values: Any) -> PaperTable:
    return PaperTable(
        name=name,
        number=paper.numbers.get(name, name.replace("_", " ").capitalize()),
        source=_SOURCE,
        dataset=paper.dataset,
        metrics=("certified", "clean"),
        **values,
    )


def _line(
    labels: tuple[str, ...], experiment: str, threshold: float | None, family: str, size: int, table: str = ""
) -> PaperRow:
    """Counting against the 5x5 patch, as the paper certifies, and the published number of the same question.

    Args:
        labels: of the line.
        experiment: that answers.
        threshold: of votes; None: top classes.
        family: of the views, as ``published.csv`` names it.
        size: of the views.
        table: where the number is filed; empty: under the line's own table.
    """
    rule = {"vote_rule": "top_class"} if threshold is None else {"vote_threshold": threshold}
    rule |= {"table": table} if table else {}
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
        title=f"column bands by width and vote threshold, {_PATCH} patch",
        row_names=("width", "threshold"),
        rows=tuple(
            _line((str(size), f"{threshold:g}"), f"columns{size}", threshold, "column", size)
            for size in paper.columns
            for threshold in sorted(_THRESHOLDS)
        ),
    )


def _structures(paper: _Paper) -> PaperTable:
    rows: list[PaperRow] = []

    def lines(title: str, experiment: str, threshold: float, family: str, size: int) -> None:
        labels = (title, f"{threshold:g}")
        rows.append(_line(labels, experiment, threshold, family, size))
        rows.append(_placed(labels, experiment, threshold))

    lines(f"columns of width {paper.best}", f"columns{paper.best}", _THRESHOLDS[0], "column", paper.best)
    for size in paper.rows:
        lines(f"rows of height {size}", f"rows{size}", _THRESHOLDS[0], "row", size)
    for size in paper.blocks:
        lines(f"blocks of {size}x{size}", f"blocks{size}", paper.block_threshold, "block", size)
    measured = _has_several(paper)
    first: dict[str, tuple[int, int]] = {}
    for kind, pitch, number in paper.several if measured else ():
        first.setdefault(kind, (pitch, number))
    for kind, (pitch, number) in first.items():
        title = f"{_NUMBERS[number]} {_SEVERAL[kind].format(pitch)}"
        lines(title, _several_name(kind, pitch, number), _THRESHOLDS[0], f"{_NUMBERS[number]}_{kind}", pitch)
    if paper.several:
        rows.append(PaperRow(labels=("two blocks, best of its table", "–"), published={"defense": "two_blocks"}))
    for pixels in paper.sparse:
        where, asked = _sparse(pixels)
        labels = (f"{pixels} random pixels, sampled", "–")
        rows.append(PaperRow(labels=labels, published=where, **(asked if measured else {})))
    rows.append(PaperRow(labels=("interval bounds (IBP)", "–"), published={"defense": "ibp"}))
    return _table(
        paper,
        "structures",
        title=f"structures of views, {_PATCH} patch",
        row_names=("structure", "threshold"),
        rows=tuple(rows),
        note="Placement certifies the same votes as counting and is never weaker; the paper did not have it.",
    )


def _samples(paper: _Paper) -> PaperTable:
    rows: list[PaperRow] = []
    for size in paper.columns:
        rows.append(_line((str(size), "all columns"), f"columns{size}", None, "column", size))
        rows.append(
            PaperRow(
                labels=(str(size), "sampled columns"),
                experiment=f"columns{size}",
                certificate="sampled",
                patches=(_PATCH,),
                published={"defense": "column", "size": size, "certificate": "sampled"},
                **_SAMPLES,
            )
        )
    return _table(
        paper,
        "samples",
        title=f"deterministic and randomized columns by width, top-class votes, {_PATCH} patch",
        row_names=("width", "votes"),
        rows=tuple(rows),
        note="Sampled: 1,000 samples choose the class, 10,000 bound its share from below at 95 % confidence.",
    )


def _sparse(pixels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the number of random pixels was published, and the question about them."""
    question = {"experiment": f"sparse{pixels}", "certificate": "sampled", "patches": (_PATCH,), **_SAMPLES}
    return {"defense": "sparse", "size": pixels}, question


def _by_size(
    paper: _Paper, name: str, views: str, size_name: str, sizes: tuple[int, ...], family: str, note: str = ""
) -> PaperTable:
    """A table of one structure by its size and the vote threshold."""
    return _table(
        paper,
        name,
        title=f"{views} by {size_name} and vote threshold, {_PATCH} patch",
        row_names=(size_name, "threshold"),
        rows=tuple(
            _line((str(size), f"{threshold:g}"), f"{name}{size}", threshold, family, size, paper.elsewhere)
            for size in sorted(sizes)
            for threshold in sorted(_THRESHOLDS)
        ),
        note=note or _NOT_AT_HAND,
    )


def _rows(paper: _Paper) -> PaperTable:
    return _by_size(paper, "rows", "row bands", "height", paper.rows, "row")


def _blocks(paper: _Paper) -> PaperTable:
    return _by_size(paper, "blocks", "blocks", "side", paper.blocks, "block")


def _several_lines(paper: _Paper, kinds: tuple[str, ...]) -> list[PaperRow]:
    return [
        _line(
            (f"{_NUMBERS[number]} {_SEVERAL[kind].format(pitch)}", f"{threshold:g}"),
            _several_name(kind, pitch, number),
            threshold,
            f"{_NUMBERS[number]}_{kind}",
            pitch,
            paper.elsewhere,
        )
        for kind, pitch, number in paper.several
        if kind in kinds
        for threshold in sorted(_THRESHOLDS)
    ]


def _several_bands(paper: _Paper) -> PaperTable:
    return _table(
        paper,
        "several_bands",
        title=f"views of several columns or rows by width and vote threshold, {_PATCH} patch",
        row_names=("view", "threshold"),
        rows=tuple(_several_lines(paper, ("columns", "rows"))),
        note=_NOT_AT_HAND,
    )


def _several_blocks(paper: _Paper) -> PaperTable:
    best = PaperRow(
        labels=("two blocks, best of its table", "–"), published={"defense": "two_blocks", "table": "Table 7"}
    )
    return _table(
        paper,
        "several_blocks",
        title=f"views of two blocks by side and vote threshold, {_PATCH} patch",
        row_names=("view", "threshold"),
        rows=(*_several_lines(paper, ("blocks",)), best),
        note="The paper's Table 7. Of its values only the best is at hand.",
    )


def _random_pixels(paper: _Paper) -> PaperTable:
    rows = []
    for pixels in paper.sparse:
        where, asked = _sparse(pixels)
        rows.append(PaperRow(labels=(str(pixels),), published={**where, "table": paper.elsewhere}, **asked))
    return _table(
        paper,
        "random_pixels",
        title=f"sparse ablation: views of random pixels, {_PATCH} patch",
        row_names=("pixels",),
        rows=tuple(rows),
        note=f"1,000 samples choose the class, 10,000 bound its share from below at 95 % confidence. {_NOT_AT_HAND}",
    )


def _figures(paper: _Paper) -> tuple[PaperFigure, ...]:
    threshold = f"{_THRESHOLDS[0]:g}"
    x = {"table": "columns", "x": "width", "x_label": "width of the column band (pixels)"}
    return (
        PaperFigure(
            name="columns_reported",
            number=paper.numbers["columns"],
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
            number=paper.numbers["columns"],
            caption=f"Certified accuracy against a {_PATCH} patch by width of the column band for each vote threshold.",
            metrics=("certified",),
            **x,
        ),
        *(
            PaperFigure(
                name=f"{table}_thresholds",
                number=table.capitalize(),
                table=table,
                caption=(
                    f"Certified accuracy against a {_PATCH} patch by {x_name} of the {view} for each vote threshold."
                ),
                x=x_name,
                x_label=f"{x_name} of the {view} (pixels)",
                metrics=("certified",),
            )
            for table, x_name, view in (("rows", "height", "row band"), ("blocks", "side", "block"))
        ),
        PaperFigure(
            name="samples",
            number=paper.numbers["samples"],
            table="samples",
            caption=f"Certified accuracy against a {_PATCH} patch, top-class votes: all columns counted, and samples.",
            x="width",
            x_label="width of the column band (pixels)",
            metrics=("certified",),
        ),
    )
