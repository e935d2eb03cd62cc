"""Networks that break what certificates assume are refused before any work, and no correct network is."""

import random
import re
import time

import numpy as np
import pytest
import torch

from patchcert.errors import ModelError
from patchcert.geometry import BandViews, BlockViews, CropViews, PixelViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import NETWORKS, ONE_PASS_NETWORKS
from patchcert.models.one_pass import OnePassNetwork
from patchcert.prediction.probing import probe
from patchcert.views.encoding import EncodingConfig

BANDS = BandViews(image_size=(16, 16), width=4)
CUT = EncodingConfig(removed="cut", coordinates=True)


def built(network, views=BANDS, *, channels=1, num_classes=5, **settings):
    return initial_classifier(ClassifierConfig(network=network, **settings), views, channels, num_classes, seed=0)


def own(name):
    return f"own_networks:{name}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch_statistics", r"depend on the views that are scored with it(?s:.*)track_running_stats=False"),
        ("zero_start", "depend on the views that are scored with it"),
        ("small_leak", "depend on the views that are scored with it"),
        ("batch_softmax", "depend on the views that are scored with it"),
        ("place", "on its place"),
        ("batch_size", "on their number"),
        ("large_batches", "on their number"),
        ("gradients_matter", "depend on whether gradients are on"),
        ("dropout_left_on", "do not repeat(?s:.*)dropout"),
        ("rare_dropout", "takes random numbers while it scores"),
        ("noise", "do not repeat"),
        ("memory", "do not repeat|depend on the views"),
        ("counting_buffer", "do not repeat|changes its buffer network.count"),
        ("sleeping_buffer", "changes its buffer network.count while it scores"),
        ("not_finite", "returns scores that are not finite"),
    ],
)
def test_scores_that_are_not_a_function_of_the_view_are_refused(name, words):
    with pytest.raises(ModelError, match=words) as caught:
        probe(built(own(name)))
    assert own(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tuple_in_training", r"in training mode .* returns a tuple for 4 views; logits of shape \(4, 5\) are needed"),
        ("dict_in_training", "returns a dict for 4 views"),
        ("other_shape_in_training", r"returns \(4, 8\) for 4 views"),
        ("error_in_training", "fails in training mode: AttributeError: .*no_such_layer"),
        ("nan_in_training", "the first loss of .* is nan"),
        ("detached", "none of its parameters has a gradient"),
        ("frozen", r"all of its \d+ parameters are frozen(?s:.*)train RECIPE --untrained"),
        ("without_parameters", "it has no parameters(?s:.*)train RECIPE --untrained"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_before_training_and_may_vote(name, words):
    classifier = built(own(name))
    with pytest.raises(ModelError, match=words):
        probe(classifier, trains=True)
    probe(classifier)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("extra_state", "keeps '_extra_state' in its state, a dict; a checkpoint holds dense tensors only"),
        ("sparse_buffer", "keeps 'graph' in its state, a sparse_coo tensor"),
        ("random_projection", "change when the network is saved, built anew and loaded"),
        ("outside_of_state", "change when the network is saved, built anew and loaded"),
        ("refuses_its_state", "do not fit a network that is built anew: this version cannot be loaded"),
    ],
)
def test_state_that_does_not_survive_saving_is_found_before_training(name, words):
    with pytest.raises(ModelError, match=words):
        probe(built(own(name)), trains=True)


@pytest.mark.parametrize(
    "name",
    [
        "plain", "group_norm", "float32_inside", "float32_only", "bfloat16_inside", "large_scores", "tiny_differences",
        "own_generator", "seeds_all", "cache", "tied", "not_copyable",
    ],
)  # fmt: skip
def test_correct_networks_of_users_pass(name):
    probe(built(own(name)), trains=True)
    probe(built(own(name)))


OWN = {
    "drs-mnist-cnn": BandViews(image_size=(32, 32), width=4),
    "resnet9": CropViews(image_size=(32, 32), crop_size=16),
    "resnet18-small": BlockViews(image_size=(32, 32), block_size=8),
    "vit-small": BandViews(image_size=(32, 32), width=4),
    "band-network": BandViews(image_size=(32, 32), width=4),
    "crop-network": CropViews(image_size=(32, 32), crop_size=12, domain="wrap", stride=2),
}


@pytest.mark.parametrize("network", [*NETWORKS, *ONE_PASS_NETWORKS])
@pytest.mark.parametrize("members", [1, 2])
def test_own_networks_pass(network, members):
    views = OWN[network]
    is_cut = network in ONE_PASS_NETWORKS or views.kind == "crop"
    encoding = EncodingConfig(removed="cut", coordinates=network in ONE_PASS_NETWORKS) if is_cut else EncodingConfig()
    classifier = built(network, views, channels=3, width=0.25, members=members, encoding=encoding)
    probe(classifier, trains=True)
    assert classifier.training, "the classifier itself is left as it was"


def test_dropped_tokens_pixels_and_learned_positions_pass():
    drop = EncodingConfig(removed="drop")
    probe(built("vit-small", BandViews(image_size=(32, 32), width=4), width=0.25, encoding=drop), trains=True)
    probe(built("drs-mnist-cnn", PixelViews(image_size=(12, 12), num_pixels=10), width=0.1), trains=True)
    learned = EncodingConfig(removed="cut", positional_bound=0.1)
    probe(built("resnet9", CropViews(image_size=(20, 20), crop_size=16), width=0.1, encoding=learned), trains=True)


@pytest.mark.parametrize("trained", ["column_digits", "crop_digits", "one_pass_bands_digits", "one_pass_crops_digits"])
def test_trained_networks_pass_on_real_images(trained, prepared_digits, request):
    probe(request.getfixturevalue(trained).classifier, prepared_digits["test"].read(0, 2).images_NHWC)


QUICK_FAMILIES = ("mnasnet0_5", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")
OTHER_FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "regnet_y_400mf",
    "swin_t", "vgg11_bn",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [*QUICK_FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FAMILIES)]
)
def test_families_of_torchvision_pass(name):
    probe(built(f"torchvision:{name}", BandViews(image_size=(64, 64), width=8), channels=3), trains=True)


@pytest.mark.slow
def test_large_transformer_passes_in_seconds():
    """In processor time, of which a machine with several cores needs less on the clock."""
    views = BandViews(image_size=(224, 224), width=19, stride=20)
    classifier = built("torchvision:vit_b_16", views, channels=3, num_classes=1000)
    started = time.process_time()
    probe(classifier, trains=True)
    assert time.process_time() - started < 10


def test_families_of_timm_pass():
    pytest.importorskip("timm")
    for name in ("resnet10t", "vit_tiny_patch16_224", "convnext_atto"):
        classifier = built(own(f"timm_{name}"), BandViews(image_size=(224, 224), width=19, stride=20), channels=3)
        probe(classifier, trains=True)


class TestOnePass:
    @pytest.fixture
    def classifier(self):
        return built("band-network", BANDS, width=0.25, encoding=CUT).eval()

    def test_features_that_reach_beyond_a_view_are_refused(self, classifier, monkeypatch):
        forward = OnePassNetwork.forward

        def blurred(self, pixels):
            # What padding or a fast convolution of all windows together may do.
            wide = pixels.shape[3] > 4
            return forward(self, pixels + 0.01 * pixels.roll(1, 3) if wide else pixels)

        monkeypatch.setattr(OnePassNetwork, "forward", blurred)
        with pytest.raises(ModelError, match="in one pass over the image are not those of the view alone"):
            probe(classifier)

    def test_statistics_over_all_windows_are_refused(self, classifier):
        classifier.network.head.register_forward_hook(lambda _module, _inputs, scores: scores - scores.mean(0))
        with pytest.raises(ModelError, match="depend on the views that are scored with it"):
            probe(classifier)


def test_random_numbers_and_weights_are_left_as_they_were():
    classifier = built(own("seeds_all"))
    weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    probe(classifier, trains=True)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())


class TestCommands:
    """Each command refuses such a network before Ray starts and before anything but images is written."""

    SETTINGS = ("--data.limit", "40", "--data.validation-size", "10", "--classifier.width", "1")

    @pytest.fixture
    def refuses(self, tmp_path, capsys):
        from patchcert.cli import main
        from patchcert.data.storage import Folder
        from patchcert.models.checkpoint import save_checkpoint

        def run(name, command, *options, votes_with=None):
            words = [command, "column4-digits", "--work", str(tmp_path / "work"), *self.SETTINGS, *options]
            words += ["--classifier.network", own(name), "--tracking.mode", "off"]
            if votes_with:
                views = BandViews(image_size=(32, 32), width=4)
                save_checkpoint(built(own(name), views, num_classes=10), Folder(tmp_path / "model"), {})
                words += ["--checkpoint", str(tmp_path / "model")]
            assert main(words) == 2
            written = {path.name for path in (tmp_path / "work").iterdir()} if (tmp_path / "work").exists() else set()
            assert written <= {"data"}
            return capsys.readouterr().err

        return run

    @pytest.mark.parametrize("name", ["batch_statistics", "counting_buffer"])
    def test_before_training_voting_timing_and_start_weights(self, refuses, name):
        cause = "depend on the views|changes its buffer|do not repeat"
        for command, options, votes_with in (
            ("train", (), False),
            ("train", ("--untrained",), False),
            ("vote", (), True),
            ("vote", ("--dry-run",), True),
        ):
            said = refuses(name, command, *options, votes_with=votes_with)
            assert re.search(f"ModelError: classifier: .*{own(name)}.*({cause})", said), (command, said)

    @pytest.mark.parametrize("name", ["tuple_in_training", "frozen", "without_parameters", "extra_state"])
    def test_before_training_what_would_fail_in_it_or_after_it(self, refuses, name):
        assert "ModelError: classifier: " in refuses(name, "train")

    def test_before_training_a_module_that_cannot_be_imported(self, tmp_path, capsys):
        from patchcert.cli import main

        words = ["train", "column4-digits", "--work", str(tmp_path), *self.SETTINGS]
        assert main([*words, "--classifier.network", "nowhere_at_all:make", "--tracking.mode", "off"]) == 2
        assert "the code of 'nowhere_at_all:make' cannot be found" in capsys.readouterr().err
