"""What checking costs: the share of digests in voting, and in the answers of a study.

Start: python benchmarks/integrity_cost.py                          (two minutes; the machine may do other things)
       python benchmarks/integrity_cost.py --scored 8 --answered 50 (a quick look)
Result: a table, and benchmarks/results/integrity_cost.json
Stop: Ctrl-C; the file is written at the end.

Everything runs in this process on one thread and is measured in processor time. Voting reads 1,000 real images, scores
some of them and writes a part; checking is what compares rows with their digests, and the digests of parts when the
table is finished. A study reads a table of 10,000 images, whose votes are those of an imagined classifier, and answers
the recipe's questions for some of them; checking is the digest of its parts and records. Where only some images are
scored or answered, their time is multiplied up: neither depends on how many there are.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import patchcert.votes.table as vote_tables
from patchcert.data import DataConfig, PreparedDataset, prepare
from patchcert.data import prepared as prepared_images
from patchcert.data.storage import Folder
from patchcert.models.checkpoint import initial_classifier
from patchcert.prediction.scoring import ViewScorer
from patchcert.provenance import environment
from patchcert.recipes import Recipe, find_recipe
from patchcert.studies import answer_part
from patchcert.studies.questions import questions
from patchcert.votes import SCORE_SCALE, VotePart, VoteTable
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import finish_table, part_name, write_part

RESULTS = Path(__file__).parent / "results" / "integrity_cost.json"
NUM_READ, NUM_IN_TABLE = 1_000, 10_000
IMAGES_PER_PART = 200
BARS = {"voting": 0.02, "study": 0.05}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    recipes: tuple[str, ...] = ("column4-cifar10", "bandnet4-cifar10")
    """A network that reads each view, and one that scores all of them in one pass: the fastest there is to check."""
    scored: int = 32
    """Images that are scored by each."""
    answered: int = 200
    """Images that a study answers."""


class Watch:
    """Adds up the processor time of this thread, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timing(self, name: str, factor: float = 1.0) -> Iterator[None]:
        """Measures a block; ``factor`` multiplies what it took."""
        started = time.thread_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + factor * (time.thread_time() - started)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured whenever it is called in this thread."""

        def call(*arguments: Any, **settings: Any) -> Any:
            with self.timing(name):
                return function(*arguments, **settings)

        return call


@contextlib.contextmanager
def digests_timed(watch: Watch) -> Iterator[None]:
    """Measures every digest that is made while images and votes are read and written."""
    places = (
        (prepared_images.PreparedDataset, "_check_rows"),
        (vote_tables, "digest_of"),
        (vote_tables, "read_sealed"),
    )
    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, watch.timed("checking", function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def identity_of(recipe: Recipe, dataset: PreparedDataset, num_images: int) -> dict[str, Any]:
    """Identity of a table of so many images."""
    identity = vote_identity(
        recipe.voted_views,
        dataset,
        model_digest="0" * 64,
        score_floor=recipe.prediction.score_floor,
        precision=recipe.prediction.precision,
    )
    identity["dataset"]["num_images"] = num_images
    return identity


def voting(recipe: Recipe, dataset: PreparedDataset, folder: Folder, num_scored: int) -> Watch:
    """Reads all images part by part, scores some of the first part, writes all parts, and finishes the table."""
    classifier = initial_classifier(
        recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, 0
    ).eval()
    scorer = ViewScorer(classifier, recipe.prediction, torch.device("cpu"))
    identity, watch, borders = identity_of(recipe, dataset, NUM_READ), Watch(), dataset.parts(IMAGES_PER_PART)
    prepared_images._CHECKED.clear()
    few = dataset.read(0, num_scored)
    scorer.score(few.images_NHWC[:1])
    with watch.timing("scoring", NUM_READ / num_scored):
        scored = scorer.score(few.images_NHWC)
    prepared_images._CHECKED.clear()
    with digests_timed(watch), watch.timing("reading and writing, with checks"):
        for index, (start, stop) in enumerate(borders):
            batch = dataset.read(start, stop)
            part = repeated(scored, batch.image_ids, batch.labels_N, recipe, dataset.num_classes, start)
            write_part(folder, part_name(index, len(borders)), identity, start, part)
        for index in range(len(borders)):
            # When a table is finished, threads do this.
            with watch.timing("checking"):
                data = folder.read(part_name(index, len(borders)))
            vote_tables.digest_of(data)
    finish_table(folder, identity, borders)
    return watch


def repeated(
    scored: Any, image_ids: np.ndarray, labels_N: np.ndarray, recipe: Recipe, num_classes: int, first_row: int
) -> VotePart:
    """Votes of as many images, made of those that were scored."""
    of_scored = VotePart(
        image_ids=image_ids[: len(scored.top_classes_NV)],
        labels_N=labels_N[: len(scored.top_classes_NV)],
        num_classes=num_classes,
        score_floor=recipe.prediction.score_floor or None,
        **vars(scored),
    )
    times = -(-len(labels_N) // len(of_scored.labels_N))
    names = ("top_classes_NV", "num_entries_NV", "entry_classes", "entry_scores")
    many = {name: np.concatenate([getattr(of_scored, name)] * times) for name in names}
    # Cut to the images of the part.
    whole = dataclasses.replace(of_scored, **many, labels_N=np.resize(labels_N, len(many["top_classes_NV"])))
    cut = dataclasses.replace(whole, image_ids=np.resize(image_ids, len(whole.labels_N))).rows(0, len(labels_N))
    return dataclasses.replace(cut, image_ids=image_ids, labels_N=labels_N, first_row=first_row)


def imagined(recipe: Recipe, num_images: int, num_classes: int, first_row: int) -> VotePart:
    """Votes of an imagined classifier: mostly for the label, with scores of several classes."""
    rng = np.random.default_rng(first_row)
    labels_N = rng.integers(0, num_classes, num_images)
    logits_NVK = rng.normal(0, 1, (num_images, recipe.voted_views.num_views, num_classes))
    logits_NVK[np.arange(num_images), :, labels_N] += rng.normal(2.6, 1.6, num_images)[:, None]
    scores_NVK = np.exp(logits_NVK) / np.exp(logits_NVK).sum(axis=2, keepdims=True)
    kept_NVK = scores_NVK >= recipe.prediction.score_floor
    return VotePart(
        image_ids=np.array([f"cifar10-jpeg/test/{first_row + index:06d}" for index in range(num_images)]),
        labels_N=labels_N,
        top_classes_NV=scores_NVK.argmax(axis=2).astype(np.uint16),
        num_entries_NV=kept_NVK.sum(axis=2, dtype=np.uint16),
        entry_classes=np.nonzero(kept_NVK)[2].astype(np.uint16),
        entry_scores=np.round(scores_NVK[kept_NVK] * SCORE_SCALE).astype(np.uint16),
        num_classes=num_classes,
        score_floor=recipe.prediction.score_floor,
        first_row=first_row,
    )


def study(recipe: Recipe, dataset: PreparedDataset, folder: Folder, num_answered: int) -> Watch:
    """Reads a table of 10,000 images and answers the recipe's questions for some of them."""
    identity, watch = identity_of(recipe, dataset, NUM_IN_TABLE), Watch()
    borders = [(start, start + IMAGES_PER_PART) for start in range(0, NUM_IN_TABLE, IMAGES_PER_PART)]
    for index, (start, _) in enumerate(borders):
        part = imagined(recipe, IMAGES_PER_PART, dataset.num_classes, start)
        write_part(folder, part_name(index, len(borders)), identity, start, part)
    finish_table(folder, identity, borders)
    asked = questions(recipe.study, recipe.voted_views, recipe.prediction.score_floor, on_warning=lambda text: None)
    with digests_timed(watch), watch.timing("reading, with checks"):
        table = VoteTable.open(folder)
        for index in range(table.num_parts):
            # As each of the study's tasks does.
            VoteTable.open(folder)
            part = table.read_part(index)
    some = part.rows(0, min(num_answered, len(part.labels_N)))
    with watch.timing("answering", NUM_IN_TABLE / len(some.labels_N)):
        answer_part(some, recipe.voted_views, asked)
    return watch


def main(settings: Settings) -> None:
    """Measures, prints and stores."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(scratch)
        recipe = find_recipe(settings.recipes[0])
        config = DataConfig(dataset="cifar10-jpeg", limit=NUM_READ)
        dataset = prepare(config, recipe.views.image_size, str(folder.folder("data")), splits=["test"])["test"]
        for name in settings.recipes:
            recipe = find_recipe(name)
            watch = voting(recipe, dataset, folder.folder(f"voting-{name}"), settings.scored)
            found[f"voting, {name}"] = share_of("voting", watch)
        recipe = find_recipe(settings.recipes[0])
        watch = study(recipe, dataset, folder.folder("study"), settings.answered)
        found[f"study, {recipe.name}"] = share_of("study", watch)
    about = {
        "images read and voted on": NUM_READ,
        "images scored": settings.scored,
        "images in the table of the study": NUM_IN_TABLE,
        "images answered": settings.answered,
        "threads": 1,
        "load_average_of_the_machine": os.getloadavg()[0],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "about": about, "shares": found}, indent=1) + "\n")
    for name, share in found.items():
        print(
            f"{name}: {100 * share['share_of_checking']:.2f} % of the time is checking (bar {100 * share['bar']:g} %)"
        )
    print(f"\n{RESULTS}")


def share_of(kind: str, watch: Watch) -> dict[str, Any]:
    """The share of checking in all processor time."""
    whole = sum(seconds for name, seconds in watch.seconds.items() if name != "checking")
    share = watch.seconds["checking"] / whole
    return {"share_of_checking": share, "bar": BARS[kind], "is_met": share <= BARS[kind], "seconds": watch.seconds}


if __name__ == "__main__":
    main(tyro.cli(Settings))
