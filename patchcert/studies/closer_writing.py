"""Makes the tables and drawings of a closer look at the images of studies."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patchcert.data import PreparedDataset
from patchcert.geometry import Patch, ViewSet, view_set_from_identity
from patchcert.studies.closer_figures import Example, class_figure, example_figure, placement_map, square_curve
from patchcert.studies.closer_look import (
    ImageOutcomes,
    accuracy_by_class,
    compare_defenses,
    image_outcomes,
    images_at_the_edge,
)
from patchcert.studies.drawing import Drawing
from patchcert.studies.results import StudyResult
from patchcert.studies.subject import Subject

_EXAMPLES_OF_EACH, _VIEWS_AT_A_TIME = 3, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloserLook:
    """What stands in a report beside the answers.

    Attributes:
        drawings: further figures.
        edges: (closest to losing, closest to gaining their certificate), or nothing.
        pairs: rows of ``compare_defenses``.
    """

    drawings: list[Drawing] = dataclasses.field(default_factory=list)
    edges: tuple[pd.DataFrame, ...] = ()
    pairs: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


def closer_look(
    result: StudyResult, images: pa.Table, placements: pd.DataFrame | None, dataset: PreparedDataset | None
) -> CloserLook:
    """A closer look at one study, at its headline patch; empty where it asked for no theorem there.

    Args:
        result: subject, answers and headline patch are read.
        images: its per-image answers.
        placements: from ``placement_failures``, or None.
        dataset: the images, for examples; None, or one that holds other images: without.
    """
    subject = result.subject
    outcomes = image_outcomes(result.answers, images, result.headline_patch)
    if outcomes is None:
        return CloserLook()
    edges = images_at_the_edge(outcomes)
    if dataset is not None and dataset.digest != subject.split_digest:
        dataset = None
    names = list(dataset.class_names) if dataset is not None else None
    drawings = [class_figure(accuracy_by_class(outcomes), subject.defense, outcomes.patch, names)]
    if curve := square_curve([outcomes], subject.image_size):
        drawings.append(curve)
    if placements is not None:
        shape = placements["row"].max() + 1, placements["column"].max() + 1
        failures = placements["images"].to_numpy().reshape(shape)
        num_right = int(outcomes.correct_N.sum())
        drawings.append(placement_map(failures, num_right, subject.defense, outcomes.patch))
    if dataset is not None and outcomes.worst_placement_N is not None:
        chosen = [name for frame in edges for name in frame["image_id"].head(_EXAMPLES_OF_EACH)]
        if chosen:
            examples = _examples(chosen, outcomes, subject, dataset)
            drawings.append(example_figure(examples, subject.defense, outcomes.patch))
    return CloserLook(drawings=drawings, edges=edges)


def closer_comparison(results: Sequence[StudyResult], patch: str) -> CloserLook:
    """How several studies differ on the images that they share, at one patch."""
    found = [image_outcomes(result.answers, result.per_image(), patch) for result in results]
    outcomes = [images for images in found if images is not None]
    same_size = len({result.subject.image_size for result in results}) == 1
    curve = square_curve(outcomes, results[0].subject.image_size) if same_size else None
    return CloserLook(drawings=[curve] if curve else [], pairs=compare_defenses(outcomes))


def _examples(names: list[str], outcomes: ImageOutcomes, subject: Subject, dataset: PreparedDataset) -> list[Example]:
    views = view_set_from_identity(subject.views)
    patch = Patch.parse(outcomes.patch, subject.image_size)
    rows = {name: row for row, name in enumerate(outcomes.image_ids)}
    assert outcomes.worst_placement_N is not None
    examples = []
    for name in names:
        row = rows[name]
        place = int(outcomes.worst_placement_N[row])
        top, left = divmod(place, patch.placements(subject.image_size)[1])
        batch = dataset.read(row, row + 1)
        covered = np.zeros(subject.image_size, dtype=bool)
        covered[top : top + patch.height, left : left + patch.width] = patch.mask
        examples.append(
            Example(
                image_id=name,
                pixels_HWC=batch.images_NHWC[0],
                label=dataset.class_names[int(batch.labels_N[0])],
                votes_to_spare=int(outcomes.margin_N[row]),
                box=(top, left, patch.height, patch.width),
                covered=patch.mask,
                affected=_seen_by_affected(views, covered),
            )
        )
    return examples


def _seen_by_affected(views: ViewSet, covered: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels that some view retains which retains one of the covered ones, boolean, shape (H, W)."""
    seen = np.zeros_like(covered)
    for start in range(0, views.num_views, _VIEWS_AT_A_TIME):
        retained = views.retained(np.arange(start, min(start + _VIEWS_AT_A_TIME, views.num_views)))
        seen |= retained[(retained & covered).any(axis=(1, 2))].any(axis=0)
    return seen
