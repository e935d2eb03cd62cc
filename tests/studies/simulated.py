"""Studies over the votes of an imagined classifier, for tests."""

import contextlib
import dataclasses
import functools
from unittest import mock

import numpy as np

from patchcert.data.storage import Folder
from patchcert.geometry import BandViews, CropViews
from patchcert.studies import StudyConfig, Subject, answer_part, write_study
from patchcert.studies.questions import questions
from patchcert.votes import SCORE_SCALE, VotePart
from patchcert.votes.table import SCHEMA_VERSION, finish_table, part_name, write_part


def simulated_part(views, num_images, *, num_classes=10, seed=0, score_floor=None, first_row=0, spread=1.0):
    """Votes of an imagined classifier: images differ in difficulty, neighbouring views agree."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, num_classes, num_images)
    ease_N = rng.normal(2.6, 1.6, num_images)
    rival_N = rng.integers(0, num_classes, num_images)
    logits_NVK = rng.normal(0, spread, (num_images, views.num_views, num_classes))
    logits_NVK[np.arange(num_images), :, labels_N] += ease_N[:, None] + rng.normal(0, 1, (num_images, views.num_views))
    logits_NVK[np.arange(num_images), :, rival_N] += 0.7
    scores_NVK = np.exp(logits_NVK) / np.exp(logits_NVK).sum(axis=2, keepdims=True)
    part = VotePart(
        image_ids=np.array([f"{first_row + i:05d}" for i in range(num_images)]),
        labels_N=labels_N.astype(np.int64),
        top_classes_NV=scores_NVK.argmax(axis=2).astype(np.uint16),
        num_classes=num_classes,
        first_row=first_row,
    )
    if score_floor is None:
        return part
    stored = np.round(scores_NVK * SCORE_SCALE).astype(np.uint16)
    kept = stored >= score_floor * SCORE_SCALE
    return dataclasses.replace(
        part,
        num_entries_NV=kept.sum(axis=2, dtype=np.uint16),
        entry_classes=np.nonzero(kept)[2].astype(np.uint16),
        entry_scores=stored[kept],
        score_floor=score_floor,
    )


def subject_of(views, part, defense="column4-cifar10", **changes):
    values = {
        "defense": defense,
        "dataset": "cifar10",
        "split": "test",
        "split_digest": "ab" * 32,
        "num_images": len(part.labels_N),
        "num_classes": part.num_classes,
        "views": views.identity(),
        "model_digest": "cd" * 32,
    }
    return Subject(**values | changes)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study and everything it was made from."""

    views: object
    part: object
    config: StudyConfig
    asked: list
    subject: Subject
    parts: list


def make_study(views, part, config, defense, **changes):
    asked = questions(config, views, part.score_floor)
    return Study(
        views=views,
        part=part,
        config=config,
        asked=asked,
        subject=subject_of(views, part, defense, **changes),
        parts=[answer_part(part, views, asked)],
    )


def _blank(drawing, folder):
    paths = {ending: folder / f"{drawing.name}.{ending}" for ending in ("png", "svg")}
    for ending, path in paths.items():
        path.write_bytes(f"{drawing.name} as {ending}".encode())
    return paths


@contextlib.contextmanager
def blank_figures():
    """Figures are files with their name in them: drawing takes nearly all of the time in which a study is written."""
    with contextlib.ExitStack() as stack:
        for module in ("figures", "writing", "variance_results"):
            stack.enter_context(mock.patch(f"patchcert.studies.{module}.save_drawing", _blank))
        yield


def write(study, folder, *, drawn=False, **changes):
    """Write a study, with blank figures unless a test looks at them."""
    values = {
        "subject": study.subject,
        "config": study.config,
        "questions": study.asked,
        "parts": study.parts,
        "identity": {"study": dataclasses.asdict(study.config), "votes": {"model": study.subject.model_digest}},
        "run": {
            "recipe": study.subject.defense,
            "study_seconds": 1.25,
            "environment": {"commit": "0123abc", "dirty": True},
        },
    }
    with contextlib.nullcontext() if drawn else blank_figures():
        return write_study(folder, **values | changes)


@functools.cache
def column_study():
    views = BandViews(image_size=(32, 32), width=4)
    config = StudyConfig(vote_thresholds=(0.3, 0.2, 0.4), patches=("1x1", "2x2", "3x3", "5x5", "7x7", "2.4%@6:1"))
    return make_study(views, simulated_part(views, 300, score_floor=0.1), config, "column4-cifar10")


@functools.cache
def crop_study():
    views = CropViews(image_size=(32, 32), crop_size=10)
    config = StudyConfig(
        certificates=("counting", "placement", "random_crops_reported", "random_crops_exact"),
        patches=("1x1", "2x2", "3x3", "5x5"),
        num_draws=(128, 64, 256, 512),
        replacement=("with", "without"),
        min_confidences=(0.95, 0.99),
    )
    return make_study(views, simulated_part(views, 300, seed=1), config, "crop10-cifar10")


@functools.cache
def fresh_study():
    views = CropViews(image_size=(12, 12), crop_size=4)
    config = StudyConfig(
        certificates=("placement", "random_crops_reported", "fresh_draw"),
        patches=("1x1", "2x2"),
        num_draws=(16, 32, 64),
    )
    return make_study(views, simulated_part(views, 60, seed=2), config, "crop4-test")


def write_table(location, views, part, borders):
    """The votes as a finished vote table on disk, in parts of the given row ranges."""
    identity = {
        "schema_version": SCHEMA_VERSION,
        "views": views.identity(),
        "votes": {
            "rule": "threshold" if part.score_floor else "top_class",
            "score_floor": float(part.score_floor or 0),
            "precision": "float32",
        },
        "model": "cd" * 32,
        "num_classes": part.num_classes,
        "dataset": {
            "name": "digits",
            "variant": "original",
            "split": "test",
            "digest": "ab" * 32,
            "num_images": len(part.labels_N),
            "num_quarantined": 0,
        },
        "preprocessing": {"resize": "none", "interpolation": None},
    }
    folder = Folder(location)
    for index, (start, stop) in enumerate(borders):
        write_part(folder, part_name(index, len(borders)), identity, start, part.rows(start, stop))
    return finish_table(folder, identity, borders)
