"""What bfloat16 and torch.compile do to speed and to votes on a CPU, with networks that were trained here.

Start: python benchmarks/arithmetic.py                 (one core, about ten minutes; needs MNIST in $PATCHCERT_DATA)
       python benchmarks/arithmetic.py --recipes crop10-digits         (images that ship with scikit-learn)
Result: a table, and benchmarks/results/arithmetic.json
Stop: Ctrl-C; finished recipes are kept, also those of earlier runs.

The baseline is what a table is made with by default: float32 with shortcuts. Times are processor time of one thread,
the best of a few runs that take turns; what happens once (preparation, compilation) stands apart. A vote has changed
when the top class of a view differs; a scored vote, when a class reaches a threshold in one arithmetic alone.
Certificates are those of placement.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from patchcert.certificates import certify_placement
from patchcert.data import PreparedDataset, prepare
from patchcert.errors import ModelError
from patchcert.geometry import Patch
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.prediction.scoring import ViewScorer
from patchcert.provenance import environment
from patchcert.recipes import Recipe, find_recipe
from patchcert.training.feeding import open_feed
from patchcert.training.loop import Trainer
from patchcert.votes import VotePart
from patchcert.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "arithmetic.json"
CPU = torch.device("cpu")
PATCH = "5x5"
THRESHOLD, SCORE_FLOOR = 0.3, 0.1
REPEATS = 3
EPOCHS = {"bandnet2-mnist": 2, "crop10-digits": 12}
WAYS: dict[str, dict[str, Any]] = {
    "float32, shortcuts": {},
    "float32, as written": {"shortcuts": False},
    "float32, torch.compile": {"compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, torch.compile": {"precision": "bfloat16", "compile": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    recipes: tuple[str, ...] = ("crop10-digits", "bandnet2-mnist")
    """What is trained and scored."""
    images: int = 2_000
    """Test images whose votes are compared."""
    timed_images: int = 128
    """Images of a timed run."""
    epochs: int = 0
    """Epochs of training; 0: 2 for bandnet2-mnist, 12 for crop10-digits, for others as the recipe says."""
    width: float = 0.0
    """Width of the networks; 0: as the recipe says."""
    work: str | None = None
    """Work folder with prepared images."""


def trained(recipe: Recipe, dataset: PreparedDataset) -> tuple[BaseClassifier, float]:
    """A classifier trained in this process, in evaluation mode, and the processor seconds that took."""
    torch.manual_seed(recipe.training.seed)
    classifier = initial_classifier(
        recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
    )
    trainer = Trainer(classifier, recipe.training, open_feed(dataset, recipe.training), CPU)
    started = time.process_time()
    for epoch in range(recipe.training.epochs):
        figures = trainer.run_epoch()
        print(f"{recipe.name}: epoch {epoch + 1} of {recipe.training.epochs}, loss {figures.loss:.3f}", flush=True)
    return classifier.eval(), time.process_time() - started


def compared(recipe: Recipe, way: VotePart, baseline: VotePart) -> dict[str, Any]:
    """How votes and certificates of the same images differ."""
    patch = Patch.parse(PATCH, recipe.views.image_size)
    changed: dict[str, Any] = {"patch": PATCH, "threshold": THRESHOLD}
    for rule, words in (({"rule": "top_class"}, "vote"), ({"vote_threshold": THRESHOLD}, "scored_vote")):
        votes, before = way.votes(**rule), baseline.votes(**rule)
        differs_NV = votes != before if votes.ndim == 2 else (votes != before).any(axis=2)
        new, old = (
            certify_placement(either, recipe.views, [patch], num_classes=way.num_classes) for either in (votes, before)
        )
        safe_new, safe_old = (outcome.certified_N & (outcome.predictions_N == way.labels_N) for outcome in (new, old))
        changed |= {
            f"{words}s_changed": float(differs_NV.mean()),
            f"images_with_a_changed_{words}": float(differs_NV.any(axis=1).mean()),
            f"predictions_changed_by_{words}": int((new.predictions_N != old.predictions_N).sum()),
            f"certificates_lost_by_{words}": int((safe_old & ~safe_new).sum()),
            f"certificates_won_by_{words}": int((safe_new & ~safe_old).sum()),
            f"certified_accuracy_by_{words}": float(safe_new.mean()),
        }
    return changed


def measure(recipe: Recipe, settings: Settings) -> list[dict[str, Any]]:
    """One row for each kind of arithmetic."""
    size = recipe.views.image_size
    folder = Workspace(settings.work).data(recipe.data, size)
    splits = prepare(recipe.data, size, folder, splits=["train", "test"])
    classifier, training_seconds = trained(recipe, splits["train"])
    images = splits["test"].read(0, min(settings.images, splits["test"].num_rows))
    timed_NHWC = images.images_NHWC[: settings.timed_images]
    scorers, rows = {}, []
    for way, changes in WAYS.items():
        if classifier.one_pass and "shortcuts" in changes:
            continue  # it has none to do without
        started, begun = time.process_time(), time.perf_counter()
        try:
            scorer = ViewScorer(classifier, dataclasses.replace(recipe.prediction, **changes), CPU)
        except ModelError as error:
            print(f"{recipe.name}: {way} left out: {error}")
            continue
        scorer.score(timed_NHWC[: scorer.chunk_images])
        scorers[way] = scorer
        rows.append(
            {
                "recipe": recipe.name,
                "network": f"{recipe.classifier.network} of width {recipe.classifier.width:g}",
                "epochs": recipe.training.epochs,
                "training_seconds": training_seconds,
                "arithmetic": way,
                "start_seconds": time.perf_counter() - begun,
                "start_cpu_seconds": time.process_time() - started,
            }
        )
    seconds: dict[str, list[float]] = {way: [] for way in scorers}
    for _ in range(REPEATS):
        for way, scorer in scorers.items():
            started = time.process_time()
            scorer.score(timed_NHWC)
            seconds[way].append(time.process_time() - started)
    parts = {
        way: VotePart(
            image_ids=images.image_ids,
            labels_N=images.labels_N,
            num_classes=splits["test"].num_classes,
            score_floor=recipe.prediction.score_floor,
            **vars(scorer.score(images.images_NHWC)),
        )
        for way, scorer in scorers.items()
    }
    baseline = next(iter(WAYS))
    for row in rows:
        way = row["arithmetic"]
        row |= {
            "views": recipe.views.num_views,
            "images": len(images.labels_N),
            "cpu_ms_per_image": 1e3 * min(seconds[way]) / len(timed_NHWC),
            "times_faster": min(seconds[baseline]) / min(seconds[way]),
            **compared(recipe, parts[way], parts[baseline]),
        }
    return rows


def main(settings: Settings) -> None:
    """Trains, measures, prints and stores."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    for name in settings.recipes:
        recipe = find_recipe(name)
        training, classifier = recipe.training, recipe.classifier
        recipe = dataclasses.replace(
            recipe,
            training=dataclasses.replace(training, epochs=settings.epochs or EPOCHS.get(name, training.epochs)),
            classifier=dataclasses.replace(classifier, width=settings.width or classifier.width),
            prediction=dataclasses.replace(recipe.prediction, score_floor=SCORE_FLOOR),
        )
        found = measure(recipe, settings)
        rows = [row for row in rows if row["recipe"] != name] + found
        show(found)
        about = {
            "threads": 1,
            "timed_images": settings.timed_images,
            "best_of": REPEATS,
            "baseline": next(iter(WAYS)),
            "load_average_of_the_machine": os.getloadavg()[0],
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "has_bfloat16_instructions": "avx512_bf16" in Path("/proc/cpuinfo").read_text(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"environment": environment(), "about": about, "results": rows}, indent=1) + "\n")
    print(f"\n{RESULTS}")


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table of a recipe."""
    print(
        f"{'recipe':16}{'arithmetic':26}{'ms an image':>12}{'x faster':>9}{'start s':>9}{'votes':>10}{'scored':>10}"
        f"{'certificates lost, won':>24}{'certified':>11}"
    )
    for row in rows:
        print(
            f"{row['recipe']:16}{row['arithmetic']:26}{row['cpu_ms_per_image']:12.3f}{row['times_faster']:9.2f}"
            f"{row['start_seconds']:9.1f}{row['votes_changed']:10.5%}{row['scored_votes_changed']:10.5%}"
            f"{row['certificates_lost_by_vote']:20},{row['certificates_won_by_vote']:3}"
            f"{row['certified_accuracy_by_vote']:11.4f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
