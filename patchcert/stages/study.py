"""Answers the questions of a study from a vote table, one Ray task for each part."""

from collections.abc import Callable, Sequence

import ray

from patchcert.stages.retries import with_retries
from patchcert.stages.tasks import results_in_order
from patchcert.studies.answering import PartAnswers, answer_part
from patchcert.studies.questions import Question
from patchcert.votes import VoteTable

_STORAGE_RETRIES = 3


def answer(
    table: VoteTable,
    questions: Sequence[Question],
    *,
    on_part: Callable[[int], None] | None = None,
) -> list[PartAnswers]:
    """Answers all questions from one vote table on the connected Ray cluster.

    Args:
        table: a finished table.
        questions: what to ask of every part.
        on_part: called in this process with the number of images of each finished part.

    Returns:
        The answers of all parts, in the order of the parts.

    Raises:
        PatchcertError: a part of the table cannot be read, or its task was lost in every try.
    """
    answer_of = _AnswerPart(table.location, tuple(questions))
    parts = []
    for part in results_in_order(ray, answer_of, range(table.num_parts), "the answers of a part"):
        parts.append(part)
        if on_part is not None:
            on_part(len(part.columns["label"]))
    return parts


class _AnswerPart:
    """One task: reads its part and answers; a picklable function with its arguments."""

    def __init__(self, location: str, questions: tuple[Question, ...]) -> None:
        self._location, self._questions = location, questions

    def __call__(self, index: int) -> PartAnswers:
        table = with_retries(lambda: VoteTable.open(self._location), _STORAGE_RETRIES)
        part = with_retries(lambda: table.read_part(index), _STORAGE_RETRIES)
        return answer_part(part, table.views, self._questions)
