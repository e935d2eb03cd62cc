import copy
import importlib
import sys
import warnings

import numpy as np
import pytest
import torch

from patchcert.data import DataConfig, prepare
from patchcert.errors import ModelError, ResourceError
from patchcert.geometry import BandViews, CropViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.devices import find_device
from patchcert.prediction.scoring import ScoredViews, ViewScorer, score_views
from patchcert.views.encoding import EncodingConfig
from patchcert.votes import SCORE_SCALE, VotePart, rounded_score

CPU = torch.device("cpu")
THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.9)


@pytest.fixture(params=["column_digits", "crop_digits", "one_pass_bands_digits", "one_pass_crops_digits"])
def model(request):
    return request.getfixturevalue(request.param).classifier


@pytest.fixture
def images_NHWC(prepared_digits):
    return prepared_digits["test"].read(0, 7).images_NHWC


def score(model, images_NHWC, image_ids=None, **settings):
    return score_views(model, images_NHWC, PredictionConfig(**settings), CPU, image_ids)


def dense_scores(scored, num_classes):
    """Stored scores, -1 where none is stored, int64 (N, V, K)."""
    num_images, num_views = scored.top_classes_NV.shape
    scores = np.full((num_images * num_views, num_classes), -1)
    view_of_entry = np.repeat(np.arange(num_images * num_views), scored.num_entries_NV.ravel())
    scores[view_of_entry, scored.entry_classes] = scored.entry_scores
    return scores.reshape(num_images, num_views, num_classes)


def votes_of(scored, threshold, num_classes, score_floor=0.1):
    return VotePart(
        image_ids=np.arange(len(scored.top_classes_NV)).astype(str),
        labels_N=np.zeros(len(scored.top_classes_NV), np.int64),
        num_classes=num_classes,
        score_floor=score_floor,
        **vars(scored),
    ).votes(vote_threshold=threshold)


def assert_same(one, other, rows=slice(None)):
    """Bit for bit; ``rows`` of ``other``."""
    num_classes = 1 + max(int(one.entry_classes.max()), int(other.entry_classes.max()))
    np.testing.assert_array_equal(one.top_classes_NV, other.top_classes_NV[rows])
    np.testing.assert_array_equal(one.num_entries_NV, other.num_entries_NV[rows])
    np.testing.assert_array_equal(dense_scores(one, num_classes), dense_scores(other, num_classes)[rows])


@torch.no_grad()
def slow_scores(model, images_NHWC):
    """Logits and softmax scores of one view at a time in double precision, (N, V, K)."""
    network = copy.deepcopy(model.network).double()
    logits_NVK = np.empty((len(images_NHWC), model.views.num_views, model.num_classes))
    for n, image_HWC in enumerate(images_NHWC):
        pixels = model.cutter.encode(torch.from_numpy(image_HWC).permute(2, 0, 1)[None])
        for v in range(model.views.num_views):
            logits_NVK[n, v] = network(model.cutter.cut(pixels, torch.tensor([[v]])).double())[0]
    return logits_NVK, torch.from_numpy(logits_NVK).softmax(2).numpy()


def test_scores_are_those_of_each_view_alone_rounded_once(model, images_NHWC):
    images_NHWC = images_NHWC[:3]
    logits_NVK, scores_NVK = slow_scores(model, images_NHWC)
    expected_NVK = scores_NVK * SCORE_SCALE

    scored = score(model, images_NHWC, score_floor=0.01)

    stored_NVK = dense_scores(scored, 10)
    floor = rounded_score(0.01)
    # Single precision may round another way where the exact score lies halfway between two stored ones.
    is_clear = np.abs(expected_NVK % 1 - 0.5) > 0.2
    assert is_clear.mean() > 0.5
    is_stored = np.round(expected_NVK) >= floor
    np.testing.assert_array_equal((stored_NVK >= 0)[is_clear], is_stored[is_clear])
    both = is_clear & is_stored
    np.testing.assert_array_equal(stored_NVK[both], np.round(expected_NVK)[both])
    assert (np.abs(stored_NVK - expected_NVK)[stored_NVK >= 0] <= 1).all()
    assert stored_NVK[stored_NVK >= 0].min() >= floor
    second, first = np.sort(logits_NVK, axis=2)[..., -2:].transpose(2, 0, 1)
    is_clear = first - second > 1e-3
    np.testing.assert_array_equal(scored.top_classes_NV[is_clear], logits_NVK.argmax(2)[is_clear])


def test_entries_come_view_by_view_in_ascending_class_order(model, images_NHWC):
    scored = score(model, images_NHWC, score_floor=0.02, chunk_views=50)
    for array in (scored.top_classes_NV, scored.num_entries_NV, scored.entry_classes, scored.entry_scores):
        assert array.dtype == np.uint16
    ends = np.cumsum(scored.num_entries_NV.ravel(), dtype=int)
    assert ends[-1] == len(scored.entry_classes) == len(scored.entry_scores)
    for classes in np.split(scored.entry_classes.astype(int), ends[:-1]):
        assert (np.diff(classes) > 0).all()
    assert (scored.entry_scores >= rounded_score(0.02)).all()


@pytest.mark.parametrize("chunk_views", [1, 7, 33, 2000])
def test_chunk_sizes_leave_votes_identical(model, images_NHWC, chunk_views):
    """Pitfall 13."""
    images_NHWC = images_NHWC[: 2 if chunk_views == 1 else 7]
    usual, other = (score(model, images_NHWC, chunk_views=chunk) for chunk in (0, chunk_views))
    np.testing.assert_array_equal(usual.top_classes_NV, other.top_classes_NV)
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(votes_of(usual, threshold, 10), votes_of(other, threshold, 10))
    assert np.abs(dense_scores(usual, 10) - dense_scores(other, 10)).max() <= 1


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("chunk_views", [0, 1, 40, 3000])
def test_all_forward_passes_have_one_shape(model, images_NHWC, chunk_views, shortcuts, monkeypatch):
    """What makes a score independent of company: no kernel is chosen by how many images there are."""
    shapes = set()
    passes = ViewScorer._passes

    def seen(scorer, batch, views_BV):
        for start, logits_BnK in passes(scorer, batch, views_BV):
            shapes.add((tuple(batch.shape), tuple(logits_BnK.shape)))
            yield start, logits_BnK

    monkeypatch.setattr(ViewScorer, "_passes", seen)
    scorer = ViewScorer(model, PredictionConfig(chunk_views=chunk_views, shortcuts=shortcuts), CPU)
    for num_images in (1, 2, 7) if chunk_views != 1 else (1,):
        scorer.score(images_NHWC[:num_images])
    images, views = scorer.chunk_images, scorer.chunk_views
    assert shapes == {((images, 1, 32, 32), (images, views, 10))}
    num_views = model.views.num_views
    if model.one_pass:
        assert views == num_views
        assert images == (16 if chunk_views == 0 else max(1, chunk_views // num_views))
    elif chunk_views:
        assert images == max(1, chunk_views // num_views) and views <= chunk_views
    assert -(-num_views // views) * views - num_views < views


def test_one_pass_sees_the_image_continued_across_its_seams(request, images_NHWC):
    for name in ("one_pass_bands_digits", "one_pass_crops_digits"):
        model, shapes = request.getfixturevalue(name).classifier, set()
        hook = model.network.register_forward_pre_hook(lambda _, inputs, seen=shapes: seen.add(inputs[0].shape[1:]))
        try:
            score(model, images_NHWC)
        finally:
            hook.remove()
        wanted = (model.cutter.num_input_channels, *(32 + side - 1 for side in last_window(model.views)))
        assert shapes == {wanted}


def last_window(views):
    """Pixels from the image's last one to the end of the last view, both counted; 1 on an axis that is not left."""
    (last_row, last_column), (height, width) = (
        views.starts[-1],
        (len(views.row_indices[0]), len(views.column_indices[0])),
    )
    return last_row + height - 31, last_column + width - 31


@pytest.mark.parametrize("views", ["one_pass_bands_digits", "one_pass_crops_digits"])
@pytest.mark.parametrize("chunk_views", [0, 1])
def test_one_pass_casts_the_votes_of_the_generic_path(request, images_NHWC, views, chunk_views, monkeypatch):
    model = request.getfixturevalue(views).classifier
    together = score(model, images_NHWC, chunk_views=chunk_views, score_floor=0.001)
    monkeypatch.setattr(BaseClassifier, "one_pass", False)
    alone = score(model, images_NHWC, score_floor=0.001)
    np.testing.assert_array_equal(together.top_classes_NV, alone.top_classes_NV)
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(votes_of(together, threshold, 10), votes_of(alone, threshold, 10))
    assert np.abs(dense_scores(together, 10) - dense_scores(alone, 10)).max() <= 1


@pytest.mark.parametrize("chunk_views", [0, 40, 3000])
def test_company_does_not_matter(model, images_NHWC, chunk_views):
    """Pitfall 13: bit for bit, whatever else is scored in the same call."""
    together = score(model, images_NHWC, chunk_views=chunk_views)
    for num_images in (1, 3, 6):
        assert_same(score(model, images_NHWC[:num_images], chunk_views=chunk_views), together, slice(num_images))
    in_white = images_NHWC.copy()
    in_white[1:] = 255
    among_white = score(model, in_white, chunk_views=chunk_views)
    np.testing.assert_array_equal(dense_scores(among_white, 10)[0], dense_scores(together, 10)[0])


def test_order_does_not_matter(model, images_NHWC):
    forwards, backwards = score(model, images_NHWC), score(model, images_NHWC[::-1])
    np.testing.assert_array_equal(forwards.top_classes_NV, backwards.top_classes_NV[::-1])
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(votes_of(forwards, threshold, 10), votes_of(backwards, threshold, 10)[::-1])


def test_a_lower_floor_only_adds_entries(model, images_NHWC):
    low, high = (dense_scores(score(model, images_NHWC, score_floor=floor), 10) for floor in (0.001, 0.3))
    np.testing.assert_array_equal(high, np.where(low >= rounded_score(0.3), low, -1))


def test_no_floor_stores_top_classes_only(model, images_NHWC):
    scored = score(model, images_NHWC, score_floor=0.0)
    assert scored.num_entries_NV is scored.entry_classes is scored.entry_scores is None
    np.testing.assert_array_equal(scored.top_classes_NV, score(model, images_NHWC).top_classes_NV)


def test_no_images(model, images_NHWC):
    scored = score(model, images_NHWC[:0])
    assert scored.top_classes_NV.shape == scored.num_entries_NV.shape == (0, model.views.num_views)
    assert len(scored.entry_classes) == len(scored.entry_scores) == 0


def test_images_are_read_only(model, images_NHWC):
    before = images_NHWC.copy()
    images_NHWC.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(model, images_NHWC)
    np.testing.assert_array_equal(images_NHWC, before)


def test_scoring_leaves_the_model_as_it_was(model, images_NHWC):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, images_NHWC)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not model.training


def test_single_precision_is_single_precision_on_gpus_too(model, images_NHWC):
    cudnn, seen = torch.backends.cudnn, set()
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    hook = model.network.register_forward_pre_hook(
        lambda *_: seen.add((cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
    )
    try:
        score(model, images_NHWC, shortcuts=False)
        score(model, images_NHWC, shortcuts=False)
    finally:
        hook.remove()
    assert seen == {(True, False, True, False)}
    assert before == (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_casts_the_votes_of_the_cpu(model, images_NHWC):
    gpu = torch.device("cuda")
    on_gpu = copy.deepcopy(model).to(gpu)
    together = score_views(on_gpu, images_NHWC, PredictionConfig(), gpu)
    assert_same(score_views(on_gpu, images_NHWC[:3], PredictionConfig(), gpu), together, slice(3))
    on_cpu = score(model, images_NHWC)
    np.testing.assert_array_equal(on_cpu.top_classes_NV, together.top_classes_NV)
    assert np.abs(dense_scores(on_cpu, 10) - dense_scores(together, 10)).max() <= 2


def test_photos_and_a_thousand_classes(shared_data, tmp_path):
    """Real photos at 224x224, ResNet34 on large crops: the whole range of sizes, with start weights."""
    config = DataConfig(dataset="imagenet-sample", source=str(shared_data / "imagenet-sample"), resize="pad", limit=2)
    dataset = prepare(config, (224, 224), str(tmp_path / "photos"), splits=["test"])["test"]
    views = CropViews(image_size=(224, 224), crop_size=(80, 96), domain="wrap", stride=(112, 60))
    encoding = EncodingConfig(removed="cut", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    classifier = ClassifierConfig(network="torchvision:resnet34", encoding=encoding)
    model = initial_classifier(classifier, views, 3, dataset.num_classes, seed=0).eval()
    images_NHWC = dataset.read(0, 2).images_NHWC

    scored = score(model, images_NHWC, score_floor=1e-4)

    assert scored.top_classes_NV.shape == (2, views.num_views) == (2, 8)
    _, scores_NVK = slow_scores(model, images_NHWC)
    stored_NVK = dense_scores(scored, 1000)
    # Start weights give logits of up to 70 here, so that rounding in the last digit of a logit moves scores by units.
    assert (np.abs(stored_NVK - scores_NVK * SCORE_SCALE)[stored_NVK >= 0] <= 3).all()
    assert (stored_NVK[scores_NVK > 1.2e-4] > 0).all()


def test_bfloat16_scores_are_close(model, images_NHWC):
    exact, coarse = (score(model, images_NHWC, score_floor=1e-5, precision=p) for p in ("float32", "bfloat16"))
    exact_NVK, coarse_NVK = (dense_scores(scored, 10).clip(0) / SCORE_SCALE for scored in (exact, coarse))
    assert 1e-4 < np.abs(exact_NVK - coarse_NVK).max() < 0.1
    assert (exact.top_classes_NV == coarse.top_classes_NV).mean() > 0.95


NETWORKS = """
import torch
from torch import nn

class Fixed(nn.Module):
    '''The same scores for every view.'''
    def __init__(self, scores):
        super().__init__()
        self.register_buffer("logits", torch.tensor(scores, dtype=torch.float64).log().float())

    def forward(self, views):
        return self.logits.expand(len(views), -1)

def fixed(num_input_channels, view_size, num_classes):
    return Fixed([0.2, 0.1, 0.5, 0.2])

def ties(num_input_channels, view_size, num_classes):
    return Fixed([0.1, 0.3, 0.3, 0.3])

def linear(num_input_channels, view_size, num_classes):
    size = num_input_channels * view_size[0] * view_size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes))

def certain(num_input_channels, view_size, num_classes):
    return Fixed([1e-30, 1e-30, 1e-30, 1.0])

class BurnsOut(nn.Module):
    '''Not finite where a view is all white, or where it is all black.'''
    def __init__(self, value, on_white):
        super().__init__()
        self.value, self.on_white = value, on_white

    def forward(self, views):
        num_white = views[:, 0].flatten(1).sum(1)
        burnt = num_white > 23.9 if self.on_white else num_white < 0.1
        return torch.where(burnt[:, None], torch.tensor([0, 1, self.value, 2]), torch.zeros(len(views), 4))

def not_a_number(num_input_channels, view_size, num_classes):
    return BurnsOut(float("nan"), on_white=True)

def infinite(num_input_channels, view_size, num_classes):
    return BurnsOut(float("-inf"), on_white=True)

def not_a_number_on_black(num_input_channels, view_size, num_classes):
    return BurnsOut(float("nan"), on_white=False)
"""


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    (tmp_path / "scoring_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)

    def build(name):
        views = BandViews(image_size=(8, 10), width=3)
        return initial_classifier(ClassifierConfig(network=f"scoring_networks:{name}"), views, 1, 4, seed=0).eval()

    return build


class TestKnownScores:
    IMAGES = np.zeros((3, 8, 10, 1), np.uint8)

    def test_a_score_that_equals_the_floor_is_stored(self, own_model):
        scored = score(own_model("fixed"), self.IMAGES, score_floor=0.2)
        stored_NVK = dense_scores(scored, 4)
        # 0.2 is 13107 / 65535 exactly, one half is not a stored score: 32767.5 may go either way.
        assert (stored_NVK[..., [0, 1, 3]] == [13107, -1, 13107]).all()
        assert np.isin(stored_NVK[..., 2], [32767, 32768]).all()
        assert (scored.top_classes_NV == 2).all()
        votes_NVK = votes_of(scored, 0.2, 4, score_floor=0.2)
        assert (votes_NVK == [True, False, True, True]).all()

    def test_a_tie_goes_to_the_lower_class(self, own_model):
        assert (score(own_model("ties"), self.IMAGES).top_classes_NV == 1).all()

    def test_a_certain_view_has_the_full_score(self, own_model):
        stored_NVK = dense_scores(score(own_model("certain"), self.IMAGES, score_floor=1.0), 4)
        assert (stored_NVK == [-1, -1, -1, SCORE_SCALE]).all()


class TestNotFinite:
    def images(self, *white):
        images_NHWC = np.zeros((12, 8, 10, 1), np.uint8)
        images_NHWC[list(white)] = 255
        return images_NHWC

    @pytest.mark.parametrize("network", ["not_a_number", "infinite"])
    @pytest.mark.parametrize("chunk_views", [0, 1, 4, 30, 1000])
    def test_images_are_named(self, own_model, network, chunk_views):
        names = [f"image-{i}" for i in range(12)]
        with pytest.raises(ModelError, match=r"not finite for image-3\b"):
            score(own_model(network), self.images(3), names, chunk_views=chunk_views)

    def test_all_of_a_chunk_are_named(self, own_model):
        names = [f"image-{i}" for i in range(12)]
        words = "not finite for image-1, image-2, image-3, image-4, image-5 and 2 more.\n  Check the checkpoint"
        with pytest.raises(ModelError, match=words):
            score(own_model("infinite"), self.images(*range(1, 8)), names, chunk_views=1000)

    def test_rows_stand_in_for_names(self, own_model):
        with pytest.raises(ModelError, match=r"not finite for row 11\."):
            score(own_model("infinite"), self.images(11), chunk_views=20)

    def test_what_fills_up_a_chunk_is_nobody(self, own_model):
        scored = score(own_model("not_a_number_on_black"), self.images(*range(12)), chunk_views=1000)
        assert (scored.top_classes_NV == 0).all()
        with pytest.raises(ModelError, match=r"not finite for row 4\."):
            score(own_model("not_a_number_on_black"), self.images(*range(4), *range(5, 12)), chunk_views=1000)


def test_many_classes():
    """Class numbers beyond one byte."""
    views = CropViews(image_size=(9, 12), crop_size=8)
    config = ClassifierConfig(network="resnet9", width=0.05, encoding=EncodingConfig(removed="cut"))
    model = initial_classifier(config, views, 1, 1000, seed=0).eval()
    images_NHWC = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 1), dtype=np.uint8)
    _, scores_NVK = slow_scores(model, images_NHWC)
    scored = score(model, images_NHWC, score_floor=1e-4)
    stored_NVK = dense_scores(scored, 1000)
    assert (stored_NVK[..., 256:] > 0).any()
    assert (np.abs(stored_NVK - scores_NVK * SCORE_SCALE)[stored_NVK >= 0] <= 1).all()


class TestDevices:
    def test_auto_is_always_there(self):
        assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    def test_cpu(self):
        assert find_device("cpu") == CPU

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    @pytest.mark.parametrize("name", ["cuda", "cuda:0"])
    def test_a_gpu_that_is_not_there(self, name):
        words = f"device '{name}' was asked for, but this machine has 0 usable GPUs.\n  Use --resources.device cpu"
        with pytest.raises(ResourceError, match=words):
            find_device(name)

    def test_a_gpu_too_many(self):
        with pytest.raises(
            ResourceError, match=r"device 'cuda:99' was asked for, but this machine has \d+ usable GPUs"
        ):
            find_device("cuda:99")

    @pytest.mark.parametrize("name", ["", "gpu", "mps", "meta", "cuda:", "cuda:x", "cuda:-1", "cuda:300", "cuda:01"])
    def test_names_that_are_no_device(self, name):
        with pytest.raises(ResourceError, match=f"there is no device '{name}'.\n  Use auto, cpu, cuda or cuda:N"):
            find_device(name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score_floor": -0.1}, r"score_floor is a softmax score in \[0, 1\], not -0.1"),
        ({"score_floor": 1.1}, "not 1.1"),
        ({"score_floor": float("nan")}, "not nan"),
        ({"chunk_views": -1}, "chunk_views must be positive, or 0 to choose; not -1"),
        ({"precision": "float16"}, "precision is one of float32, tf32, bfloat16, not 'float16'"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        PredictionConfig(**settings)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_chunks_shrink_as_features_grow(device_type):
    floats = [1, 1000, 65536, 10**6, 10**8, 10**10]
    sizes = [PredictionConfig().views_per_chunk(count, device_type) for count in floats]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1 and sizes[-1] == 1
    assert PredictionConfig(chunk_views=5).views_per_chunk(10**8, device_type) == 5


MEMORY_NETWORKS = """
import torch
from torch import nn

LIMIT = 0

class Hungry(nn.Module):
    '''Runs out of memory above a number of views, as a GPU or as the CPU's allocator says it.'''
    def __init__(self, num_inputs, num_classes, on_cpu):
        super().__init__()
        self.layer, self.on_cpu = nn.Linear(num_inputs, num_classes), on_cpu

    def forward(self, views):
        if len(views) > LIMIT:
            if self.on_cpu:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layer(views.flatten(1))

def gpu(num_input_channels, view_size, num_classes):
    return Hungry(num_input_channels * view_size[0] * view_size[1], num_classes, False)

def cpu(num_input_channels, view_size, num_classes):
    return Hungry(num_input_channels * view_size[0] * view_size[1], num_classes, True)
"""


class TestTooLittleMemory:
    IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 1), dtype=np.uint8)

    @pytest.fixture(params=["gpu", "cpu"])
    def hungry(self, request, tmp_path, monkeypatch):
        (tmp_path / "hungry_networks.py").write_text(MEMORY_NETWORKS)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "hungry_networks", raising=False)
        module = importlib.import_module("hungry_networks")
        module.LIMIT = 1000
        config = ClassifierConfig(network=f"hungry_networks:{request.param}")
        model = initial_classifier(config, BandViews(image_size=(8, 10), width=3), 1, 4, seed=0).eval()
        return model, module

    @pytest.mark.parametrize(("limit", "left"), [(9, 6), (1, 1), (30, 25)])
    def test_halves_the_chunks_and_goes_on(self, hungry, limit, left):
        model, module = hungry
        expected = score(model, self.IMAGES)
        scorer = ViewScorer(model, PredictionConfig(chunk_views=50), CPU)
        module.LIMIT = limit
        with pytest.warns(RuntimeWarning, match=r"Memory ran out with 50 views in one pass; going on with 25\."):
            scored = scorer.score(self.IMAGES)
        assert scorer.chunk_images * scorer.chunk_views <= left
        assert_same(scored, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(scorer.score(self.IMAGES), expected)

    @pytest.mark.filterwarnings("ignore:Memory ran out")
    def test_one_view_that_does_not_fit_is_said(self, hungry):
        model, module = hungry
        scorer = ViewScorer(model, PredictionConfig(), CPU)
        module.LIMIT = 0
        words = r"too little memory for one 8x10 view on cpu: .*allocate.*\n  Use a smaller network"
        with pytest.raises(ModelError, match=words):
            scorer.score(self.IMAGES)

    def test_other_errors_are_not_taken_for_it(self, hungry):
        model, _ = hungry
        scorer = ViewScorer(model, PredictionConfig(), CPU)
        with pytest.raises(RuntimeError, match="unrelated"):
            model.network.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("unrelated")))
            scorer.score(self.IMAGES)


def test_tf32_on_a_cpu_is_refused(model):
    words = "tf32 is arithmetic of NVIDIA GPUs, but the device is cpu.\n  Use --prediction.precision float32"
    with pytest.raises(ModelError, match=words):
        ViewScorer(model, PredictionConfig(precision="tf32"), CPU)


def test_shortcuts_cast_the_votes_of_the_network_as_it_is_written(model, images_NHWC):
    fast, plain = (score(model, images_NHWC, shortcuts=shortcuts, score_floor=0.001) for shortcuts in (True, False))
    np.testing.assert_array_equal(fast.top_classes_NV, plain.top_classes_NV)
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(votes_of(fast, threshold, 10), votes_of(plain, threshold, 10))
    assert np.abs(dense_scores(fast, 10) - dense_scores(plain, 10)).max() <= 1


def test_joined_scores_are_those_of_all_images_at_once(model, images_NHWC):
    scorer = ViewScorer(model, PredictionConfig(), CPU)
    parts = [scorer.score(images_NHWC[rows]) for rows in (slice(0, 2), slice(2, 2), slice(2, 7))]
    assert_same(ScoredViews.joined(parts), scorer.score(images_NHWC))


def test_without_a_compiler_the_setting_is_refused(own_model, monkeypatch):
    def no_compiler(*_arguments, **_settings):
        def call(*_inputs):
            raise RuntimeError("No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    words = r"torch.compile cannot compile 'scoring_networks:linear' here: .*No working C\+\+ compiler.*\n.*no-compile"
    with pytest.raises(ModelError, match=words):
        ViewScorer(own_model("linear"), PredictionConfig(compile=True), CPU)
