"""What a core-hour of training buys: one-pass networks and published networks, trained equally long on one core.

Start: python benchmarks/training_cost.py --minutes 15      (four trainings of that length, then about 20 minutes)
       python benchmarks/training_cost.py --minutes 15 --members 1 --recipes bandnet4-cifar10 --objective cross_entropy
Result: a table, and one row a recipe, network and objective in benchmarks/results/training_cost.csv (other rows stay)
Stop: Ctrl-C; finished rows are kept.

Needs CIFAR-10 under $PATCHCERT_DATA (``--dataset`` names the edition). Networks with one pass an image get at most the
time, the others at least: whole epochs of a full one-cycle schedule each. The rule of votes is chosen on held-out
training images, accuracies are those of test images.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import dataclasses
import math
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro

from patchcert.certificates import certify_placement, wilson_interval
from patchcert.data import PreparedDataset, prepare
from patchcert.geometry import Patch
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.models.networks import ONE_PASS_NETWORKS
from patchcert.prediction.scoring import score_views
from patchcert.recipes import Recipe, find_recipe
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import open_feed
from patchcert.training.loop import Trainer
from patchcert.votes import VotePart
from patchcert.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "training_cost.csv"
CPU = torch.device("cpu")
PATCH = "5x5"
RULES = (None, 0.1, 0.2, 0.3, 0.4, 0.5)
PROBE_STEPS = 12


def seconds_per_epoch(recipe: Recipe, dataset: PreparedDataset) -> float:
    """CPU time of an epoch, from the fastest of a few steps of a classifier that is thrown away."""
    trainer = new_trainer(recipe, dataset)
    trainer.classifier.train()
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for step, (images_BCHW, labels_B) in enumerate(trainer.feed.epoch(0)):
        started = time.process_time()
        trainer._step(images_BCHW, labels_B, generator, 1e-3, 0.0)
        seconds.append(time.process_time() - started)
        if step == PROBE_STEPS:
            break
    return min(seconds) * trainer.feed.steps_per_epoch


def new_trainer(recipe: Recipe, dataset: PreparedDataset) -> Trainer:
    torch.manual_seed(recipe.training.seed)
    classifier = initial_classifier(
        recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
    )
    return Trainer(classifier, recipe.training, open_feed(dataset, recipe.training), CPU)


def accuracies(
    classifier: BaseClassifier, recipe: Recipe, dataset: PreparedDataset, num_images: int, rules: tuple
) -> tuple[dict[float | None, tuple[int, int]], float]:
    """Images classified correctly, and certified besides, for each rule of votes; and milliseconds an image."""
    images = dataset.read(0, min(num_images, dataset.num_rows))
    started = time.process_time()
    scored = score_views(classifier.eval(), images.images_NHWC, recipe.prediction, CPU)
    took = 1e3 * (time.process_time() - started) / len(images.labels_N)
    part = VotePart(
        image_ids=images.image_ids,
        labels_N=images.labels_N,
        num_classes=dataset.num_classes,
        score_floor=recipe.prediction.score_floor,
        **vars(scored),
    )
    patch = Patch.parse(PATCH, recipe.views.image_size)
    found: dict[float | None, tuple[int, int]] = {}
    for rule in rules:
        votes = part.votes("top_class") if rule is None else part.votes(vote_threshold=rule)
        outcome = certify_placement(votes, recipe.views, [patch], num_classes=dataset.num_classes)
        right_N = outcome.predictions_N == images.labels_N
        found[rule] = int(right_N.sum()), int((right_N & outcome.certified_N).sum())
    return found, took


def measure(recipe: Recipe, minutes: float, images: int, workspace: Workspace) -> dict:
    size = recipe.views.image_size
    splits = prepare(recipe.data, size, workspace.data(recipe.data, size), splits=["train", "validation", "test"])
    one_pass = recipe.classifier.network in ONE_PASS_NETWORKS
    share = 60 * minutes / seconds_per_epoch(recipe, splits["train"])
    epochs = max(1, math.floor(share) if one_pass else math.ceil(share))
    recipe = dataclasses.replace(
        recipe,
        training=dataclasses.replace(recipe.training, epochs=epochs),
        # Every rule of votes, for recipes that store top classes alone, too.
        prediction=dataclasses.replace(recipe.prediction, score_floor=0.1),
    )
    trainer = new_trainer(recipe, splits["train"])
    started = time.process_time()
    for epoch in range(epochs):
        figures = trainer.run_epoch()
        spent = (time.process_time() - started) / 60
        print(f"{recipe.name}: epoch {epoch + 1} of {epochs}, loss {figures.loss:.3f}, {spent:.1f} min", flush=True)
    chosen, _ = accuracies(trainer.classifier, recipe, splits["validation"], images // 4, RULES)
    rule = max(RULES, key=lambda rule: chosen[rule][1])
    found, took = accuracies(trainer.classifier, recipe, splits["test"], images, (rule,))
    clean, certified = found[rule]
    total = min(images, splits["test"].num_rows)
    members = f"{recipe.classifier.members} x " if recipe.classifier.members > 1 else ""
    low, high = wilson_interval(np.array(certified), total)
    return {
        "recipe": recipe.name,
        "dataset": recipe.data.dataset,
        "network": f"{members}{recipe.classifier.network} of width {recipe.classifier.width:g}",
        "epochs": epochs,
        "training_core_minutes": round(spent, 2),
        "training_precision": recipe.training.precision,
        "objective": recipe.training.objective,
        "optimizer": recipe.training.optimizer,
        "views_per_image": recipe.training.views_per_image or recipe.views.num_views,
        "test_images": total,
        "patch": PATCH,
        "rule_chosen_on_validation": "top class" if rule is None else f"score >= {rule}",
        "clean_accuracy": clean / total,
        "certified_accuracy": certified / total,
        "certified_low": float(low),
        "certified_high": float(high),
        "voting_ms_per_image": round(took, 3),
    }


def _loss(recipe: Recipe, objective: str) -> dict:
    if objective in ("own", recipe.training.objective):
        return {}
    default = TrainingConfig()
    margin = {"margin_patch": PATCH} if objective == "certified_margin" else {"margin_patch": default.margin_patch}
    return {"objective": objective, "margin_weight": default.margin_weight} | margin


def main(
    minutes: float = 15.0,
    images: int = 2000,
    dataset: str = "cifar10-jpeg",
    objective: Literal["own", "cross_entropy", "certified_margin"] = "own",
    members: int | None = None,
    recipes: tuple[str, ...] = ("bandnet4-cifar10", "column4-cifar10", "cropnet10-cifar10", "crop10-cifar10"),
    work: str | None = None,
) -> None:
    """Trains each recipe for the same time and certifies test images.

    Args:
        minutes: CPU time of each training.
        images: test images; a quarter as many held-out ones choose the rule of votes.
        dataset: edition of CIFAR-10.
        objective: loss; own: what each recipe says. certified_margin needs recipes with one pass an image.
        members: networks whose logits are averaged; unset: what each recipe says.
        recipes: what to train.
        work: work folder with the prepared images.
    """
    torch.set_num_threads(1)
    for name in recipes:
        recipe = find_recipe(name)
        recipe = dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, dataset=dataset),
            classifier=dataclasses.replace(recipe.classifier, members=members or recipe.classifier.members),
            # The same arithmetic for all, the fastest there is.
            training=dataclasses.replace(recipe.training, precision="bfloat16", **_loss(recipe, objective)),
        )
        row = measure(recipe, minutes, images, Workspace(work))
        table = pd.DataFrame([row])
        if RESULTS.exists():
            rows = pd.read_csv(RESULTS)
            same = (rows[["recipe", "network", "objective"]] == table.loc[0, ["recipe", "network", "objective"]]).all(
                axis=1
            )
            table = pd.concat([rows[~same], table], ignore_index=True)
        RESULTS.parent.mkdir(exist_ok=True)
        table.to_csv(RESULTS, index=False, lineterminator="\n")
        print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
