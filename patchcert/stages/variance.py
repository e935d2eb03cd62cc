"""Draws views of the images of a vote table again and again, one Ray task for a few hundred images."""

import itertools
from collections.abc import Callable

import ray

from patchcert.stages.tasks import results_in_order
from patchcert.studies.config import VarianceConfig
from patchcert.studies.variance import DrawnImages, DrawQuestion, VarianceAccumulator, draw_part
from patchcert.votes import VoteTable

IMAGES_PER_TASK = 500
"""About a second of work, and sums that are small beside it."""


def draw_repeatedly(
    table: VoteTable,
    config: VarianceConfig,
    questions: list[DrawQuestion],
    *,
    on_images: Callable[[int], None] | None = None,
    images_per_task: int = IMAGES_PER_TASK,
) -> VarianceAccumulator:
    """Draws views of every image of a vote table on the connected Ray cluster; finished tasks are summed as they come.

    Args:
        table: a finished table.
        config: repeats and seed.
        questions: from ``draw_questions``.
        on_images: called in this process with the number of images of each finished task.
        images_per_task: images of one task, whatever the parts of the table; changes no number.

    Returns:
        The draws of all images.
    """
    edges = [*range(0, table.num_images, images_per_task), table.num_images]
    accumulator = VarianceAccumulator(questions)
    draw = _DrawRows(table.location, config, questions)
    for pieces in results_in_order(ray, draw, itertools.pairwise(edges), "the draws of some images"):
        for piece in pieces:
            accumulator.add(piece)
            if on_images is not None:
                on_images(len(piece))
    return accumulator


def draw_rows(
    location: str, start: int, stop: int, config: VarianceConfig, questions: list[DrawQuestion]
) -> list[DrawnImages]:
    """Draws for a range of rows of a vote table, read from as many parts as they lie in.

    Args:
        location: folder or URI of the table.
        start: first row.
        stop: row behind the last one.
        config: repeats and seed.
        questions: from ``draw_questions``.

    Returns:
        One entry for each part that the rows lie in.
    """
    table = VoteTable.open(location)
    pieces = []
    for index, (first, end) in enumerate(table.part_rows):
        rows = max(first, start), min(end, stop)
        if rows[0] < rows[1]:
            part = table.read_part(index).rows(rows[0] - first, rows[1] - first)
            pieces.append(draw_part(part, config, questions))
    return pieces


class _DrawRows:
    """One task, as a picklable function with its arguments."""

    def __init__(self, location: str, config: VarianceConfig, questions: list[DrawQuestion]) -> None:
        self._location, self._config, self._questions = location, config, questions

    def __call__(self, rows: tuple[int, int]) -> list[DrawnImages]:
        return draw_rows(self._location, *rows, self._config, self._questions)
