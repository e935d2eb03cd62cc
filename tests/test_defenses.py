"""Every registered defense and recipe: what is certified must survive real patches on real images."""

import dataclasses

import numpy as np
import pytest
import torch

from patchcert.certificates import certify_counting, certify_placement, certify_sampled, predict
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
# Image sides are no multiple of some pitches and strides.
VIEWS = {
    "crop": (12, {"stride": 2}),
    "row": (8, {}),
    "block": (14, {"stride": 3}),
    "columns": ((3, 2), {}),
    "rows": ((3, 2), {}),
    "blocks": ((8, 2), {"pitch": (8, 7)}),
    "sparse": (60, {}),
    "bandnetrow": (8, {}),
    "blocknet": (14, {"stride": 4}),
    "vitband": (4, {}),
    "cropnet": (12, {"stride": 2}),
}
EPOCHS = {"crop": 10, "sparse": 4, "blocks": 12, "bandnetrow": 3, "blocknet": 4, "vitband": 10, "cropnet": 8}
NETWORKS = {
    "crop": "resnet9",
    "bandnetrow": "band-network",
    "vitband": "vit-small",
    "blocknet": "crop-network",
    "cropnet": "crop-network",
}
NUM_SELECTION, NUM_ESTIMATION = 40, 160


def prediction_of(classifier):
    num_samples = NUM_SELECTION + NUM_ESTIMATION if classifier.views.kind == "pixel" else 0
    return PredictionConfig(score_floor=0.1, num_samples=num_samples)


def part_of(classifier, images_NHWC):
    """Scores of all views, from which the votes of every rule follow."""
    scored = score_views(classifier, images_NHWC, prediction_of(classifier), CPU)
    return VotePart(
        image_ids=np.arange(len(images_NHWC)).astype(str),
        labels_N=np.zeros(len(images_NHWC), np.int64),
        num_classes=classifier.num_classes,
        score_floor=0.1,
        **vars(scored),
    )


def votes_of(part, rule):
    return part.votes("top_class") if rule == "top_class" else part.votes(vote_threshold=rule)


def counts_of(votes, num_classes):
    if votes.dtype == bool:
        return votes.sum(axis=1)
    return (votes[..., None] == np.arange(num_classes)).sum(axis=1)


# Models that many tests share are models of these defenses, too; all others are trained where time is no matter.
SHARED = {"column": "column_digits", "bandnet": "one_pass_bands_digits"}
_QUICK = (*SHARED, "sparse")
_PARAMS = [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in DEFENSES]


@pytest.fixture(scope="module", params=_PARAMS)
def defended(request, prepared_digits):
    """A classifier of the defense, trained for a few epochs on real digits of 32x32."""
    defense = DEFENSES[request.param]
    if request.param in SHARED:
        classifier = request.getfixturevalue(SHARED[request.param]).classifier
        assert classifier.cutter.encoding == defense.encoding
        return classifier
    size, changes = VIEWS[request.param]
    # Fewer starts keep the test short.
    views = dataclasses.replace(defense.views((32, 32), size), **changes)
    network = ClassifierConfig(
        network=NETWORKS.get(request.param, "drs-mnist-cnn"),
        width=0.2 if defense.one_pass else 0.125,
        encoding=defense.encoding,
    )
    training = TrainingConfig(
        epochs=EPOCHS.get(request.param, 5),
        batch_size=64,
        views_per_image=0 if defense.one_pass else 4,
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


def verdicts(views, votes, patch):
    """Predictions, and for each certificate of the defense whether it certifies them."""
    counts_NK = counts_of(votes, 10)
    if views.kind == "pixel":
        selection_NK, estimation_NK = (counts_of(part, 10) for part in np.split(votes, [NUM_SELECTION], axis=1))
        outcome = certify_sampled(
            selection_NK,
            estimation_NK,
            num_samples=NUM_ESTIMATION,
            affected_probability=views.affected_probability(patch),
        )
        return outcome.predictions_N, outcome.certified_N
    counting = certify_counting(counts_NK, views.affected(patch))
    placement = certify_placement(votes, views, [patch], num_classes=10)
    np.testing.assert_array_equal(placement.predictions_N, counting.predictions_N)
    assert not (counting.certified_N & ~placement.certified_N).any()
    return placement.predictions_N, placement.certified_N


def affected_by(classifier, patch, row, column, num_images):
    """Which views of each image the patch at a place affects, boolean, (num_images or 1, V)."""
    views = classifier.views
    if views.kind != "pixel":
        return views.incidence(patch)[row * (32 - patch.width + 1) + column][None]
    covered = np.zeros((32, 32), dtype=bool)
    covered[row : row + patch.height, column : column + patch.width] = True
    sampled = prediction_of(classifier).voted_views(views)
    return np.stack([covered.ravel()[sampled.pixels(image)].any(axis=1) for image in range(num_images)])


ATTACK = Patch(height=3, width=2)


@pytest.fixture(scope="module")
def attacked(defended, prepared_digits):
    """Scores of images as they are, and of the same images under attacks.

    The attacker repaints the patch with noise, black, white, inverted pixels and pieces of other classes.
    """
    images = prepared_digits["test"].read(0, NUM_IMAGES).images_NHWC
    rng, parts = np.random.default_rng(1), []
    for content in ("noise", "black", "white", "inverted", "other image"):
        for _ in range(2):
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
            parts.append(part_of(defended, attacked))
    return part_of(defended, images), parts


@pytest.mark.parametrize("rule", ["top_class", 0.3])
def test_certified_images_survive_patches_of_every_kind_of_content(defended, attacked, rule):
    if defended.views.kind == "pixel" and rule != "top_class":
        pytest.skip("samples are certified by their top classes only")
    part, parts_attacked = attacked
    predictions_N, certified_N = verdicts(defended.views, votes_of(part, rule), ATTACK)
    assert certified_N.any(), "a test on nothing that is certified proves nothing"
    flipped = np.zeros(NUM_IMAGES, dtype=bool)
    for changed in parts_attacked:
        flipped |= predict(counts_of(votes_of(changed, rule), 10)) != predictions_N
    assert not (flipped & certified_N).any()


def test_patch_changes_no_vote_of_a_view_that_is_not_affected(defended, prepared_digits):
    images = prepared_digits["test"].read(0, 10).images_NHWC
    patch = Patch(height=3, width=5)
    row, column = 11, 6
    attacked = images.copy()
    attacked[:, row : row + 3, column : column + 5] = 255 - attacked[:, row : row + 3, column : column + 5]
    before, after = (votes_of(part_of(defended, pixels), 0.3) for pixels in (images, attacked))
    affected_NV = np.broadcast_to(affected_by(defended, patch, row, column, 10), before.shape[:2])
    assert 0 < affected_NV.sum() < affected_NV.size
    np.testing.assert_array_equal(before[~affected_NV], after[~affected_NV])
    assert (before[affected_NV] != after[affected_NV]).any()


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
        ("columns4-mnist", "Did you mean column4-mnist?"),
        ("column4x2-mnist", "Did you mean column"),
        ("", "there is no recipe ''"),
    ],
)
def test_unknown_recipe_names_the_nearest(name, match):
    with pytest.raises(RecipeError, match=match.replace("?", r"\?")):
        find_recipe(name)


def test_recipe_of_a_size_that_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="only 28x28"):
        find_recipe("column29-mnist")
