"""Answers the questions of a study again, from all votes of its table or from images that were scored again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from patchcert.errors import ContradictionError, PatchcertError
from patchcert.studies.answering import PartAnswers, answer_part, placement_failures
from patchcert.studies.config import StudyConfig, VarianceConfig
from patchcert.studies.questions import questions
from patchcert.studies.result_folders import read_table
from patchcert.studies.results import PLACEMENTS, StudyResult
from patchcert.studies.variance import VarianceAccumulator, draw_part, draw_questions
from patchcert.studies.variance_results import REPEATS
from patchcert.verification.claims import StudyClaim, TableClaim
from patchcert.verification.rescoring import Rescored, tolerance_of
from patchcert.votes import SCORE_SCALE, VotePart, rounded_score

Columns = dict[str, np.ndarray]

# The last digits of floats follow the versions of libraries.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Answering:
    """How one study answers.

    Attributes:
        answer: votes of consecutive images -> columns, one value an image.
        thresholds: stored scores from which classes get votes.
        ballots: for a column that claims something of a prediction, the column of that prediction.
        tables: makes the other tables of a study from all answers so far, by the names of their files.
    """

    answer: Callable[[VotePart], Columns]
    thresholds: tuple[int, ...]
    ballots: dict[str, str]
    tables: Callable[[], dict[str, pd.DataFrame]]


def answering(claim: StudyClaim) -> Answering:
    """Return how a study answers.

    Raises:
        ContradictionError: its settings are those of no study of its votes.
    """
    study = claim.study
    with _of_no_study(claim):
        if isinstance(study, StudyResult):
            return _of_study(claim, StudyConfig.from_json(claim.study.identity["study"]))
        return _of_variance(claim, VarianceConfig.from_json(claim.study.identity["variance"]))


@contextlib.contextmanager
def _of_no_study(claim: StudyClaim) -> Iterator[None]:
    try:
        yield
    except (PatchcertError, KeyError, TypeError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise ContradictionError(f"{claim.folder}: its questions cannot be asked of its votes: {problem}") from None


def _of_study(claim: StudyClaim, config: StudyConfig) -> Answering:
    asked = questions(config, claim.views, claim.score_floor, on_warning=lambda text: None)
    parts: list[PartAnswers] = []

    def answer(part: VotePart) -> Columns:
        parts.append(answer_part(part, claim.views, asked))
        return parts[-1].columns

    def tables() -> dict[str, pd.DataFrame]:
        failures = placement_failures(parts, asked, claim.study.subject.image_size)
        return {} if failures is None else {PLACEMENTS: failures}

    ballots = {}
    for question in asked:
        for column in (f"certified/{question.key}", f"margin/{question.key}", f"confidence/{question.confidence_key}"):
            ballots[column] = f"prediction/{question.ballot_key}"
        ballots[f"largest_square/{question.ballot_key}"] = f"prediction/{question.ballot_key}"
    thresholds = {question.vote_threshold for question in asked if question.vote_threshold is not None}
    return Answering(
        answer=answer, thresholds=tuple(map(rounded_score, sorted(thresholds))), ballots=ballots, tables=tables
    )


def _of_variance(claim: StudyClaim, config: VarianceConfig) -> Answering:
    asked = draw_questions(config, claim.views)
    accumulator = VarianceAccumulator(asked)

    def answer(part: VotePart) -> Columns:
        drawn = draw_part(part, config, asked)
        accumulator.add(drawn)
        return drawn.columns

    def tables() -> dict[str, pd.DataFrame]:
        return {REPEATS: accumulator.tables(claim.study.subject).repeats}

    return Answering(answer=answer, thresholds=(), ballots={}, tables=tables)


def compare_with_table(claim: StudyClaim, table: TableClaim) -> str:
    """Answer a study again from all votes of its table, and compare every value.

    Returns:
        In words, what was compared.

    Raises:
        ContradictionError: a value is another one; names column, image and both values.
        VoteTableError: a part of the table is damaged.
    """
    ways, first = answering(claim), 0
    for part in table.parts():
        stored = _stored(claim, slice(first, first + len(part.labels_N)))
        with _of_no_study(claim):
            new = ways.answer(part)
        _check_columns(claim, stored, new)
        for name, values in new.items():
            if (wrong_N := ~_same(stored[name], values)).any():
                index, source = int(wrong_N.argmax()), f"by the votes of {table.folder}"
                more = (
                    f" ({int(wrong_N.sum()):,} of {len(wrong_N):,} images differ in the part at row {part.first_row})"
                )
                raise ContradictionError(_difference(claim, name, new, stored[name], index, source) + more)
        first += len(part.labels_N)
    for file, expected in ways.tables().items():
        if not _same_frames(read_table(claim.folder, file).to_pandas(), expected):
            raise ContradictionError(f"{claim.folder}: {file} does not follow from the votes of {table.folder}.")
    return f"all {first:,} images answered again from {table.folder}"


def compare_with_scores(claim: StudyClaim, rows: np.ndarray, rescored: Iterator[Rescored]) -> str:
    """Answer a study again for images that were scored again, and compare every value of theirs.

    Where a vote hangs on less than the tolerance of scores, a study may claim less than the new votes give, and no more
    than they could give.

    Args:
        claim: the study.
        rows: rows of the images in the data set, ascending.
        rescored: the same images, scored again.

    Returns:
        In words, what agrees and how many images differ within the tolerance.

    Raises:
        ContradictionError: a value is another one; names column, image and both values.
    """
    ways, tolerance = answering(claim), tolerance_of(claim)
    num_near, problems = 0, []
    for row, image in zip(rows.tolist(), rescored, strict=True):
        index = int(np.searchsorted(claim.rows_N, row))
        stored = _stored(claim, slice(index, index + 1))
        with _of_no_study(claim):
            new = ways.answer(image.votes)
        _check_columns(claim, stored, new)
        margin = (tolerance + 1) / SCORE_SCALE
        wrong = [
            name
            for name, values in new.items()
            if not _same(stored[name], values, margin if name.startswith("score_margin/") else _ABSOLUTE).all()
        ]
        if not wrong:
            continue
        num_near += 1
        if image.is_doubtful(tolerance, ways.thresholds):
            wrong = [name for name in wrong if _claims_too_much(name, stored, image, ways, tolerance)]
        if wrong:
            problems.append(_difference(claim, wrong[0], new, stored[wrong[0]], 0, "when the model scores it again"))
    if problems:
        raise ContradictionError(f"{problems[0]} ({len(problems)} of {len(rows)} images scored again differ)")
    near = f", {num_near} of them but for votes that hang on the rounding of scores" if num_near else ""
    return f"all their answers agree{near}"


def _claims_too_much(name: str, stored: Columns, image: Rescored, ways: Answering, tolerance: int) -> bool:
    """Whether a column says more of an image than its scores could give within the tolerance."""
    if name.startswith("prediction/"):
        said = int(stored[name][0])
        if said >= image.scores_VK.shape[1]:
            return True
        return int(ways.answer(image.favouring(said, tolerance))[name][0]) != said
    if not name.startswith(("certified", "margin", "confidence/", "largest_square", "correct", "base_correct")):
        return False
    label = int(stored.get(ways.ballots.get(name, ""), image.votes.labels_N)[0])
    if label >= image.scores_VK.shape[1]:
        return True
    most = ways.answer(image.favouring(label, tolerance))[name][0]
    return bool(float(stored[name][0]) > float(most) + _ABSOLUTE)


def _stored(claim: StudyClaim, rows: slice) -> Columns:
    some = claim.stored.slice(rows.start, rows.stop - rows.start)
    return {name: np.asarray(some[name]) for name in some.column_names}


def _check_columns(claim: StudyClaim, stored: Columns, new: Columns) -> None:
    if different := sorted(stored.keys() ^ new.keys()):
        has, gives = ("no", "one") if different[0] in new else ("a", "none")
        raise ContradictionError(
            f"{claim.folder}: it has {has} column {different[0]}, but its questions and votes give {gives}."
        )


def _same(stored: np.ndarray, new: np.ndarray, absolute: float = _ABSOLUTE) -> np.ndarray:
    """Which values agree, bool, shape (N,)."""
    if len(stored) != len(new):
        return np.zeros(max(len(stored), len(new)), dtype=bool)
    if new.dtype.kind == "f":
        return np.isclose(stored.astype(float), new, rtol=_RELATIVE, atol=absolute, equal_nan=True)
    return np.asarray(stored == new)


def _same_frames(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    return set(found) == set(expected) and all(
        _same(found[name].to_numpy(), expected[name].to_numpy()).all() for name in expected
    )


def _difference(claim: StudyClaim, name: str, new: Columns, stored_N: np.ndarray, index: int, source: str) -> str:
    """In words, what a study says of an image and what it should."""
    said = stored_N[index] if index < len(stored_N) else "missing"
    image = str(new["image_id"][index])
    return f"{claim.folder}: {name} of image {image!r} is {said}, but {new[name][index]} {source}"
