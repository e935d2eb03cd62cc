import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from view_set_cases import view_sets

from patchcert.errors import ModelError
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.one_pass import LocalConvolution, SpanLayer, span_layers
from patchcert.views.encoding import EncodingConfig

CUT = EncodingConfig(removed="cut", mean=(0.4,), std=(0.3,), positional_bound=0.1, coordinates=True)
HUGE = (1e30, float("inf"), float("-inf"), float("nan"))

# Every kind, axis and domain; images that are not square and that no stride divides; short and long windows.
VIEW_SETS = (
    BandViews(image_size=(11, 14), width=4),
    BandViews(image_size=(11, 14), width=5, stride=3),
    BandViews(image_size=(11, 14), width=14),
    BandViews(image_size=(11, 14), width=1, axis="row"),
    BandViews(image_size=(11, 14), width=3, axis="row", stride=2),
    BandViews(image_size=(70, 47), width=25, stride=4),
    BandViews(image_size=(39, 66), width=19, axis="row", stride=10),
    CropViews(image_size=(11, 14), crop_size=(8, 9)),
    CropViews(image_size=(11, 14), crop_size=(5, 6), stride=(3, 2)),
    CropViews(image_size=(11, 14), crop_size=(4, 1), domain="wrap"),
    CropViews(image_size=(11, 14), crop_size=(7, 10), domain="wrap", stride=(2, 3)),
    CropViews(image_size=(40, 37), crop_size=(33, 20), stride=(1, 4)),
    CropViews(image_size=(40, 37), crop_size=(24, 5), domain="wrap", stride=(8, 9)),
    BlockViews(image_size=(11, 14), block_size=(5, 4), stride=(2, 3)),
)


@pytest.fixture(scope="module")
def photos(shared_data, tmp_path_factory):
    """Two real photos at 224x224, uint8 (2, 3, 224, 224)."""
    from patchcert.data import DataConfig, prepare

    config = DataConfig(dataset="imagenet-sample", source=str(shared_data / "imagenet-sample"), resize="pad", limit=2)
    dataset = prepare(config, (224, 224), str(tmp_path_factory.mktemp("photos")), splits=["test"])["test"]
    return torch.from_numpy(dataset.read(0, 2).images_NHWC.transpose(0, 3, 1, 2).copy())


def classifier_for(views, channels=2, seed=0, **settings):
    """A narrow one-pass classifier in evaluation mode whose layers and encodings all matter to the scores."""
    network = "band-network" if views.kind == "band" else "crop-network"
    config = ClassifierConfig(network=network, **{"width": 0.2, "encoding": CUT, **settings})
    classifier = initial_classifier(config, views, channels, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classifier.cutter.positional.normal_(generator=generator)
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # running statistics as after a training: the mean over what was seen
        for _ in range(2):
            classifier(torch.rand(4, channels, *views.image_size, generator=generator))
    return classifier.eval()


@torch.no_grad()
def scores_both_ways(classifier, images):
    pixels = classifier.cutter.encode(images)
    every_view_1V = torch.arange(classifier.views.num_views)[None]
    return classifier.some_views(pixels, every_view_1V), classifier.all_views(pixels)


def assert_equal_scores(classifier, seed=1):
    channels, size = classifier.image_channels, classifier.views.image_size
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(seed))
    alone_BVK, together_BVK = scores_both_ways(classifier, images)
    assert together_BVK.shape == (2, classifier.views.num_views, 5)
    assert together_BVK.dtype == torch.float32
    torch.testing.assert_close(together_BVK, alone_BVK, atol=1e-4, rtol=0)
    return together_BVK


@pytest.mark.parametrize("views", VIEW_SETS, ids=lambda views: views.describe())
def test_one_pass_gives_every_view_the_score_it_has_alone(views):
    together_BVK = assert_equal_scores(classifier_for(views))
    assert (together_BVK[0] - together_BVK[1]).abs().max() > 1e-2, "scores that ignore the image prove nothing"
    if views.num_views > 1:
        assert (together_BVK - together_BVK[:, :1]).abs().max() > 1e-2, "views that score alike prove nothing"


@pytest.mark.parametrize(
    "views",
    [
        *(BandViews(image_size=(224, 224), width=19, stride=stride) for stride in (1, 4, 7, 10)),
        *(CropViews(image_size=(224, 224), crop_size=80, stride=stride) for stride in (1, 4, 7, 10)),
    ],
    ids=lambda views: views.describe(),
)
def test_photos_at_network_size_get_the_scores_and_votes_of_views_alone(views, photos):
    classifier = classifier_for(views, channels=3, width=0.1)
    few_1n = torch.linspace(0, views.num_views - 1, 9).long()[None]
    with torch.no_grad():
        together_BnK = classifier(photos)[:, few_1n[0]]
        alone_BnK = classifier(photos, few_1n)
    torch.testing.assert_close(together_BnK, alone_BnK, atol=1e-4, rtol=0)
    assert torch.equal(together_BnK.argmax(dim=2), alone_BnK.argmax(dim=2))
    assert (together_BnK - together_BnK[:, :1]).abs().max() > 1e-2, "views that score alike prove nothing"


@given(view_sets(max_height=9, max_width=10, kinds=("valid", "wrap", "block", "column", "row")), st.integers(1, 3))
@examples(40)
def test_one_pass_is_exact_for_any_grid_of_crops_and_bands(case, channels):
    assert_equal_scores(classifier_for(case[0], channels, width=0.05))


@pytest.mark.parametrize("views", VIEW_SETS, ids=lambda views: views.describe())
def test_nothing_outside_a_view_reaches_its_score(views):
    """Pitfall 12, bit for bit; and every retained pixel does reach it."""
    classifier = classifier_for(views)
    image = torch.rand(1, 2, *views.image_size, generator=torch.Generator().manual_seed(2))
    retained_VHW = torch.from_numpy(views.retained(range(views.num_views)))
    with torch.no_grad():
        clean_VK = classifier(image)[0]
        for view in {0, views.num_views // 2, views.num_views - 1}:
            for value in HUGE:
                outside = torch.where(retained_VHW[view], image, value)
                assert torch.equal(classifier(outside)[0, view], clean_VK[view])
    for view in {0, views.num_views // 2, views.num_views - 1}:
        pixels = image.clone().requires_grad_()
        classifier(pixels)[0, view].square().sum().backward()
        reached_HW = pixels.grad[0].abs().sum(dim=0) > 0
        assert not reached_HW[~retained_VHW[view]].any()
        assert reached_HW[retained_VHW[view]].float().mean() > 0.95


@given(st.integers(1, 130), st.integers(1, 20))
@examples(200)
def test_layers_span_exactly_the_window(length, stride):
    """Oracle: the pixels that the first two positions read, by following the taps."""
    first, second = {0}, {1}
    for layer in reversed(span_layers(length, stride)):
        first, second = (
            {p * layer.stride + tap * layer.dilation for p in places for tap in range(layer.kernel)}
            for places in (first, second)
        )
    assert first == set(range(length))
    assert second == {pixel + stride for pixel in first}


def test_long_windows_take_few_layers():
    assert [len(span_layers(length, 1)) for length in (1, 2, 3, 4, 10, 19, 25, 80)] == [1, 1, 1, 2, 5, 5, 5, 9]


@pytest.mark.parametrize("stride", [1, 4, 7, 10])
def test_layers_of_long_windows_have_few_taps(stride):
    """Many taps at neighbouring pixels would be most of the cost."""
    for length in range(17, 225):
        assert {layer.kernel for layer in span_layers(length, stride)} <= {3, 4}


def test_positions_are_dropped_as_soon_as_the_starts_allow_it():
    strides = {stride: [layer.stride for layer in span_layers(80, stride)] for stride in (4, 7, 8)}
    assert strides == {4: [1, 2, 1, 2, 1, 1, 1, 1, 1], 7: [1, 1, 1, 1, 1, 7, 1, 1, 1], 8: [1, 2, 1, 2, 1, 2, 1, 1, 1]}


@pytest.mark.parametrize("free_axis", [-1, 0, 1])
def test_convolution_tap_by_tap_is_the_convolution(free_axis):
    torch.manual_seed(3)
    layer = SpanLayer(kernel=3, dilation=1, stride=2), SpanLayer(kernel=3, dilation=1 if free_axis == 1 else 2)
    convolution = LocalConvolution(4, 6, layer, free_axis)
    features = torch.rand(2, 4, 12, 9)
    with torch.no_grad():
        torch.testing.assert_close(convolution.tap_by_tap(features), convolution(features))


def test_coordinates_tell_equal_views_apart():
    views = BandViews(image_size=(8, 9), width=2)
    blank = torch.zeros(1, 1, 8, 9)
    plain = EncodingConfig(removed="cut")
    for encoding, differ in ((plain, False), (EncodingConfig(removed="cut", coordinates=True), True)):
        config = ClassifierConfig(network="band-network", width=0.2, encoding=encoding)
        classifier = initial_classifier(config, views, 1, 3, seed=4)
        with torch.no_grad():
            scores_VK = classifier(blank)[0]
        assert bool((scores_VK - scores_VK[0]).abs().max() > 1e-3) == differ


def test_width_scales_the_channels():
    views = BandViews(image_size=(32, 32), width=4)
    full, half = (
        sum(p.numel() for p in classifier_for(views, width=width).parameters() if p.ndim == 4) for width in (0.5, 0.25)
    )
    assert 0.2 * full < half < 0.3 * full


@pytest.mark.parametrize(
    ("network", "views", "removed", "words"),
    [
        ("band-network", CropViews(image_size=(9, 9), crop_size=4), "cut", "needs band views, not 4x4 crops"),
        ("crop-network", BandViews(image_size=(9, 9), width=4), "cut", "needs crop views, not column bands"),
        ("crop-network", BlockViews(image_size=(9, 9), block_size=4), "null", "keeps them at 9x9"),
        (
            "band-network",
            BandViews(image_size=(9, 8), width=4),
            "null",
            "cut down to 9x4, but the encoding keeps them at 9x8.\n.*encoding.removed cut",
        ),
        ("band-network", CellViews(image_size=(9, 9), pitch=3, num_cells=2), "cut", "need removed='null', not 'cut'"),
        ("bandnetwork", BandViews(image_size=(9, 8), width=4), "cut", "Did you mean 'band-network'?"),
    ],
)
def test_views_that_do_not_fit_are_refused(network, views, removed, words):
    config = ClassifierConfig(network=network, encoding=EncodingConfig(removed=removed))
    with pytest.raises(ModelError, match=words.replace("?", r"\?")):
        initial_classifier(config, views, 1, 3, seed=0)


def test_coordinates_of_views_that_stay_in_place_are_refused():
    with pytest.raises(ModelError, match=r"coordinates say where .* \(removed 'null'\) stay in place"):
        EncodingConfig(removed="null", coordinates=True)


def test_other_networks_read_bands_and_blocks_that_are_cut_off():
    for views in (BandViews(image_size=(12, 14), width=9), BlockViews(image_size=(12, 14), block_size=(8, 9))):
        config = ClassifierConfig(network="resnet9", width=0.05, encoding=EncodingConfig(removed="cut"))
        classifier = initial_classifier(config, views, 1, 3, seed=5).eval()
        assert not classifier.one_pass
        with torch.no_grad():
            assert classifier(torch.rand(2, 1, 12, 14)).shape == (2, views.num_views, 3)
