"""A vote table and questions in, the answers of every part out: CPU tasks on Ray Data."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.data

from patchcert.stages.retries import with_retries
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
    """
    descriptors = [{"part": index} for index in range(table.num_parts)]
    answers = ray.data.from_items(descriptors, override_num_blocks=len(descriptors)).map(
        _AnswerPart(table.location, tuple(questions)), num_cpus=1
    )
    parts: list[PartAnswers | None] = [None] * table.num_parts
    for row in answers.iter_rows():
        # The bytes come from this cluster's own tasks, never from storage.
        parts[row["part"]] = pickle.loads(row["answers"])
        if on_part is not None:
            on_part(row["images"])
    return [part for part in parts if part is not None]


class _AnswerPart:
    """One task: reads its part and answers; a picklable function with its arguments."""

    def __init__(self, location: str, questions: tuple[Question, ...]) -> None:
        self._location, self._questions = location, questions

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        table = with_retries(lambda: VoteTable.open(self._location), _STORAGE_RETRIES)
        part = with_retries(lambda: table.read_part(row["part"]), _STORAGE_RETRIES)
        answers = answer_part(part, table.views, self._questions)
        return {"part": row["part"], "images": len(part.labels_N), "answers": pickle.dumps(answers)}
