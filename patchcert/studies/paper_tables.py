"""A paper's tables and the studies of a suite in, every line with its reported and its measured numbers out."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from patchcert.certificates import wilson_interval
from patchcert.errors import StudyError
from patchcert.geometry import Patch, view_set_from_identity
from patchcert.studies.config import StudyConfig
from patchcert.studies.paper import SCATTER, Metric, PaperRow, PaperTable
from patchcert.studies.published import Published, published_numbers
from patchcert.studies.questions import Question, questions
from patchcert.studies.results import StudyResult
from patchcert.studies.wording import certificate_words, draw_words, rule_words

_ACCURACIES = ("certified", "clean")
# What was answered was above the floor of its votes; it need not be checked again.
_ANY_FLOOR = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number of a paper and ours.

    Attributes:
        metric: "certified" or "clean" (accuracies in [0, 1]), "milliseconds" (an image), or one of ``SCATTER``.
        reported: as published, or None.
        measured: ours, or None.
        low: lower end of the 95 % Wilson interval of ours; None without one.
        high: upper end.
        comparable: whether both are about the same images, so that their difference means something.
    """

    metric: Metric
    reported: float | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    comparable: bool = False

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Measured minus reported accuracy and its interval, which takes the published number as exact."""
        if not self.comparable or self.reported is None or self.measured is None or self.low is None:
            return None
        assert self.high is not None
        return self.measured - self.reported, self.low - self.reported, self.high - self.reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledRow:
    """One line of a table.

    Attributes:
        labels: as the table's ``row_names`` name them.
        numbers: one for each metric of the table.
        defense: what was measured; empty for published numbers.
        certificate: name, in words.
        guarantee: "deterministic", "probabilistic", "heuristic", or empty.
        setting: votes and views, in words.
        patch: labels of the patches in pixels.
        feasible: whether any votes at all could be certified.
        note: what a reader must know.
    """

    labels: tuple[str, ...]
    numbers: tuple[Comparison, ...]
    defense: str = ""
    certificate: str = ""
    guarantee: str = ""
    setting: str = ""
    patch: str = ""
    feasible: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table with its numbers."""

    table: PaperTable
    rows: tuple[FilledRow, ...]

    def frame(self) -> pd.DataFrame:
        """One row for each line; fractions in [0, 1], as ``tables/*.csv`` hold them."""
        records = []
        for row in self.rows:
            record: dict[str, Any] = dict(zip(self.table.row_names, row.labels, strict=True))
            for number in row.numbers:
                difference = number.difference or (None, None, None)
                values = (number.reported, number.measured, number.low, number.high, *difference)
                names = ("reported", "measured", "low", "high", "difference", "difference_low", "difference_high")
                if number.metric not in _ACCURACIES:
                    names = names[:2]
                record |= {f"{number.metric}_{name}": value for name, value in zip(names, values, strict=False)}
            fields = ("defense", "certificate", "guarantee", "setting", "patch", "feasible", "note")
            records.append(record | {name: getattr(row, name) for name in fields})
        return pd.DataFrame.from_records(records)


def read_filled(table: PaperTable, frame: pd.DataFrame) -> FilledTable:
    """Reads back what ``FilledTable.frame`` gave, as ``tables/*.csv`` of a suite hold it, to draw figures anew.

    Args:
        table: what the lines were asked by.
        frame: one row for each line, read with ``dtype`` str for the labels; lines may be fewer than the table's.

    Raises:
        StudyError: columns are missing.
    """
    if lacking := [name for name in table.row_names if name not in frame]:
        raise StudyError(f"{table.number}: the file lacks {', '.join(lacking)}.\n  Read tables/{table.name}.csv.")

    def value(record: Mapping[str, Any], name: str) -> float | None:
        found = record.get(name)
        return None if found is None or pd.isna(found) else float(found)

    def text(record: Mapping[str, Any], name: str) -> str:
        return "" if pd.isna(record[name]) else str(record[name])

    rows = []
    for record in frame.to_dict("records"):
        numbers = tuple(
            Comparison(
                metric=metric,
                **{name: value(record, f"{metric}_{name}") for name in ("reported", "measured", "low", "high")},
                comparable=value(record, f"{metric}_difference") is not None,
            )
            for metric in table.metrics
        )
        words = {
            name: text(record, name) for name in ("defense", "certificate", "guarantee", "setting", "patch", "note")
        }
        labels = tuple(str(record[name]) for name in table.row_names)
        rows.append(FilledRow(labels=labels, numbers=numbers, feasible=bool(record["feasible"]), **words))
    return FilledTable(table=table, rows=tuple(rows))


class Answers:
    """The questions and answers of one study, found by what was asked."""

    def __init__(self, result: StudyResult) -> None:
        """Reads the questions off the study's identity; per-image answers are read when first needed."""
        self.result = result
        views = view_set_from_identity(result.subject.views)
        config = _study_config(result.identity["study"])
        asked = questions(config, views, _ANY_FLOOR, on_warning=lambda _: None)
        self._asked = list(zip(asked, (row for _, row in result.answers.iterrows()), strict=True))
        self._per_image: pd.DataFrame | None = None

    def find(self, row: PaperRow, patch: Patch) -> tuple[Question, pd.Series]:
        """The question of a line at one of its patches, and its row of answers.

        Raises:
            StudyError: the study did not ask it.
        """
        for question, answer in self._asked:
            if answers_line(question, row, patch):
                return question, answer
        raise StudyError(
            f"{self.result.subject.defense}: the study {self.result.folder} did not ask what the line "
            f"{' / '.join(row.labels)} needs: {row.certificate} at {patch.label}.\n  Add it to the experiment's study."
        )

    def certified_N(self, question: Question) -> np.ndarray:
        """Whether each image is classified right and certified."""
        if self._per_image is None:
            self._per_image = self.result.per_image().to_pandas()
        images = self._per_image
        right_N = images[f"prediction/{question.ballot_key}"] == images["label"]
        return np.asarray(right_N & images[f"certified/{question.key}"])


def answers_line(question: Question, row: PaperRow, patch: Patch) -> bool:
    """Whether a question of a study is the one of a line at one of its patches."""
    return (
        question.certificate == row.certificate
        and question.patch == patch
        and question.vote_threshold == row.vote_threshold
        and question.replacement == (None if row.replacement is None else row.replacement == "with")
        and row.num_draws in (None, question.num_draws)
        and question.min_confidence == row.min_confidence
        and question.score_tolerance == 0
    )


def fill_tables(
    tables: Sequence[PaperTable],
    results: Mapping[str, StudyResult],
    missing: Mapping[str, str],
    scatters: Mapping[str, pd.DataFrame] | None = None,
) -> list[FilledTable]:
    """Finds the numbers of all lines.

    Args:
        tables: what papers show.
        results: studies by name of the experiment.
        missing: experiments without a study, and why.
        scatters: summaries of variance studies by name of the experiment, for metrics of ``SCATTER``.

    Raises:
        StudyError: a study did not ask what a line needs, or a line names no experiment of the suite.
    """
    answers = {name: Answers(result) for name, result in results.items()}
    return [
        FilledTable(table=table, rows=tuple(_fill(row, table, answers, missing, scatters or {}) for row in table.rows))
        for table in tables
    ]


def published_number(table: PaperTable, row: PaperRow, metric: Metric) -> Published | None:
    """The published number of a line: of the line's own table, unless the line names another.

    Raises:
        StudyError: several different numbers fit.
    """
    if row.published is None:
        return None
    fields = {"source": table.source, "dataset": table.dataset, "metric": metric, **row.published}
    found = [
        number
        for number in published_numbers()
        if all(getattr(number, name) == value for name, value in fields.items())
    ]
    if "table" not in fields:
        found = [number for number in found if _stands_in(number.table) & _stands_in(table.number)]
    if len({number.value for number in found}) > 1:
        raise StudyError(
            f"{table.number}, line {' / '.join(row.labels)}: {len(found)} different published numbers fit.\n"
            "  Name more of the fields of published.csv in the line."
        )
    return found[0] if found else None


def _stands_in(words: str) -> set[int]:
    """Numbers of the tables that words such as "Tables 2, 5-9" name."""
    if not words.startswith("Table"):
        return set()
    spans = [(int(first), int(last or first)) for first, last in re.findall(r"(\d+)(?:-(\d+))?", words)]
    return {number for first, last in spans for number in range(first, last + 1)}


def _fill(
    row: PaperRow,
    table: PaperTable,
    answers: Mapping[str, Answers],
    missing: Mapping[str, str],
    scatters: Mapping[str, pd.DataFrame],
) -> FilledRow:
    published = {metric: published_number(table, row, metric) for metric in table.metrics}
    reported = {metric: None if number is None else number.value for metric, number in published.items()}
    notes = [number.note for number in published.values() if number is not None]
    if row.experiment and row.experiment not in answers:
        reason = missing.get(row.experiment, "there is no such experiment")
        return FilledRow(
            labels=row.labels,
            numbers=tuple(Comparison(metric=metric, reported=reported[metric]) for metric in table.metrics),
            note=_join([f"not measured: {reason}", *notes]),
        )
    if not row.experiment:
        return FilledRow(
            labels=row.labels,
            numbers=tuple(Comparison(metric=metric, reported=reported[metric]) for metric in table.metrics),
            note=_join(["published only", *notes]),
        )
    study = answers[row.experiment]
    subject = study.result.subject
    patches = list(dict.fromkeys(Patch.parse(text, subject.image_size) for text in row.patches))
    found = [study.find(row, patch) for patch in patches]
    weakest = min((answer for _, answer in found), key=lambda answer: answer["certified_accuracy"])
    clean = (weakest["clean_accuracy"], weakest["clean_low"], weakest["clean_high"])
    certified = (weakest["certified_accuracy"], weakest["certified_low"], weakest["certified_high"])
    if row.worst == "union":
        survivors = int(np.logical_and.reduce([study.certified_N(question) for question, _ in found]).sum())
        low, high = wilson_interval(survivors, subject.evaluated)
        certified = (survivors / subject.evaluated, float(low), float(high))
    measured: dict[Metric, tuple[float | None, float | None, float | None]] = {"clean": clean, "certified": certified}
    measured["milliseconds"] = (_milliseconds(study.result, weakest), None, None)
    for metric in SCATTER.keys() & set(table.metrics):
        measured[metric] = (_scatter(scatters.get(row.experiment), weakest, metric), None, None)
    comparable = subject.split == "test" and subject.dataset.removesuffix("-jpeg") == table.dataset
    possible = all(bool(answer["feasible"]) for _, answer in found)
    return FilledRow(
        labels=row.labels,
        numbers=tuple(
            Comparison(
                metric=metric,
                reported=reported[metric],
                measured=measured[metric][0],
                low=measured[metric][1],
                high=measured[metric][2],
                comparable=comparable,
            )
            for metric in table.metrics
        ),
        defense=subject.defense,
        certificate=certificate_words(weakest).removesuffix(" (heuristic)"),
        guarantee=weakest["guarantee"],
        setting=f"{rule_words(weakest)}, {draw_words(weakest)}",
        patch=", ".join(patch.label for patch in patches),
        feasible=possible,
        note=_join([*(_needed_leads(found)), *notes]),
    )


def _needed_leads(found: Sequence[tuple[Question, pd.Series]]) -> list[str]:
    """What infeasible questions would need, with the patch where there are several."""
    several = len(found) > 1
    return [
        f"{question.patch.label} " * several + part
        for question, answer in found
        if not answer["feasible"]
        for part in answer["note"].split("; ")
        if part.startswith("infeasible")
    ]


def _milliseconds(result: StudyResult, answer: pd.Series) -> float | None:
    """Milliseconds of one worker for the views of an image that vote; None where nobody took the time.

    Networks that score all views in one pass take the same time however few of them are counted.
    """
    voting = result.run.get("voting") or {}
    if not voting.get("images"):
        return None
    seconds = voting.get("worker_seconds", voting["seconds"])
    share = 1.0 if voting.get("one_pass", True) else min(1.0, answer["num_draws"] / answer["num_views"])
    return 1000 * share * float(seconds) / voting["images"]


def _scatter(summary: pd.DataFrame | None, answer: pd.Series, metric: Metric) -> float | None:
    """A figure of repeated draws at the same question as an answer; None where nobody repeated it."""
    if summary is None:
        return None
    same = ("certificate", "patch", "draws", "num_draws", "min_confidence")
    rows = summary[(summary[list(same)] == answer[list(same)]).all(axis=1)]
    return None if rows.empty else float(rows.iloc[0][SCATTER[metric]])


def _study_config(values: Mapping[str, Any]) -> StudyConfig:
    """The settings that a study's identity holds, which went through JSON."""
    try:
        return StudyConfig(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )
    except TypeError as error:
        raise StudyError(
            f"the settings of a study are of another version: {error}.\n  Answer the study again."
        ) from None


def _join(notes: Sequence[str]) -> str:
    parts = dict.fromkeys(part for note in notes for part in note.split("; ") if part)
    return "; ".join(parts)


def number_words(number: Comparison) -> tuple[str, str, str]:
    """Reported, measured and difference of a number as text: accuracies in percent, scatter in 1e-2, milliseconds."""
    if number.metric not in _ACCURACIES:
        scale = 100 if number.metric in SCATTER else 1
        values = (number.reported, number.measured)
        reported, measured = ("–" if value is None else f"{scale * value:.3g}" for value in values)
        return reported, measured, "–"
    # Papers print one decimal or two.
    reported = "–" if number.reported is None else f"{100 * number.reported:.2f}".removesuffix("0")
    measured = "–" if number.measured is None else f"{100 * number.measured:.1f}"
    if number.low is not None and number.high is not None:
        measured += f" [{100 * number.low:.1f}, {100 * number.high:.1f}]"
    if number.difference is None:
        return reported, measured, "–"
    middle, low, high = (100 * value for value in number.difference)
    return reported, measured, f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def is_number(text: str) -> bool:
    """Whether a label is a position on an axis."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
