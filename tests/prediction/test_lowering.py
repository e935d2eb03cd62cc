import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from view_set_cases import view_sets

from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.convolutions import (
    DenseConvolution,
    PackedConvolution,
    Product,
    WinogradConvolution,
    faster_convolution,
)
from patchcert.prediction.lowering import lowered
from patchcert.prediction.shared_positions import image_features, image_positions, window_layer
from patchcert.views.cutting import ViewCutter
from patchcert.views.encoding import EncodingConfig

MEMORY = 2**24


def trained_like(network, generator):
    """Statistics and weights that all matter."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 2, generator=generator)
                for values in (module.bias, module.running_mean):
                    values.normal_(generator=generator)
    return network.eval()


def classifier_of(views, network, removed, channels=2, **settings):
    encoding = EncodingConfig(removed=removed, mean=(0.4,), std=(0.3,), positional_bound=0.1)
    config = ClassifierConfig(network=network, encoding=encoding, **settings)
    classifier = initial_classifier(config, views, channels, 5, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        classifier.cutter.positional.normal_(generator=generator)
    trained_like(classifier.network, generator)
    return classifier


@torch.inference_mode()
def both(classifier, result, batch=2, chunk=None):
    images = torch.rand(
        batch, classifier.image_channels, *classifier.views.image_size, generator=torch.Generator().manual_seed(2)
    )
    pixels = classifier.cutter.encode(images)
    views = torch.arange(classifier.views.num_views)
    shared = result.features(pixels)
    parts = [result.logits(shared, some) for some in views.split(chunk or len(views))]
    return torch.cat(parts, dim=1), classifier.some_views(pixels, views[None])


@pytest.mark.parametrize(
    ("views", "network", "removed", "settings"),
    [
        (CropViews(image_size=(17, 20), crop_size=10), "resnet9", "cut", {"width": 0.25}),
        (CropViews(image_size=(17, 20), crop_size=(9, 12), domain="wrap", stride=3), "resnet9", "cut", {"width": 0.1}),
        (BandViews(image_size=(18, 21), width=4), "resnet18-small", "null", {"width": 0.1}),
        (BandViews(image_size=(18, 21), width=5, axis="row", stride=4), "resnet18-small", "null", {"width": 0.1}),
        (BandViews(image_size=(18, 21), width=3, stride=2), "drs-mnist-cnn", "null", {"width": 0.2}),
        (BlockViews(image_size=(17, 15), block_size=(4, 6), stride=3), "resnet18-small", "null", {"width": 0.1}),
        (CropViews(image_size=(17, 20), crop_size=10), "resnet9", "cut", {"width": 0.25, "members": 3}),
        (BandViews(image_size=(32, 36), width=8, stride=9), "torchvision:resnet18", "null", {}),
        (CropViews(image_size=(40, 40), crop_size=32, stride=8), "torchvision:squeezenet1_1", "cut", {}),
        (CropViews(image_size=(36, 36), crop_size=32, stride=4), "torchvision:vit_b_32", "cut", {}),
    ],
)
def test_scores_are_those_of_the_network(views, network, removed, settings):
    channels = 3 if network.startswith("torchvision") else 2
    classifier = classifier_of(views, network, removed, channels, **settings)
    result = lowered(classifier, MEMORY)
    assert result is not None
    fast_BVK, plain_BVK = both(classifier, result)
    assert plain_BVK.std(dim=1).max() > 1e-4, "views that score alike prove nothing"
    torch.testing.assert_close(fast_BVK, plain_BVK, rtol=2e-4, atol=1e-4)
    torch.testing.assert_close(both(classifier, result, chunk=3)[0], fast_BVK, rtol=1e-5, atol=1e-5)


def test_published_networks_share_their_first_layers():
    crops = classifier_of(CropViews(image_size=(32, 32), crop_size=10), "resnet9", "cut", 3, width=0.125)
    bands = classifier_of(BandViews(image_size=(32, 32), width=4), "resnet18-small", "null", 3, width=0.125)
    for classifier, least in ((crops, 5), (bands, 12)):
        assert lowered(classifier, MEMORY).num_shared_layers >= least
        twice = classifier_of(
            classifier.views, classifier.config.network, classifier.config.encoding.removed, 3, width=0.125, members=2
        )
        assert lowered(twice, MEMORY).num_shared_layers >= least
        assert lowered(classifier, 1000).num_shared_layers == 0, "memory is a bound"


@given(view_sets(max_height=9, max_width=10), st.integers(1, 3), st.data())
@examples(60)
def test_each_distinct_position_is_computed_once_and_right(case, channels, data):
    """Oracle: the layers on each view alone, bit-for-bit the same positions."""
    views, _ = case
    if not hasattr(views, "row_indices"):
        return
    removed = "cut" if views.kind == "crop" else data.draw(st.sampled_from(["null", "cut"]))
    cutter = ViewCutter(views, EncodingConfig(removed=removed), channels)
    positions = image_positions(cutter)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    pixels = cutter.encode(torch.rand(2, channels, *views.image_size))
    alone = cutter.cut(pixels, torch.arange(views.num_views)[None])
    flat_BPC = image_features(cutter, pixels)
    for _ in range(3):
        kernel, stride, padding = (data.draw(st.integers(*ends)) for ends in ((1, 3), (1, 2), (0, 1)))
        if min(alone.shape[2:]) + 2 * padding < kernel:
            break
        if data.draw(st.booleans()):
            layer = nn.Conv2d(alone.shape[1], 4, kernel, stride, padding)
        else:
            layer = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2))
        with torch.no_grad():
            step = window_layer(positions, layer)
            flat_BPC, positions, alone = step(flat_BPC), step.positions, layer(alone)
        places = positions.of_views()
        assert flat_BPC.shape[1] == positions.count + 1
        assert set(places.unique().tolist()) == set(range(positions.count)), "nothing is computed that no view reads"
        found = flat_BPC[:, places].view(-1, *positions.size, flat_BPC.shape[2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_what_is_shared_keeps_huge_and_infinite_pixels_to_the_views_that_see_them():
    """Pitfall 12, for the layers that views have in common."""
    classifier = classifier_of(CropViews(image_size=(14, 15), crop_size=10), "resnet9", "cut", width=0.5)
    result = lowered(classifier, MEMORY)
    assert result.num_shared_layers
    image = torch.rand(1, 2, 14, 15, generator=torch.Generator().manual_seed(3))
    views = torch.arange(classifier.views.num_views)
    retained_VHW = torch.from_numpy(classifier.views.retained(range(len(views))))
    with torch.inference_mode():
        clean_VK = result.logits(result.features(classifier.cutter.encode(image)), views)[0]
        for view in (0, 14, len(views) - 1):
            for value in (1e30, float("inf"), float("nan")):
                outside = torch.where(retained_VHW[view], image, value)
                pixels = classifier.cutter.encode(outside)
                assert torch.equal(result.logits(result.features(pixels), views)[0, view], clean_VK[view])


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size", "needed", "kind"),
    [
        ((256, 200), 3, 1, 1, (8, 8), None, WinogradConvolution),
        ((256, 256), 3, 1, 1, (7, 4), None, WinogradConvolution),
        ((256, 200), 3, 1, 0, (9, 10), None, WinogradConvolution),
        ((128, 256), 3, 1, 1, (5, 5), (4, 4), WinogradConvolution),
        ((64, 96), 3, 1, 1, (2, 2), None, DenseConvolution),
        ((64, 96), 3, 1, 1, (1, 1), None, DenseConvolution),
        ((64, 32), 3, 2, 1, (2, 3), None, DenseConvolution),
        ((64, 64), 3, 1, 1, (16, 16), None, PackedConvolution),
        ((64, 64), 1, 1, 0, (1, 1), None, PackedConvolution),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_every_form_of_a_convolution_is_the_convolution(channels, kernel, stride, padding, size, needed, kind, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(*channels, kernel, stride, padding, bias=bias)
    build, _ = faster_convolution(convolution, 4, size, needed)
    fast = build()
    assert isinstance(fast, kind)
    features = torch.randn(3, channels[0], *size).relu()
    with torch.inference_mode():
        found = fast(features)
        exact = nn.functional.conv2d(
            features.double(),
            convolution.weight.double(),
            None if convolution.bias is None else convolution.bias.double(),
            stride,
            padding,
        )
    exact = exact[:, :, : found.shape[2], : found.shape[3]]
    assert needed is None or found.shape[2:] == needed
    assert (found - exact).abs().max() < 2e-5 * exact.abs().max()


def test_product_without_onednn_is_the_same(monkeypatch):
    torch.manual_seed(0)
    weight, bias, rows = torch.rand(7, 5), torch.rand(7), torch.rand(3, 2, 5)
    packed = Product(weight, bias)(rows)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(Product(weight, bias)(rows), packed)
    convolution = nn.Conv2d(3, 4, 3)
    plain = PackedConvolution(convolution, (2, 3, 6, 6), (1, 1))
    features = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(
        plain(features), nn.functional.conv2d(features, convolution.weight, convolution.bias, padding=1)
    )


class Wilful(nn.Module):
    """What a trace cannot follow, or follows wrongly."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.layer = nn.Linear(2 * 6 * 6, 5)

    def forward(self, views):
        if self.how == "branches" and views.sum() > 0:
            return self.layer(views.flatten(1))
        if self.how == "asks" and isinstance(views, torch.Tensor):
            return 2 * self.layer(views.flatten(1))
        return -self.layer(views.flatten(1))


@pytest.mark.parametrize("how", ["branches", "asks"])
def test_networks_that_cannot_be_rewritten_are_left_alone(how):
    classifier = classifier_of(CropViews(image_size=(9, 9), crop_size=8), "resnet9", "cut", width=0.05)
    other = BaseClassifier.__new__(BaseClassifier)
    other.__dict__.update(classifier.__dict__)
    other._modules = dict(classifier._modules, network=Wilful(how).eval())
    views = CropViews(image_size=(9, 9), crop_size=6)
    other.views, other.cutter = views, ViewCutter(views, EncodingConfig(removed="cut"), 2)
    assert lowered(other, MEMORY) is None


def test_views_that_are_no_grid_are_left_alone():
    views = CellViews(image_size=(16, 16), pitch=4, num_cells=2)
    classifier = classifier_of(views, "drs-mnist-cnn", "null", width=0.1)
    assert lowered(classifier, MEMORY) is None


def test_the_classifier_is_not_touched():
    classifier = classifier_of(BandViews(image_size=(16, 16), width=4), "resnet18-small", "null", width=0.1)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    lowered(classifier, MEMORY)
    after = classifier.state_dict()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
