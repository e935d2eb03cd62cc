import pytest
import torch
import torchvision
from torch import nn

from patchcert.errors import ModelError
from patchcert.geometry import BandViews, CropViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import NETWORKS, build_network
from patchcert.views.encoding import EncodingConfig


def build(name, channels=2, view_size=(32, 32), num_classes=10, **settings):
    return build_network(ClassifierConfig(network=name, **settings), channels, view_size, num_classes)


# vit-small has blocks of its own number and size: test_vision_transformer.py.
CONVOLUTIONAL = [name for name in NETWORKS if name != "vit-small"]


def weight_shapes(network):
    return [tuple(p.shape) for p in network.parameters() if p.ndim > 1]


@pytest.mark.parametrize("view_size", [(8, 8), (32, 32), (28, 28), (9, 31), (40, 12)])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_own_networks_read_views_of_any_shape(name, view_size):
    network = build(name, 3, view_size, 7, width=0.1).eval()
    views = torch.rand(5, 3, *view_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(views)
        alone = torch.cat([network(view[None]) for view in views])
    assert logits.shape == (5, 7)
    assert len(logits.unique(dim=0)) == 5
    torch.testing.assert_close(alone, logits)


def test_drs_mnist_cnn_has_the_published_layers():
    """Golden: Levine & Feizi 2020, appendix, MNIST base classifier on 28x28 with NULL encoding."""
    shapes = weight_shapes(build("drs-mnist-cnn", 2, (28, 28)))
    assert shapes == [(64, 2, 4, 4), (128, 64, 4, 4), (500, 128 * 7 * 7), (100, 500), (10, 100)]


def test_resnet9_has_the_published_layers_and_no_final_pooling():
    """Golden: the usual ResNet9 (64, 128, residual, 256, 512, residual); a 32x32 image leaves 4x4 positions."""
    shapes = weight_shapes(build("resnet9", 3, (32, 32)))
    channels = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    assert shapes == [*((after, before, 3, 3) for before, after in channels), (10, 512 * 4 * 4)]


def test_resnet18_small_is_resnet18_with_a_small_stem():
    ours = build("resnet18-small", 6, (32, 24))
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(6, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    # The same layers in the same order, under other names.
    reference.load_state_dict(dict(zip(reference.state_dict(), ours.state_dict().values(), strict=True)))
    views = torch.rand(2, 6, 32, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(views), reference.eval()(views))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_width_scales_the_channels(name):
    full, half = (sum(p.numel() for p in build(name, width=width).parameters()) for width in (1.0, 0.5))
    assert 0.2 * full < half < 0.5 * full


@pytest.mark.parametrize("name", ["drs-mnist-cnn", "resnet9"])
def test_dropout_acts_in_training_only(name):
    network = build(name, width=0.2, dropout=0.5)
    assert network.training
    views = torch.rand(4, 2, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(views), network(views))
        network.eval()
        assert torch.equal(network(views), network(views))


@pytest.mark.parametrize(
    ("name", "channels", "view_size"),
    [
        ("resnet34", 6, (80, 72)),
        ("resnet50", 6, (40, 56)),
        ("mobilenet_v3_small", 1, (32, 48)),
        ("efficientnet_b0", 6, (33, 47)),
        ("densenet121", 2, (32, 40)),
        ("squeezenet1_1", 6, (40, 32)),
        ("vit_b_16", 6, (32, 32)),
    ],
)
def test_torchvision_networks_get_a_first_layer_for_encoded_views(name, channels, view_size):
    network = build(f"torchvision:{name}", channels, view_size, 7).eval()
    with torch.device("meta"):
        published = torchvision.models.get_model(name)
    first, plain = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (network, published))
    assert first.in_channels == channels
    for setting in ("out_channels", "kernel_size", "stride", "padding", "dilation"):
        assert getattr(first, setting) == getattr(plain, setting)
    assert (first.bias is None) == (plain.bias is None)
    with torch.no_grad():
        assert network(torch.rand(3, channels, *view_size)).shape == (3, 7)


def test_three_channels_leave_torchvision_networks_as_they_are():
    torch.manual_seed(2)
    ours = build("torchvision:mobilenet_v3_small", 3, num_classes=1000)
    torch.manual_seed(2)
    theirs = torchvision.models.mobilenet_v3_small()
    for (name, value), (their_name, expected) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == their_name
        assert torch.equal(value, expected)


class TestPublishedWeights:
    """A filled torch cache, so that no network is needed."""

    @pytest.fixture(scope="class")
    def published(self, tmp_path_factory):
        torch.manual_seed(3)
        network = torchvision.models.resnet18()
        home = tmp_path_factory.mktemp("torch-home")
        (home / "hub" / "checkpoints").mkdir(parents=True)
        name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
        torch.save(network.state_dict(), home / "hub" / "checkpoints" / name)
        return home, network.state_dict()

    @pytest.fixture
    def weights(self, published, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(published[0]))
        return published[1]

    def test_are_split_between_a_pixel_and_its_inverse(self, weights):
        network = build("torchvision:resnet18", 6, (32, 40), 7, pretrained=True)
        x = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(4))
        original = nn.functional.conv2d(x, weights["conv1.weight"], stride=2, padding=3)
        with torch.no_grad():
            widened = network.conv1(torch.cat([x, 1 - x], dim=1))
        constant = weights["conv1.weight"].sum(dim=(1, 2, 3)) / 2
        interior = (slice(None), slice(None), slice(2, -2), slice(2, -2))
        torch.testing.assert_close((widened + constant[:, None, None])[interior], original[interior], atol=1e-4, rtol=0)
        assert torch.equal(network.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
        assert network.fc.weight.shape == (7, 512)

    def test_stay_as_they_are_for_plain_colour(self, weights):
        network = build("torchvision:resnet18", 3, (32, 40), 1000, pretrained=True)
        for name, value in network.state_dict().items():
            assert torch.equal(value, weights[name])

    @pytest.mark.parametrize("channels", [1, 2])
    def test_do_not_fit_grey_images(self, weights, channels):
        with pytest.raises(ModelError, match=f"read 3 channels, the views have {channels}.*\n.*in colour"):
            build("torchvision:resnet18", channels, (32, 32), pretrained=True)

    def test_that_cannot_be_fetched(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
        with pytest.raises(
            ModelError, match=r"weights of resnet18 cannot be fetched: .*\n.*--classifier.no-pretrained"
        ):
            build("torchvision:resnet18", 3, (32, 32), pretrained=True)


OWN_NETWORKS = """
import torch
from torch import nn

def linear(num_input_channels, view_size, num_classes):
    height, width = view_size
    return nn.Sequential(nn.Flatten(), nn.Linear(num_input_channels * height * width, num_classes))

def one_class_too_many(num_input_channels, view_size, num_classes):
    return linear(num_input_channels, view_size, num_classes + 1)

class Pair(nn.Module):
    def forward(self, views):
        return views, views

def pair(num_input_channels, view_size, num_classes):
    return Pair()

class Fussy(nn.Module):
    def forward(self, views):
        raise KeyError("only on Sundays")

def fussy(num_input_channels, view_size, num_classes):
    return Fussy()

def no_module(num_input_channels, view_size, num_classes):
    return "network"

def wrong_arguments(view_size):
    return nn.Identity()

def broken(num_input_channels, view_size, num_classes):
    raise ZeroDivisionError("one over nothing")
"""


class TestOwnNetworks:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "their_networks.py").write_text(OWN_NETWORKS)
        (tmp_path / "their_broken_networks.py").write_text("def (:\n")
        monkeypatch.syspath_prepend(tmp_path)

    def test_are_built_by_name(self):
        network = build("their_networks:linear", 6, (5, 7), 4)
        assert weight_shapes(network) == [(4, 6 * 5 * 7)]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            (
                "their_networks:one_class_too_many",
                r"returns \(2, 5\) for two views; logits of shape \(2, 4\) are needed",
            ),
            ("their_networks:pair", r"returns tuple for two views; logits of shape \(2, 4\) are needed"),
            ("their_networks:no_module", "returned str, not a torch.nn.Module"),
            ("their_networks:fussy", "cannot read views of 5x7 with 6 channels: 'only on Sundays'\n"),
            ("their_networks:broken", "ZeroDivisionError: one over nothing.\n  Name a function on the Python path"),
            (
                "their_networks:wrong_arguments",
                r"TypeError: .*\n.*takes \(num_input_channels, view_size, num_classes\)",
            ),
            ("their_networks:missing", "AttributeError: .*'missing'"),
            ("their_networks:", "cannot build 'their_networks:'"),
            ("own_netwrks:linear", "ModuleNotFoundError: No module named 'own_netwrks'"),
            ("their_broken_networks:linear", "SyntaxError"),
            (".relative:linear", "cannot build '.relative:linear'"),
            (":linear", "cannot build ':linear'"),
        ],
    )
    def test_that_do_not_work_are_refused(self, name, words):
        with pytest.raises(ModelError, match=words):
            build(name, 6, (5, 7), 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet99", "no network 'resnet99'. Did you mean 'resnet9'?"),
        ("drs_mnist_cnn", "Did you mean 'drs-mnist-cnn'?"),
        ("resnet50", "no network 'resnet50'. Did you mean 'torchvision:resnet50'?"),
        (
            "xyzzy",
            "no network 'xyzzy'.\n  Known: drs-mnist-cnn, resnet9, resnet18-small, vit-small, band-network",
        ),
        ("torchvision:resnet5", "no classifier 'resnet5'. Did you mean 'resnet50'?"),
        ("torchvision:xyzzy", "no classifier 'xyzzy'.\n"),
        ("torchvision:", "no classifier ''"),
    ],
)
def test_unknown_names_get_the_nearest_one(name, words):
    with pytest.raises(ModelError, match=words.replace("?", r"\?")):
        build(name)


@pytest.mark.parametrize(
    ("name", "view_size", "words"),
    [
        ("drs-mnist-cnn", (3, 40), "at least 4x4 pixels, not 3x40"),
        ("resnet9", (9, 7), "at least 8x8 pixels, not 9x7"),
        (
            "torchvision:squeezenet1_1",
            (12, 12),
            "cannot read views of 12x12 with 2 channels: .*\n  Choose larger views",
        ),
        ("torchvision:vit_b_16", (32, 48), "cannot read views of 32x48 with 2 channels: Wrong image height"),
        ("torchvision:vit_b_16", (30, 30), "vit_b_16 cannot read views of 30x30: .*indivisible"),
    ],
)
def test_views_that_do_not_fit_a_network_are_refused(name, view_size, words):
    with pytest.raises(ModelError, match=words):
        build(name, view_size=view_size)


def test_dropout_without_effect_is_refused():
    with pytest.raises(ModelError, match=r"dropout 0.5 has no effect on resnet18-small"):
        build("resnet18-small", dropout=0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0.0}, "width .* must be > 0, not 0.0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, "not -0.1"),
        ({"network": "torchvision:resnet50", "width": 0.5}, "no effect on 'torchvision:resnet50' .width 0.5"),
        ({"network": "own:network", "dropout": 0.5}, "no effect on 'own:network' .width 1.0, dropout 0.5"),
        ({"network": "resnet9", "pretrained": True}, "'resnet9' has no published weights"),
        ({"network": "own:network", "pretrained": True}, "'own:network' has no published weights"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        ClassifierConfig(**settings)


class TestBaseClassifier:
    VIEWS = BandViews(image_size=(9, 12), width=3)
    CONFIG = ClassifierConfig(network="drs-mnist-cnn", width=0.1)

    def test_start_weights_belong_to_a_seed(self):
        torch.manual_seed(5)
        expected_next = torch.rand(3)
        torch.manual_seed(5)
        one, same, other = (initial_classifier(self.CONFIG, self.VIEWS, 1, 4, seed=seed) for seed in (6, 6, 7))
        assert torch.equal(torch.rand(3), expected_next), "torch's own generator was moved"
        for name, value in one.state_dict().items():
            assert torch.equal(value, same.state_dict()[name])
        assert not torch.equal(one.network[0].weight, other.network[0].weight)

    def test_scores_of_a_view_do_not_depend_on_its_company(self):
        classifier = initial_classifier(self.CONFIG, self.VIEWS, 1, 4, seed=8).eval()
        images = torch.randint(0, 256, (3, 1, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
        views_Bn = torch.tensor([[0, 5], [11, 2], [7, 7]])
        with torch.no_grad():
            together_BnK = classifier(images, views_Bn)
            alone_BnK = torch.stack(
                [
                    torch.cat([classifier(image[None], view.view(1, 1))[0] for view in views_n])
                    for image, views_n in zip(images, views_Bn, strict=True)
                ]
            )
            everywhere_BVK = classifier(images, torch.arange(12)[None])
        assert together_BnK.shape == (3, 2, 4)
        assert together_BnK.dtype == torch.float32
        torch.testing.assert_close(together_BnK, alone_BnK)
        torch.testing.assert_close(together_BnK, everywhere_BVK[torch.arange(3)[:, None], views_Bn])

    def test_is_built_for_the_size_of_a_view(self):
        views = CropViews(image_size=(30, 40), crop_size=(9, 17))
        config = ClassifierConfig(network="resnet9", width=0.05, encoding=EncodingConfig(removed="cut"))
        classifier = initial_classifier(config, views, 3, 4, seed=10).eval()
        assert classifier.network[-1].in_features == 26 * 1 * 2
        with torch.no_grad():
            assert classifier(torch.rand(2, 3, 30, 40), torch.tensor([[0, 5, 9]])).shape == (2, 3, 4)
