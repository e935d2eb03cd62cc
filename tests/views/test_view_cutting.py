from itertools import product

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from view_set_cases import view_sets

from patchcert.errors import ModelError
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, PixelViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.views.cutting import ViewCutter
from patchcert.views.encoding import EncodingConfig

HUGE = (1e30, float("inf"), float("-inf"), float("nan"))

# One of each kind, on an image that is not square and that neither stride nor pitch divides.
ONE_OF_EACH = (
    CropViews(image_size=(11, 14), crop_size=(8, 9), stride=(2, 3)),
    CropViews(image_size=(11, 14), crop_size=(9, 8), domain="wrap", stride=(3, 2)),
    BandViews(image_size=(11, 14), width=3, axis="column"),
    BandViews(image_size=(11, 14), width=4, axis="row", stride=2),
    BlockViews(image_size=(11, 14), block_size=(5, 4), stride=(2, 3)),
    CellViews(image_size=(11, 14), pitch=(4, 5), num_cells=2),
    CellViews(image_size=(11, 14), pitch=4, num_cells=2, axis="column"),
)


def encoding_for(views, **settings):
    return EncodingConfig(removed="cut" if views.kind == "crop" else "null", **settings)


def crop_starts(views):
    (height, width), (crop_height, crop_width), (down, right) = views.image_size, views.crop_size, views.stride
    wraps = views.domain == "wrap"
    row_starts = range(0, height if wraps else height - crop_height + 1, down)
    return [(r, c) for r in row_starts for c in range(0, width if wraps else width - crop_width + 1, right)]


def slow_view(image_CHW, views, pixels_of_view, view, mean, std):
    """One view, pixel by pixel, from the definitions."""
    channels, height, width = image_CHW.shape

    def normalised(channel, row, column):
        return (image_CHW[channel, row, column] / 255 - mean[channel]) / std[channel]

    if views.kind == "crop":
        top, left = crop_starts(views)[view]
        crop = np.empty((channels, *views.crop_size))
        for channel, row, column in product(*map(range, crop.shape)):
            crop[channel, row, column] = normalised(channel, (top + row) % height, (left + column) % width)
        return crop
    ablated = np.zeros((2 * channels, height, width))
    for channel, row, column in product(*map(range, image_CHW.shape)):
        if (row, column) in pixels_of_view[view]:
            ablated[channel, row, column] = normalised(channel, row, column)
            ablated[channels + channel, row, column] = 1 - normalised(channel, row, column)
    return ablated


@st.composite
def cutting_cases(draw):
    views, pixels_of_view = draw(view_sets())
    channels = draw(st.integers(1, 3))
    num_statistics = draw(st.sampled_from([0, 1, channels]))
    statistic = st.floats(0.1, 0.9).map(lambda value: round(value, 3))
    mean, std = (tuple(draw(st.lists(statistic, min_size=num_statistics, max_size=num_statistics))) for _ in range(2))
    num_images, num_drawn = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images_NCHW = rng.integers(0, 256, (num_images, channels, *views.image_size), dtype=np.uint8)
    views_Bn = rng.integers(0, views.num_views, (num_images, num_drawn))
    return views, pixels_of_view, encoding_for(views, mean=mean, std=std), images_NCHW, views_Bn


@given(cutting_cases())
@examples(150)
def test_views_are_what_a_slow_loop_over_pixels_cuts(case):
    views, pixels_of_view, encoding, images_NCHW, views_Bn = case
    channels = images_NCHW.shape[1]
    mean, std = (np.resize(values, channels) for values in (encoding.mean or (0.0,), encoding.std or (1.0,)))
    cutter = ViewCutter(views, encoding, channels)

    cut = cutter.cut(cutter.encode(torch.from_numpy(images_NCHW)), torch.from_numpy(views_Bn))

    expected = [
        slow_view(image_CHW, views, pixels_of_view, view, mean, std)
        for image_CHW, drawn in zip(images_NCHW, views_Bn, strict=True)
        for view in drawn
    ]
    assert cut.shape == (views_Bn.size, cutter.num_input_channels, *views.view_size)
    assert cut.dtype == torch.float32
    np.testing.assert_allclose(cut.numpy(), expected, rtol=1e-5, atol=1e-5)


@given(cutting_cases())
@examples(50)
def test_views_shared_by_a_batch_are_the_views_of_each_image(case):
    views, _, encoding, images_NCHW, views_Bn = case
    cutter = ViewCutter(views, encoding, images_NCHW.shape[1])
    pixels = cutter.encode(torch.from_numpy(images_NCHW))
    shared_1n = torch.from_numpy(views_Bn[:1])

    one_by_one = cutter.cut(pixels, shared_1n.expand(len(images_NCHW), -1))

    assert torch.equal(cutter.cut(pixels, shared_1n), one_by_one)


def test_null_encoding_tells_black_white_and_removed_pixels_apart():
    views = BandViews(image_size=(2, 4), width=1)
    images = torch.tensor([[0, 255, 51, 0], [255, 0, 255, 255]], dtype=torch.uint8)[None, None]
    cutter = ViewCutter(views, EncodingConfig(), 1)

    cut = cutter.cut(cutter.encode(images), torch.tensor([[2]]))

    kept, inverse = cut[0]
    torch.testing.assert_close(kept, torch.tensor([[0, 0, 0.2, 0], [0, 0, 1, 0]]))
    torch.testing.assert_close(inverse, torch.tensor([[0, 0, 0.8, 0], [0, 0, 0, 0]]))
    assert (cut[..., [0, 1, 3]] == 0).all()


@pytest.mark.parametrize("views", ONE_OF_EACH, ids=lambda views: views.describe())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floats_in_0_1_are_read_like_bytes(views, dtype):
    cutter = ViewCutter(views, encoding_for(views, mean=(0.3,), std=(0.7,)), 2)
    images = torch.randint(0, 256, (2, 2, 11, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    encoded = cutter.encode((images.float() / 255).to(dtype))

    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, cutter.encode(images), atol=2e-3 if dtype == torch.float16 else 1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_of_unknown_range_are_refused(dtype):
    cutter = ViewCutter(BandViews(image_size=(4, 4), width=1), EncodingConfig(), 1)
    with pytest.raises(ModelError, match=rf"uint8 images or floats in \[0, 1\], not {dtype}"):
        cutter.encode(torch.zeros(1, 1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("views", ONE_OF_EACH, ids=lambda views: views.describe())
def test_neither_images_nor_pixels_are_written_to(views):
    """Pitfall 6: leftovers of one ablation must not show in the next."""
    cutter = ViewCutter(views, encoding_for(views, positional_bound=0.1), 1)
    images = torch.randint(0, 256, (3, 1, 11, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    floats = images.float() / 255
    before = [tensor.clone() for tensor in (images, floats)]
    all_views_1V = torch.arange(views.num_views)[None]
    for tensor in (images, floats):
        pixels = cutter.encode(tensor)
        pixels_before = pixels.detach().clone()
        first = cutter.cut(pixels, all_views_1V)
        again = cutter.cut(pixels, all_views_1V)
        assert torch.equal(first, again)
        assert torch.equal(pixels, pixels_before)
        assert pixels._version == 0
        # A view that the network changes in place must not reach back into the pixels either.
        with torch.no_grad():
            first.fill_(7)
            cutter.cut(pixels, all_views_1V[:, :1]).fill_(7)
        assert torch.equal(pixels, pixels_before)
    for tensor, copy in zip((images, floats), before, strict=True):
        assert tensor._version == 0
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("views", ONE_OF_EACH, ids=lambda views: views.describe())
def test_nothing_outside_a_view_reaches_it(views, huge):
    """Pitfall 12, through a whole classifier, and its gradient."""
    encoding = encoding_for(views, mean=(0.4,), std=(0.2,), positional_bound=0.1)
    network = "resnet9" if views.kind == "crop" else "drs-mnist-cnn"
    config = ClassifierConfig(network=network, width=0.05, encoding=encoding)
    classifier = initial_classifier(config, views, 1, 5, seed=3).eval()
    images = torch.rand(1, 1, 11, 14, generator=torch.Generator().manual_seed(4))
    views_1V = torch.arange(views.num_views)[None]
    with torch.no_grad():
        clean_VK = classifier(images, views_1V)[0]
    retained_VHW = torch.from_numpy(views.retained(np.arange(views.num_views)))
    for view in range(0, views.num_views, max(1, views.num_views // 6)):
        attacked = torch.where(retained_VHW[view], images, huge)
        logits = classifier(attacked, torch.tensor([[view]]))
        torch.testing.assert_close(logits[0, 0].detach(), clean_VK[view], rtol=1e-5, atol=1e-6)

        classifier.zero_grad()
        logits.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())


@pytest.mark.parametrize("huge", HUGE)
def test_a_huge_pixel_changes_exactly_the_views_that_retain_it(huge):
    views = BlockViews(image_size=(9, 12), block_size=(4, 5), stride=(2, 3))
    cutter = ViewCutter(views, EncodingConfig(), 1)
    images = torch.rand(1, 1, 9, 12, generator=torch.Generator().manual_seed(5))
    views_1V = torch.arange(views.num_views)[None]
    clean = cutter.cut(cutter.encode(images), views_1V)
    attacked = images.clone()
    attacked[0, 0, 8, 11] = huge

    changed = cutter.cut(cutter.encode(attacked), views_1V)

    same_V = (changed == clean).flatten(1).all(dim=1).numpy()
    np.testing.assert_array_equal(same_V, ~views.retained(np.arange(views.num_views))[:, 8, 11])


class TestPositionalEncoding:
    VIEWS = CropViews(image_size=(10, 13), crop_size=(4, 5), domain="wrap")
    ENCODING = EncodingConfig(removed="cut", mean=(0.4, 0.5), std=(0.2, 0.25), positional_bound=0.1)

    def test_starts_at_nothing(self):
        images = torch.rand(2, 2, 10, 13, generator=torch.Generator().manual_seed(6))
        plain = EncodingConfig(removed="cut", mean=(0.4, 0.5), std=(0.2, 0.25))
        with_encoding, without = (ViewCutter(self.VIEWS, encoding, 2) for encoding in (self.ENCODING, plain))
        assert torch.equal(with_encoding.encode(images), without.encode(images))
        assert not list(without.parameters())

    @given(st.integers(0, 2**32), st.floats(-1e6, 1e6))
    @examples(50)
    def test_is_bounded_to_its_share_of_the_input_range(self, seed, scale):
        cutter = ViewCutter(self.VIEWS, self.ENCODING, 2)
        noise = torch.randn(2, 10, 13, generator=torch.Generator().manual_seed(seed))
        black, white = (cutter.encode(torch.full((1, 2, 10, 13), value)) for value in (0.0, 1.0))
        input_range_C = (white - black)[0, :, 0, 0]
        with torch.no_grad():
            cutter.positional.copy_(noise * scale)
            shift_CHW = (cutter.encode(torch.zeros(1, 2, 10, 13)) - black)[0]
        assert (shift_CHW.abs() <= 0.1 * input_range_C[:, None, None] * (1 + 1e-5)).all()
        if abs(scale) > 1e3:
            assert shift_CHW.abs().amax() > 0.099 * input_range_C.min()

    def test_each_crop_carries_the_encoding_of_its_own_place(self):
        cutter = ViewCutter(self.VIEWS, self.ENCODING, 2)
        with torch.no_grad():
            cutter.positional.copy_(torch.randn(2, 10, 13, generator=torch.Generator().manual_seed(7)))
            # On a grey image only the encoding tells places apart.
            grey = torch.full((1, 2, 10, 13), 0.5)
            pixels_CHW = cutter.encode(grey)[0].numpy()
            crops = cutter.cut(cutter.encode(grey), torch.arange(self.VIEWS.num_views)[None]).numpy()
        assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == self.VIEWS.num_views
        for (top, left), crop in zip(crop_starts(self.VIEWS), crops, strict=True):
            rows, columns = (top + np.arange(4)) % 10, (left + np.arange(5)) % 13
            np.testing.assert_array_equal(crop, pixels_CHW[:, rows[:, None], columns])

    def test_learns_only_where_its_crop_lies(self):
        cutter = ViewCutter(self.VIEWS, self.ENCODING, 2)
        view = 8 * 13 + 11
        crop = cutter.cut(cutter.encode(torch.rand(1, 2, 10, 13)), torch.tensor([[view]]))
        crop.sum().backward()
        retained_HW = self.VIEWS.retained([view])[0]
        gradient_CHW = cutter.positional.grad.numpy()
        assert (gradient_CHW[:, retained_HW] > 0).all()
        assert (gradient_CHW[:, ~retained_HW] == 0).all()


@pytest.mark.parametrize("views", ONE_OF_EACH[:5], ids=lambda views: views.describe())
def test_what_is_cut_off_leaves_the_window_that_a_view_retains(views):
    """Bands and blocks too; the coordinates travel with the pixels, and the continued image holds every window."""
    cutter = ViewCutter(views, EncodingConfig(removed="cut", coordinates=True), 1)
    image = torch.rand(1, 1, 11, 14, generator=torch.Generator().manual_seed(3))
    pixels = cutter.encode(image)
    cut = cutter.cut(pixels, torch.arange(views.num_views)[None])
    continued = cutter.continued(pixels)[0]

    assert cut.shape == (views.num_views, cutter.num_input_channels, *cutter.view_size)
    for view, (row, column) in enumerate(views.starts.tolist()):
        rows = (row + np.arange(cutter.view_size[0])) % 11
        columns = (column + np.arange(cutter.view_size[1])) % 14
        place = np.meshgrid(rows, columns, indexing="ij")
        assert set(zip(*(axis.ravel() for axis in place), strict=True)) == set(
            zip(*views.retained([view])[0].nonzero(), strict=True)
        )
        expected = [image[0, 0].numpy()[tuple(place)], place[0] / 5 - 1, place[1] / 6.5 - 1]
        np.testing.assert_allclose(cut[view], expected, atol=1e-6)
        window = continued[:, row : row + cutter.view_size[0], column : column + cutter.view_size[1]]
        assert torch.equal(window, cut[view])


class TestRefusals:
    def test_crops_have_nothing_to_null(self):
        views = CropViews(image_size=(8, 9), crop_size=4)
        with pytest.raises(ModelError, match="removed='cut', not 'null'"):
            ViewCutter(views, EncodingConfig(removed="null"), 1)

    @pytest.mark.parametrize("views", ONE_OF_EACH[5:], ids=lambda views: views.describe())
    def test_scattered_cells_cannot_be_cut_off(self, views):
        with pytest.raises(ModelError, match=r"removed='null', not 'cut'.\n  Set --classifier.encoding.removed null"):
            ViewCutter(views, EncodingConfig(removed="cut"), 1)

    @pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 1, 9, 8), (2, 1, 8, 8)])
    def test_images_of_another_shape(self, shape):
        cutter = ViewCutter(BandViews(image_size=(8, 9), width=2), EncodingConfig(), 1)
        with pytest.raises(ModelError, match=r"\(1, 8, 9\), not \(\d, \d, \d\)"):
            cutter.encode(torch.zeros(shape, dtype=torch.uint8))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"removed": "blur"}, "removed is one of cut, null, drop, not 'blur'"),
            ({"mean": (0.5,)}, "mean has 1 channels but std has 0"),
            ({"mean": (0.5,), "std": (0.0,)}, r"std must be positive, not \(0.0,\)"),
            ({"mean": (0.5,), "std": (float("nan"),)}, "std must be positive"),
            ({"positional_bound": 1.5}, "fraction of the input range in .0, 1., not 1.5"),
            ({"positional_bound": -0.1}, "not -0.1"),
            ({"positional_bound": float("nan")}, "not nan"),
        ],
    )
    def test_encodings_without_sense(self, settings, words):
        with pytest.raises(ModelError, match=words):
            EncodingConfig(**settings)

    def test_statistics_of_another_number_of_channels(self):
        encoding = EncodingConfig(mean=(0.1, 0.2), std=(0.3, 0.4))
        with pytest.raises(ModelError, match="mean and std have 2 channels, the images have 3"):
            ViewCutter(BandViews(image_size=(4, 4), width=1), encoding, 3)


@pytest.mark.parametrize(
    "encoding",
    [
        EncodingConfig(),
        EncodingConfig(removed="cut", mean=(0.1, 0.2), std=(0.3, 0.4), positional_bound=0.1),
        EncodingConfig(removed="cut", coordinates=True),
    ],
)
def test_encodings_survive_json(encoding):
    assert EncodingConfig.from_json(encoding.to_json()) == encoding


def test_random_pixels_are_named_by_themselves_and_drawn_alike():
    views = PixelViews(image_size=(3, 4), num_pixels=2)
    cutter = ViewCutter(views, EncodingConfig(), 1)
    images = torch.arange(1, 25, dtype=torch.uint8).view(2, 1, 3, 4)
    pixels_Bnk = torch.tensor([[[0, 5], [11, 2]], [[3, 4], [6, 7]]])
    cut = cutter.cut(cutter.encode(images), pixels_Bnk).view(2, 2, 2, 12)
    for image, view in product(range(2), range(2)):
        kept = pixels_Bnk[image, view].tolist()
        for pixel in range(12):
            x = images[image].flatten()[pixel] / 255 if pixel in kept else 0.0
            inverse = 1 - x if pixel in kept else 0.0
            assert cut[image, view, :, pixel].tolist() == pytest.approx([float(x), float(inverse)])
    drawn = cutter.draw((300, 40), torch.Generator().manual_seed(0))
    assert drawn.shape == (300, 40, 2) and (drawn[..., 0] != drawn[..., 1]).all()
    assert stats.chisquare(np.bincount(drawn.flatten(), minlength=12)).pvalue > 0.01
    again = cutter.draw((300, 40), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_spread_views_keep_even_distances_and_begin_anywhere():
    cutter = ViewCutter(BandViews(image_size=(32, 30), width=4), EncodingConfig(), 1)
    generator = torch.Generator().manual_seed(0)
    spreads = [cutter.spread(8, generator) for _ in range(600)]
    for spread in spreads:
        distances = (spread[0].roll(-1) - spread[0]) % 30
        assert spread.shape == (1, 8) and set(distances.tolist()) == {3, 4}
    firsts = np.bincount([int(spread[0, 0]) for spread in spreads], minlength=30)
    assert stats.chisquare(firsts).pvalue > 0.01
    assert sorted(cutter.spread(30, generator)[0].tolist()) == list(range(30))


@pytest.mark.parametrize(
    "views", [CropViews(image_size=(32, 30), crop_size=10), BlockViews(image_size=(9, 12), block_size=3)]
)
def test_views_of_a_grid_are_spread_over_both_axes(views):
    encoding = EncodingConfig(removed="cut" if views.kind == "crop" else "null")
    cutter = ViewCutter(views, encoding, 1)
    num_columns = len(views.column_indices)
    num_rows = views.num_views // num_columns
    for seed in range(20):
        spread = cutter.spread(16, torch.Generator().manual_seed(seed))[0]
        rows, columns = spread // num_columns, spread % num_columns
        # Each quarter of the grid holds its share of four, one more or less, and a random draw seldom does that.
        for upper in (rows < num_rows // 2, rows >= num_rows // 2):
            for left in (columns < num_columns // 2, columns >= num_columns // 2):
                assert 2 <= int((upper & left).sum()) <= 6
        everything = cutter.spread(views.num_views, torch.Generator().manual_seed(seed))[0]
        assert sorted(everything.tolist()) == list(range(views.num_views))


def test_more_views_than_there_are_cannot_be_spread():
    cutter = ViewCutter(BandViews(image_size=(32, 30), width=4), EncodingConfig(), 1)
    with pytest.raises(ModelError, match=r"31 of column bands of width 4.* cannot be spread"):
        cutter.spread(31, torch.Generator())
