"""Every registered defense and recipe: what is certified must survive real patches on real images."""

import dataclasses

import numpy as np
import pytest
import torch

from patchcert.certificates import certify_counting, certify_placement, predict
from patchcert.defenses import DEFENSES
from patchcert.errors import GeometryError, RecipeError
from patchcert.geometry import Patch
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.scoring import score_views
from patchcert.recipes import find_recipe, recipe_families, recipe_name
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import open_feed
from patchcert.training.loop import Trainer
from patchcert.votes import VotePart

CPU = torch.device("cpu")
NUM_IMAGES = 40
SIZES = {"column": 8, "row": 8, "block": 14, "crop": 12, "bandnet": 8, "cropnet": 12}
STRIDES = {"column": 1, "row": 1, "block": 3, "crop": 2, "bandnet": 1, "cropnet": 2}
EPOCHS = {"column": 5, "row": 5, "block": 5, "crop": 10, "bandnet": 5, "cropnet": 8}
NETWORKS = {"crop": "resnet9", "bandnet": "band-network", "cropnet": "crop-network"}


def votes_of(classifier, images_NHWC, rule):
    scored = score_views(classifier, images_NHWC, PredictionConfig(score_floor=0.1), CPU)
    part = VotePart(
        image_ids=np.arange(len(images_NHWC)).astype(str),
        labels_N=np.zeros(len(images_NHWC), np.int64),
        num_classes=classifier.num_classes,
        score_floor=0.1,
        **vars(scored),
    )
    return part.votes("top_class") if rule == "top_class" else part.votes(vote_threshold=rule)


def counts_of(votes, num_classes):
    if votes.dtype == bool:
        return votes.sum(axis=1)
    return (votes[..., None] == np.arange(num_classes)).sum(axis=1)


@pytest.fixture(scope="module", params=DEFENSES)
def defended(request, prepared_digits):
    """A classifier of the defense, trained for a few epochs on real digits of 32x32."""
    defense = DEFENSES[request.param]
    views = defense.views((32, 32), SIZES[request.param])
    # Fewer starts keep the test short; strides that do not divide 32 are part of it.
    views = dataclasses.replace(views, stride=STRIDES[request.param])
    one_pass = request.param in ("bandnet", "cropnet")
    network = ClassifierConfig(
        network=NETWORKS.get(request.param, "drs-mnist-cnn"),
        width=0.2 if one_pass else 0.125,
        encoding=defense.encoding,
    )
    training = TrainingConfig(
        epochs=EPOCHS[request.param],
        batch_size=64,
        views_per_image=0 if one_pass else 4,
        optimizer="adamw",
        learning_rate=6e-3,
        weight_decay=1e-2,
    )
    torch.set_num_threads(1)
    classifier = initial_classifier(network, views, 1, 10, seed=0)
    trainer = Trainer(classifier, training, open_feed(prepared_digits["train"], training), CPU)
    for _ in range(training.epochs):
        trainer.run_epoch()
    return classifier.eval()


@pytest.mark.parametrize("rule", ["top_class", 0.3])
def test_certified_images_survive_patches_of_every_kind_of_content(defended, prepared_digits, rule):
    """The attacker repaints the patch with noise, black, white, inverted pixels and pieces of other classes."""
    images = prepared_digits["test"].read(0, NUM_IMAGES).images_NHWC
    patch = Patch(height=3, width=2)
    votes = votes_of(defended, images, rule)
    counts_NK = counts_of(votes, 10)
    predictions_N = predict(counts_NK)
    counting = certify_counting(counts_NK, defended.views.affected(patch))
    placement = certify_placement(votes, defended.views, [patch], num_classes=10)
    np.testing.assert_array_equal(placement.predictions_N, predictions_N)
    np.testing.assert_array_equal(counting.predictions_N, predictions_N)
    assert not (counting.certified_N & ~placement.certified_N).any()
    assert placement.certified_N.any(), "a test on nothing that is certified proves nothing"
    rng = np.random.default_rng(1)
    flipped = np.zeros(NUM_IMAGES, dtype=bool)
    for content in ("noise", "black", "white", "inverted", "other image"):
        for _ in range(3):
            row, column = rng.integers(0, 32 - 3 + 1), rng.integers(0, 32 - 2 + 1)
            box = np.s_[:, row : row + 3, column : column + 2]
            attacked = images.copy()
            attacked[box] = {
                "noise": rng.integers(0, 256, attacked[box].shape),
                "black": np.zeros_like(attacked[box]),
                "white": np.full_like(attacked[box], 255),
                "inverted": 255 - attacked[box],
                "other image": np.roll(attacked, 1, axis=0)[box],
            }[content]
            flipped |= predict(counts_of(votes_of(defended, attacked, rule), 10)) != predictions_N
    assert not (flipped & placement.certified_N).any()


def test_patch_changes_no_vote_of_a_view_that_is_not_affected(defended, prepared_digits):
    images = prepared_digits["test"].read(0, 10).images_NHWC
    patch = Patch(height=3, width=5)
    row, column = 11, 6
    attacked = images.copy()
    attacked[:, row : row + 3, column : column + 5] = 255 - attacked[:, row : row + 3, column : column + 5]
    before, after = votes_of(defended, images, 0.3), votes_of(defended, attacked, 0.3)
    placement = row * (32 - 5 + 1) + column
    affected_V = defended.views.incidence(patch)[placement]
    np.testing.assert_array_equal(before[:, ~affected_V], after[:, ~affected_V])
    assert (before[:, affected_V] != after[:, affected_V]).any()


@pytest.mark.parametrize("family", recipe_families(), ids=lambda family: f"{family.defense}-{family.dataset}")
def test_every_recipe_can_be_built_in_every_listed_size(family):
    for size in family.sizes:
        recipe = find_recipe(recipe_name(family, size))
        assert recipe.name == recipe_name(family, size)
        for text in (*recipe.study.patches, recipe.study.headline_patch):
            Patch.parse(text, recipe.views.image_size)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("colum4-cifar10", "Did you mean column4-cifar10?"),
        ("column4-cifar100", "Did you mean column4-cifar10?"),
        ("column-mnist", "Did you mean column"),
        ("", "there is no recipe ''"),
    ],
)
def test_unknown_recipe_names_the_nearest(name, match):
    with pytest.raises(RecipeError, match=match.replace("?", r"\?")):
        find_recipe(name)


def test_recipe_of_a_size_that_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="only 28x28"):
        find_recipe("column29-mnist")
