"""What a paper's table or figure asks, and where its numbers were published. Settings only, quick to import."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from patchcert.errors import StudyError

Metric = Literal[
    "certified", "clean", "milliseconds", "n_2to1_interval", "n_2to1_variance", "p_c_interval", "p_c_variance"
]
SCATTER = {
    "n_2to1_interval": "flip_votes_interval",
    "n_2to1_variance": "flip_votes_variance",
    "p_c_interval": "confidence_interval",
    "p_c_variance": "confidence_variance",
}
"""Metrics of repeated draws, and the columns of a variance study's summary that hold them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One line of a paper's table: a question to an experiment of the suite, and the published number for it."""

    labels: tuple[str, ...]
    """Words of the line, one for each of the table's ``row_names``."""
    experiment: str = ""
    """Experiment whose study answers; empty for numbers that are published only."""
    certificate: str = ""
    """As studies name it."""
    patches: tuple[str, ...] = ()
    """The patch, as ``Patch.parse`` reads it; several: the worst case over them."""
    worst: Literal["minimum", "union"] | None = None
    """Of several patches: the lowest accuracy over them, or the images certified against every one of them."""
    vote_threshold: float | None = None
    """None for the top-class rule."""
    num_draws: int | None = None
    """None for all views."""
    replacement: Literal["with", "without"] | None = None
    """None for all views."""
    min_confidence: float | None = None
    """None for theorems about all views."""
    published: Mapping[str, Any] | None = None
    """Fields of ``Published`` and the values that find the number within the table's source and dataset; None: none."""

    def __post_init__(self) -> None:
        """Checks that the line asks one whole question."""
        what = f"the line {' / '.join(self.labels)}"
        if not self.experiment and self.published is None:
            raise StudyError(f"{what} asks nothing: it has neither an experiment nor a published number.")
        if self.experiment and not (self.certificate and self.patches):
            raise StudyError(f"{what} asks {self.experiment} without a certificate or without a patch.")
        if (self.worst is None) != (len(self.patches) <= 1):
            raise StudyError(f"{what} has {len(self.patches)} patches, but worst is {self.worst}.")
        if (self.num_draws is None) != (self.replacement is None) or (
            self.num_draws is not None and self.min_confidence is None
        ):
            raise StudyError(f"{what} needs num_draws, replacement and min_confidence together.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of a paper, or the numbers behind one of its figures."""

    name: str
    """File name without ending."""
    number: str
    """As the paper counts it, such as "Table 2"."""
    title: str
    """What it shows."""
    source: str
    """The paper, as ``published.csv`` names it."""
    dataset: str
    """Dataset of the published numbers."""
    row_names: tuple[str, ...]
    """Words above the labels."""
    metrics: tuple[Metric, ...]
    """What each line states."""
    rows: tuple[PaperRow, ...]
    """The lines."""
    note: str = ""
    """What a reader must know about all of it."""

    def __post_init__(self) -> None:
        """Checks that every line fits."""
        for row in self.rows:
            if len(row.labels) != len(self.row_names):
                raise StudyError(
                    f"{self.number}: the line {' / '.join(row.labels)} has {len(row.labels)} labels, "
                    f"the table has {len(self.row_names)}: {', '.join(self.row_names)}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A figure drawn from the lines of a table: one label is the horizontal axis, the others name the curves."""

    name: str
    """File name without ending."""
    number: str
    """As the paper counts it, or what it belongs to."""
    table: str
    """Name of the table."""
    caption: str
    """What is shown."""
    x: str
    """Row name whose labels are the positions on the horizontal axis; labels that are no number become levels."""
    x_label: str
    """Name and unit of the horizontal axis."""
    metrics: tuple[Metric, ...]
    """Accuracies, or milliseconds alone."""
    where: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Row name -> labels that are drawn; what is not named is drawn whole."""
    log2: bool = False
    """Whether the horizontal axis is logarithmic."""
