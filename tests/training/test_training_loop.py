import dataclasses
import io

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from patchcert.errors import TrainingError
from patchcert.geometry import BandViews, CropViews, Patch
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import open_feed
from patchcert.training.loop import Trainer, view_accuracy
from patchcert.training.objective import certified_margins
from patchcert.training.schedule import learning_rate_at
from patchcert.views.encoding import EncodingConfig

CPU = torch.device("cpu")
BANDS = BandViews(image_size=(32, 32), width=4)
CROPS = CropViews(image_size=(32, 32), crop_size=12, domain="wrap", stride=5)
CNN = ClassifierConfig(network="drs-mnist-cnn", width=0.1, dropout=0.2)
CROP_RESNET9 = ClassifierConfig(
    network="resnet9", width=0.06, dropout=0.2, encoding=EncodingConfig(removed="cut", positional_bound=0.1)
)


def trainer_of(dataset, training, classifier=CNN, views=BANDS, start_seed=0, **workers):
    model = initial_classifier(classifier, views, dataset.num_channels, dataset.num_classes, seed=start_seed)
    return Trainer(model, training, open_feed(dataset, training, **workers), CPU, rank=workers.get("rank", 0))


def tensors_of(state):
    """All tensors and numbers of a trainer's state, flat."""
    if isinstance(state, dict):
        return {f"{key}.{name}": value for key, part in state.items() for name, value in tensors_of(part).items()}
    if isinstance(state, list):
        return tensors_of(dict(enumerate(state)))
    return {"": state}


def assert_equal_states(one, other):
    one, other = tensors_of(one), tensors_of(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


class TestLearning:
    def test_column_smoothing_learns_the_digits_in_a_few_epochs(self, column_digits, prepared_digits):
        self.check(column_digits, prepared_digits["validation"], at_least=0.45)

    def test_randomized_cropping_learns_the_digits_in_a_few_epochs(self, crop_digits, prepared_digits):
        self.check(crop_digits, prepared_digits["validation"], at_least=0.4)
        assert crop_digits.classifier.cutter.positional.abs().max() > 1e-3, "the positional encoding was not learnt"

    def check(self, trained, dataset, at_least):
        first, last = trained.epochs[0], trained.epochs[-1]
        assert last.loss < 0.9 * first.loss
        assert last.view_accuracy > at_least
        assert all(figures.images_per_second > 0 for figures in trained.epochs)
        feed = open_feed(dataset, TrainingConfig(batch_size=50))
        held_out = view_accuracy(trained.classifier, feed.epoch(0), CPU, views_per_image=4, seed=0)
        assert held_out > at_least
        assert abs(held_out - last.view_accuracy) < 0.15


class TestResuming:
    @pytest.mark.parametrize(
        ("classifier", "views", "settings"),
        [
            (CNN, BANDS, {"optimizer": "sgd", "schedule": "one_cycle", "augmentation": "shift_flip"}),
            (CNN, BANDS, {"optimizer": "sgd", "schedule": "steps", "memory_gib": 0.0, "view_sampling": "batch"}),
            (CNN, BANDS, {"view_sampling": "spread", "objective": "certified_margin", "margin_patch": "5x5"}),
            (CROP_RESNET9, CROPS, {"optimizer": "adamw", "schedule": "cosine", "augmentation": "shift"}),
            (CROP_RESNET9, CROPS, {"optimizer": "adamw", "learning_rate": 1e-3, "precision": "bfloat16"}),
            (CROP_RESNET9, CROPS, {"optimizer": "muon", "learning_rate": 0.02}),
        ],
    )
    def test_ends_bitwise_equal_to_an_uninterrupted_run(self, prepared_digits, classifier, views, settings):
        dataset = prepared_digits["train"]
        training = TrainingConfig(epochs=3, batch_size=128, views_per_image=2, **{"learning_rate": 0.01} | settings)
        whole = trainer_of(dataset, training, classifier, views)
        figures = [whole.run_epoch() for _ in range(3)]

        begun = trainer_of(dataset, training, classifier, views)
        begun.run_epoch()
        buffer = io.BytesIO()
        torch.save(begun.state(), buffer)
        # Another process: other start weights, another position of torch's own generator.
        resumed = trainer_of(dataset, training, classifier, views, start_seed=99)
        torch.manual_seed(123)
        buffer.seek(0)
        resumed.load_state(torch.load(buffer, weights_only=True))
        assert resumed.next_epoch == 1
        figures_after = [resumed.run_epoch() for _ in range(2)]

        assert_equal_states(resumed.state(), whole.state())
        for one, other in zip(figures_after, figures[1:], strict=True):
            assert dataclasses.replace(one, images_per_second=0) == dataclasses.replace(other, images_per_second=0)

    def test_the_state_is_plain_and_whole(self, prepared_digits):
        trainer = trainer_of(prepared_digits["validation"], TrainingConfig(epochs=2, batch_size=50))
        trainer.run_epoch()
        state = trainer.state()
        assert state["next_epoch"] == 1
        assert len(state["optimizer"]["state"]) == len(list(trainer.classifier.parameters()))


class TestRandomness:
    SETTINGS = TrainingConfig(batch_size=50, views_per_image=3, augmentation="shift")

    def weights_after_an_epoch(self, prepared_digits, **changes):
        rank = changes.pop("rank", 0)
        training = dataclasses.replace(self.SETTINGS, **changes)
        trainer = trainer_of(prepared_digits["validation"], training, rank=rank, world_size=2)
        trainer.run_epoch()
        return trainer.state()

    def test_comes_from_the_seed_alone(self, prepared_digits):
        torch.manual_seed(1)
        one = self.weights_after_an_epoch(prepared_digits)
        torch.manual_seed(2)
        assert_equal_states(one, self.weights_after_an_epoch(prepared_digits))

    @pytest.mark.parametrize(
        "changes", [{"seed": 1}, {"rank": 1}, {"augmentation": "none"}, {"view_sampling": "batch"}]
    )
    def test_differs_between_seeds_workers_and_settings(self, prepared_digits, changes):
        one, other = (self.weights_after_an_epoch(prepared_digits, **c) for c in ({}, changes))
        name = "network.0.weight"
        assert not torch.equal(one["classifier"][name], other["classifier"][name])

    @pytest.mark.parametrize("sampling", ["image", "batch"])
    def test_views_are_drawn_uniformly(self, prepared_digits, sampling):
        """Pitfall 7: in training too."""
        dataset = prepared_digits["validation"]
        training = TrainingConfig(epochs=8, batch_size=20, views_per_image=6, view_sampling=sampling)
        trainer = trainer_of(dataset, training, dataclasses.replace(CNN, width=0.02), BANDS)
        drawn = []
        trainer.classifier.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[1]))
        for _ in range(8):
            trainer.run_epoch()
        assert {tuple(views_Bn.shape) for views_Bn in drawn} == {(20 if sampling == "image" else 1, 6)}
        counts = np.bincount(torch.cat(drawn).flatten().numpy(), minlength=BANDS.num_views)
        assert len(counts) == BANDS.num_views
        assert chisquare(counts).pvalue > 1e-4
        assert len({views_Bn.numpy().tobytes() for views_Bn in drawn}) > 0.95 * len(drawn)

    def test_images_of_the_feed_are_not_written_to(self, prepared_digits):
        trainer = trainer_of(prepared_digits["validation"], self.SETTINGS)
        before = [images.clone() for images, _ in trainer.feed.epoch(0)]
        trainer.run_epoch()
        for images, (again, _) in zip(before, trainer.feed.epoch(0), strict=True):
            assert torch.equal(images, again)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "steps", "constant"])
def test_the_optimizer_gets_the_scheduled_rate(prepared_digits, schedule):
    training = TrainingConfig(epochs=3, batch_size=50, schedule=schedule)
    trainer = trainer_of(prepared_digits["validation"], training)
    for epoch in range(3):
        expected = learning_rate_at(training, 4 * (epoch + 1) - 1, 12)
        assert trainer.run_epoch().learning_rate == expected
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [expected]


def test_bfloat16_keeps_single_precision_weights(prepared_digits):
    trainer = trainer_of(prepared_digits["validation"], TrainingConfig(batch_size=50, precision="bfloat16"))
    assert np.isfinite(trainer.run_epoch().loss)
    assert {parameter.dtype for parameter in trainer.classifier.parameters()} == {torch.float32}


def test_an_epochs_figures_are_means_over_its_views(prepared_digits):
    # With a rate of nearly nothing the start weights decide them.
    training = TrainingConfig(epochs=1, batch_size=40, views_per_image=2, learning_rate=1e-30, weight_decay=0.0)
    trainer = trainer_of(prepared_digits["validation"], training, dataclasses.replace(CNN, dropout=0.0))
    seen = []
    trainer.classifier.register_forward_hook(lambda _, inputs, logits: seen.append(logits.detach()))
    figures = trainer.run_epoch()
    labels = torch.cat([labels for _, labels in trainer.feed.epoch(0)])
    logits = torch.cat(seen).double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(2))
    assert figures.loss == pytest.approx(float(losses), rel=1e-5)
    assert figures.view_accuracy == float((logits.argmax(2) == labels[:, None]).double().mean())


NETWORKS = """
import torch
from torch import nn

class Explodes(nn.Module):
    '''Returns NaN once, at one of its training steps.'''
    def __init__(self, step, num_input_channels, view_size, num_classes):
        super().__init__()
        self.step, self.num_steps = step, 0
        self.linear = nn.Linear(num_input_channels * view_size[0] * view_size[1], num_classes)

    def forward(self, views):
        logits = self.linear(views.flatten(1))
        if self.training:
            self.num_steps += 1
            if self.num_steps == self.step + 1:
                logits = logits * float("nan")
        return logits

def at_0(*sizes): return Explodes(0, *sizes)
def at_1(*sizes): return Explodes(1, *sizes)
def at_19(*sizes): return Explodes(19, *sizes)
def at_20(*sizes): return Explodes(20, *sizes)
def at_21(*sizes): return Explodes(21, *sizes)
def at_37(*sizes): return Explodes(37, *sizes)
def at_39(*sizes): return Explodes(39, *sizes)
def at_40(*sizes): return Explodes(40, *sizes)
def at_65(*sizes): return Explodes(65, *sizes)
"""


class TestDivergence:
    @pytest.fixture(autouse=True)
    def networks(self, tmp_path, monkeypatch):
        (tmp_path / "exploding_networks.py").write_text(NETWORKS)
        monkeypatch.syspath_prepend(tmp_path)

    @pytest.mark.parametrize("step", [0, 1, 19, 20, 21, 37, 39, 40, 65])
    def test_a_loss_that_is_not_finite_is_named_by_epoch_and_step(self, prepared_digits, step):
        config = ClassifierConfig(network=f"exploding_networks:at_{step}")
        training = TrainingConfig(epochs=2, batch_size=5, learning_rate=1e-3, schedule="constant")
        trainer = trainer_of(prepared_digits["validation"], training, config)
        assert trainer.feed.steps_per_epoch == 40
        words = (
            rf"the loss is nan at step {step % 40} of epoch {step // 40} \(learning rate 0\.001\)\.\n  Lower --train"
        )
        with pytest.raises(TrainingError, match=words):
            for _ in range(2):
                trainer.run_epoch()

    def test_a_diverging_run_stops_early(self, prepared_digits):
        training = TrainingConfig(epochs=1, batch_size=5, learning_rate=1e30, schedule="constant")
        trainer = trainer_of(prepared_digits["train"], training)
        num_steps = []
        trainer.classifier.register_forward_pre_hook(lambda *_: num_steps.append(1))
        with pytest.raises(
            TrainingError, match=r"the loss is (nan|inf) at step \d of epoch 0 \(learning rate 1e\+30\)"
        ):
            trainer.run_epoch()
        assert len(num_steps) <= 21


class TestViewAccuracy:
    def test_counts_like_a_slow_loop(self, column_digits, prepared_digits):
        model = column_digits.classifier
        batches = list(open_feed(prepared_digits["validation"], TrainingConfig(batch_size=20)).epoch(0))[:3]
        drawn = []
        hook = model.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[1]))
        try:
            accuracy = view_accuracy(model, batches, CPU, views_per_image=3, seed=4)
        finally:
            hook.remove()
        num_correct = 0
        with torch.no_grad():
            for (images, labels), views_Bn in zip(batches, drawn, strict=True):
                assert views_Bn.shape == (20, 3)
                for image, label, views_n in zip(images, labels, views_Bn, strict=True):
                    for view in views_n:
                        num_correct += int(model(image[None], view.view(1, 1)).argmax() == label)
        assert accuracy == num_correct / 180

    def test_is_a_function_of_its_seed(self, column_digits, prepared_digits):
        batches = list(open_feed(prepared_digits["validation"], TrainingConfig(batch_size=100)).epoch(0))
        one, same, other = (
            view_accuracy(column_digits.classifier, batches, CPU, views_per_image=1, seed=seed) for seed in (1, 1, 2)
        )
        assert one == same != other


class TestAllViewsInOneStep:
    def test_one_pass_networks_learn_the_digits(self, one_pass_bands_digits, one_pass_crops_digits, prepared_digits):
        TestLearning().check(one_pass_bands_digits, prepared_digits["validation"], at_least=0.45)
        TestLearning().check(one_pass_crops_digits, prepared_digits["validation"], at_least=0.2)

    @pytest.mark.parametrize("network", ["drs-mnist-cnn", "band-network"])
    def test_every_view_of_every_image_counts_once(self, prepared_digits, network):
        views = BandViews(image_size=(32, 32), width=4, stride=7)
        encoding = EncodingConfig(removed="cut" if network == "band-network" else "null")
        config = ClassifierConfig(network=network, width=0.1, encoding=encoding)
        training = TrainingConfig(epochs=1, batch_size=50, views_per_image=0)
        trainer = trainer_of(prepared_digits["validation"], training, config, views)
        seen = []
        trainer.classifier.register_forward_hook(lambda module, inputs, logits: seen.append(logits.detach()))
        labels = torch.cat([labels for _, labels in trainer.feed.epoch(0)])

        figures = trainer.run_epoch()

        logits_NVK = torch.cat(seen).double()
        assert logits_NVK.shape == (len(labels), 5, 10)
        losses = torch.nn.functional.cross_entropy(logits_NVK.flatten(0, 1), labels.repeat_interleave(5))
        assert figures.loss == pytest.approx(float(losses), rel=1e-5)
        assert figures.view_accuracy == float((logits_NVK.argmax(2) == labels[:, None]).double().mean())

    @pytest.mark.slow
    def test_the_certified_objective_learns_leads_that_survive_a_patch(self, prepared_digits):
        views = BandViews(image_size=(32, 32), width=4)
        encoding = EncodingConfig(removed="cut", coordinates=True)
        config = ClassifierConfig(network="band-network", width=0.15, encoding=encoding)
        training = TrainingConfig(
            epochs=4,
            batch_size=32,
            views_per_image=0,
            optimizer="adamw",
            learning_rate=6e-3,
            weight_decay=1e-2,
            objective="certified_margin",
            margin_patch="3x3",
            margin_weight=0.9,
        )
        trainer = trainer_of(prepared_digits["train"], training, config, views)
        for _ in range(training.epochs):
            trainer.run_epoch()
        affected_PV = torch.from_numpy(views.incidence(Patch(height=3, width=3), only_undominated=True)).float()
        images = prepared_digits["validation"].read_all()
        with torch.no_grad():
            logits_BVK = trainer.classifier.eval()(torch.from_numpy(images.images_NHWC).permute(0, 3, 1, 2))
        margins_B = certified_margins(logits_BVK, torch.from_numpy(images.labels_N), affected_PV)
        assert (margins_B > 0).float().mean() > 0.2
