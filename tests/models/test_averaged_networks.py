import dataclasses

import pytest
import torch

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, ModelError
from patchcert.geometry import BandViews, CropViews
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, save_checkpoint
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.training.config import TrainingConfig
from patchcert.training.loop import Trainer
from patchcert.views.encoding import EncodingConfig

COLUMNS = BandViews(image_size=(12, 12), width=3)
CROPS = CropViews(image_size=(12, 12), crop_size=8)
CUT = EncodingConfig(removed="cut", coordinates=True)
KINDS = {
    "band-network": (COLUMNS, ClassifierConfig(network="band-network", width=0.2, encoding=CUT)),
    "crop-network": (CROPS, ClassifierConfig(network="crop-network", width=0.2, encoding=CUT)),
    "resnet9": (CROPS, ClassifierConfig(network="resnet9", width=0.1, encoding=CUT)),
    "dropped tokens": (
        COLUMNS,
        ClassifierConfig(network="vit-small", width=0.2, encoding=EncodingConfig(removed="drop")),
    ),
}


def members_of(kind, count=3):
    """A classifier with several members, and each of them as a classifier of its own."""
    views, config = KINDS[kind]
    together = initial_classifier(dataclasses.replace(config, members=count), views, 1, 5, seed=0).eval()
    alone = []
    for network in together.network.members:
        classifier = BaseClassifier(config, views, 1, 5)
        classifier.network.load_state_dict(network.state_dict())
        alone.append(classifier.eval())
    return together, alone


def some_images(count=4):
    return torch.randint(0, 256, (count, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_of_a_view_are_the_mean_over_networks_that_start_apart(kind):
    together, alone = members_of(kind)
    images, views_1n = some_images(), torch.tensor([[3, 0]])

    assert (alone[0](images) - alone[1](images)).abs().max() > 1e-3
    expected_BVK = torch.stack([classifier(images) for classifier in alone]).mean(dim=0)
    torch.testing.assert_close(together(images), expected_BVK, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together(images, views_1n), expected_BVK[:, views_1n[0]], atol=1e-4, rtol=0)
    assert together.one_pass == alone[0].one_pass


@pytest.mark.parametrize("kind", ["band-network", "crop-network", "dropped tokens"])
@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
@torch.no_grad()
def test_nothing_outside_a_view_reaches_the_mean(kind, value):
    together, _ = members_of(kind)
    image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    retained_HW = torch.from_numpy(together.views.retained([2])[0])
    changed = torch.where(retained_HW, image, value)
    assert torch.equal(together(changed)[0, 2], together(image)[0, 2])


def small_training(members, steps=3, **settings):
    views, config = KINDS["band-network"]
    classifier = initial_classifier(dataclasses.replace(config, members=members), views, 1, 5, seed=0)

    class Feed:
        steps_per_epoch = steps

        def epoch(self, epoch):
            generator = torch.Generator().manual_seed(epoch)
            for _ in range(steps):
                labels_B = torch.randint(0, 5, (8,), generator=generator)
                yield torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8, generator=generator), labels_B

    training = TrainingConfig(batch_size=8, views_per_image=4, view_sampling="spread", **settings)
    trainer = Trainer(classifier, training, Feed(), torch.device("cpu"))
    return classifier, trainer


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": 0.05},
        {"optimizer": "adamw", "learning_rate": 1e-3},
        {"optimizer": "muon", "learning_rate": 0.02},
        {"optimizer": "adamw", "learning_rate": 1e-3, "objective": "certified_margin", "margin_patch": "2x2"},
    ],
    ids=["sgd", "adamw", "muon", "margin"],
)
def test_members_learn_as_if_each_were_alone(settings):
    """Oracle: one network with the first member's start weights, trained on the same batches."""
    together, trainer = small_training(2, **settings)
    alone, lone_trainer = small_training(1, **settings)
    alone.network.load_state_dict(together.network.members[0].state_dict())
    start = {name: tensor.clone() for name, tensor in alone.network.state_dict().items()}

    figures, lone_figures = trainer.run_epoch(), lone_trainer.run_epoch()

    for name, expected in alone.network.state_dict().items():
        found = together.network.members[0].state_dict()[name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert any((alone.network.state_dict()[name] - start[name]).abs().max() > 1e-3 for name in start)
    assert 0 <= figures.view_accuracy <= 1
    assert lone_figures.loss > 0


def test_reported_accuracy_is_the_mean_of_the_members():
    together, trainer = small_training(2, steps=1)
    images_BCHW, labels_B = next(iter(trainer.feed.epoch(0)))
    figures = trainer.run_epoch()
    assert figures.view_accuracy * 8 * 4 * 2 == pytest.approx(round(figures.view_accuracy * 8 * 4 * 2))
    assert together.training
    assert together(images_BCHW).shape == (2 * len(labels_B), COLUMNS.num_views, 5)


def test_a_checkpoint_keeps_all_members_and_is_not_taken_for_one_network(tmp_path):
    together, alone = members_of("band-network", count=2)
    folder = Folder(str(tmp_path / "model"))
    save_checkpoint(together, folder, {})
    with torch.no_grad():
        assert torch.equal(load_checkpoint(folder)(some_images()), together(some_images()))
    with pytest.raises(CheckpointError, match=r"holds another model: members"):
        load_checkpoint(folder, classifier=alone[0].config)
    save_checkpoint(alone[0], folder, {})
    with pytest.raises(CheckpointError, match=r"holds another model: members"):
        load_checkpoint(folder, classifier=together.config)


def test_one_member_is_named_as_before():
    assert "members" not in ClassifierConfig().to_json()
    assert ClassifierConfig.from_json(ClassifierConfig(members=3).to_json()).members == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"members": 0}, "members"),
        ({"members": 2, "network": "torchvision:resnet50", "pretrained": True}, "pretrained"),
    ],
)
def test_members_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        ClassifierConfig(**settings)
