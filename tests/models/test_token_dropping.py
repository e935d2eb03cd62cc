import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, ModelError
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews
from patchcert.models import token_dropping
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import build_network
from patchcert.models.token_dropping import TokenDroppingTransformer
from patchcert.views.encoding import EncodingConfig

DROP = EncodingConfig(removed="drop", mean=(0.4,), std=(0.3,), positional_bound=0.1)
HUGE = (1e30, float("inf"), float("-inf"), float("nan"))

# Both axes and both kinds, across the seam; images that are not square; strides that divide neither image nor patch.
VIEW_SETS = (
    BandViews(image_size=(12, 16), width=4),
    BandViews(image_size=(12, 16), width=7, stride=3),
    BandViews(image_size=(12, 16), width=15),
    BandViews(image_size=(12, 16), width=1, axis="row"),
    BandViews(image_size=(12, 16), width=6, axis="row", stride=5),
    BlockViews(image_size=(12, 16), block_size=(6, 3), stride=(1, 2)),
    BlockViews(image_size=(12, 16), block_size=(10, 15), stride=(5, 3)),
)


def classifier_for(views, channels=2, seed=0, **settings):
    """A narrow transformer in evaluation mode whose tokens, positions and encodings all matter to the scores."""
    config = ClassifierConfig(network="vit-small", **{"width": 0.1, "encoding": DROP, **settings})
    classifier = initial_classifier(config, views, channels, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return classifier.eval()


def images_for(classifier, num_images=2, seed=1):
    shape = (num_images, classifier.image_channels, *classifier.views.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def scores_by_masked_attention(classifier, images):
    """Oracle: torchvision's blocks on all tokens of each NULL-encoded view, attention blind to what is removed."""
    network, views, patch = classifier.network, classifier.views, classifier.network.conv_proj.kernel_size[0]
    retained_VHW = torch.from_numpy(views.retained(range(views.num_views)))
    kept_VT = torch.nn.functional.max_pool2d(retained_VHW.float(), patch).flatten(1).bool()
    removed_Vt = torch.cat([torch.zeros(views.num_views, 1, dtype=torch.bool), ~kept_VT], dim=1)
    scores = []
    for pixels in classifier.cutter.encode(images):
        views_VCHW = torch.where(retained_VHW[:, None], torch.cat([pixels, 1 - pixels])[None], 0.0)
        tokens = network.conv_proj(views_VCHW).flatten(2).transpose(1, 2)
        tokens = torch.cat([network.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + network.encoder.pos_embedding
        for block in network.encoder.layers:
            seen = block.ln_1(tokens)
            tokens = tokens + block.self_attention(seen, seen, seen, key_padding_mask=removed_Vt, need_weights=False)[0]
            tokens = tokens + block.mlp(block.ln_2(tokens))
        scores.append(network.heads(network.encoder.ln(tokens)[:, 0]))
    return torch.stack(scores)


@torch.no_grad()
def assert_equal_scores(classifier, images):
    views = classifier.views
    together_BVK = classifier(images)
    assert together_BVK.shape == (len(images), views.num_views, classifier.num_classes)
    assert together_BVK.dtype == torch.float32
    alone_BVK = torch.cat([classifier(images, torch.tensor([[view]])) for view in range(views.num_views)], dim=1)
    torch.testing.assert_close(together_BVK, alone_BVK, atol=1e-4, rtol=1e-5)
    assert torch.equal(together_BVK.argmax(dim=2), alone_BVK.argmax(dim=2))
    return together_BVK


@pytest.mark.parametrize("views", VIEW_SETS, ids=lambda views: views.describe())
def test_all_views_score_as_alone_and_as_with_masked_attention(views):
    classifier = classifier_for(views)
    images = images_for(classifier)
    scores_BVK = assert_equal_scores(classifier, images)
    torch.testing.assert_close(scores_BVK, scores_by_masked_attention(classifier, images), atol=1e-4, rtol=1e-4)
    assert (scores_BVK[0] - scores_BVK[1]).abs().max() > 1e-2, "scores that ignore the image prove nothing"
    assert (scores_BVK - scores_BVK[:, :1]).abs().max() > 1e-2, "views that score alike prove nothing"


@st.composite
def band_and_block_sets(draw):
    height, width = (4 * draw(st.integers(1, 4)) for _ in range(2))
    block_height, block_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    stride = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    size = {"image_size": (height, width)}
    return draw(
        st.sampled_from(
            [
                BandViews(**size, width=block_width, stride=stride[1]),
                BandViews(**size, width=block_height, axis="row", stride=stride[0]),
                BlockViews(**size, block_size=(block_height, block_width), stride=stride),
            ]
        )
    )


@given(band_and_block_sets())
@settings(max_examples=30)
def test_any_bands_and_blocks_score_as_with_masked_attention(views):
    classifier = classifier_for(views, channels=1)
    images = images_for(classifier, num_images=1)
    with torch.no_grad():
        expected = scores_by_masked_attention(classifier, images)
        torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("views", VIEW_SETS, ids=lambda views: views.describe())
def test_nothing_outside_a_view_reaches_its_score(views):
    """Pitfall 12, bit for bit; and every retained pixel does reach it."""
    classifier = classifier_for(views)
    image = images_for(classifier, num_images=1)
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
        assert torch.equal(reached_HW, retained_VHW[view])


def test_each_image_of_a_batch_gets_views_of_its_own():
    """As in training: neighbours of a batch keep different numbers of tokens."""
    classifier = classifier_for(VIEW_SETS[0])
    images = images_for(classifier, num_images=3)
    views_Bn = torch.tensor([[0, 1], [13, 4], [7, 7]])
    with torch.no_grad():
        chosen_BnK = classifier(images, views_Bn)
        expected_BnK = classifier(images)[torch.arange(3)[:, None], views_Bn]
    torch.testing.assert_close(chosen_BnK, expected_BnK, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("views_Bn", [None, torch.tensor([[3], [0]])])
def test_all_parameters_learn_from_any_views(views_Bn):
    classifier = classifier_for(VIEW_SETS[1]).train()
    scores_BnK = classifier(images_for(classifier), views_Bn)
    torch.nn.functional.cross_entropy(
        scores_BnK.flatten(0, 1), torch.arange(len(scores_BnK.flatten(0, 1))) % 5
    ).backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())
    assert (classifier.network.class_token.grad != 0).any()


def test_the_number_of_passes_changes_no_score(monkeypatch):
    classifier = classifier_for(VIEW_SETS[5])
    images = images_for(classifier)
    with torch.no_grad():
        in_one = classifier(images)
        monkeypatch.setitem(token_dropping._TOKENS_PER_PASS, "cpu", 11)
        in_many = classifier(images)
    torch.testing.assert_close(in_many, in_one, atol=1e-5, rtol=1e-5)


def test_only_tokens_of_kept_patches_are_computed():
    """224x224, width 19: a band meets two columns of 14 patches, or three where it starts late in one."""
    config = ClassifierConfig(network="torchvision:vit_b_16", encoding=EncodingConfig(removed="drop"))
    views = BandViews(image_size=(224, 224), width=19)
    with torch.device("meta"):
        transformer = torchvision.models.vit_b_16(num_classes=3)
    network = TokenDroppingTransformer(transformer, views)
    assert network._buckets == [(14, 2), (14, 3)]
    assert network.column_counts.tolist() == [2 if start % 16 <= 13 else 3 for start in range(224)]
    assert config.to_json()["encoding"]["removed"] == "drop", "dropping is part of what identifies a model"


class TestTorchvision:
    """Published architectures by name; at 32x32, where patches of 16x16 leave four tokens."""

    SIZE = (32, 32)

    def build(self, views, removed="drop"):
        config = ClassifierConfig(network="torchvision:vit_b_16", encoding=EncodingConfig(removed=removed))
        return build_network(config, 6, self.SIZE, 7, views).eval()

    def test_weights_fit_with_and_without_dropped_tokens(self):
        views = BandViews(image_size=self.SIZE, width=32)
        dropping, plain = self.build(views), self.build(views, "null")
        torch.nn.init.normal_(plain.heads.head.weight, generator=torch.Generator().manual_seed(2))
        dropping.load_state_dict(plain.state_dict())
        pixels = torch.rand(2, 3, *self.SIZE, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = plain(torch.cat([pixels, 1 - pixels], dim=1))
            # A band as wide as the image keeps every token.
            torch.testing.assert_close(dropping(pixels, torch.tensor([[0]])), expected, atol=1e-4, rtol=1e-4)


def test_real_photos_get_the_votes_of_views_alone(shared_data, tmp_path):
    from patchcert.data import DataConfig, prepare

    config = DataConfig(dataset="imagenet-sample", source=str(shared_data / "imagenet-sample"), resize="pad", limit=3)
    dataset = prepare(config, (64, 64), str(tmp_path / "photos"), splits=["test"])["test"]
    images = torch.from_numpy(dataset.read(0, 3).images_NHWC.transpose(0, 3, 1, 2).copy())
    for views in (
        BandViews(image_size=(64, 64), width=6),
        BlockViews(image_size=(64, 64), block_size=18, stride=(5, 7)),
    ):
        scores_BVK = assert_equal_scores(classifier_for(views, channels=3), images)
        assert len(scores_BVK.argmax(dim=2).unique()) > 1


def test_a_checkpoint_knows_whether_tokens_were_dropped(tmp_path):
    views, folder = VIEW_SETS[0], Folder(tmp_path / "checkpoint")
    classifier = classifier_for(views)
    save_checkpoint(classifier, folder, {})
    images = images_for(classifier)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(folder)(images), classifier(images))
    null = ClassifierConfig(
        network="vit-small", width=0.1, encoding=EncodingConfig(mean=(0.4,), std=(0.3,), positional_bound=0.1)
    )
    with pytest.raises(CheckpointError, match=r"another model: encoding .*'removed': 'drop'.*, asked .*'null'"):
        load_checkpoint(folder, classifier=null)


@pytest.mark.parametrize(
    ("network", "views", "words"),
    [
        ("resnet9", VIEW_SETS[0], "leaves out tokens, but 'resnet9' has none.\n  Use vit-small or torchvision:vit"),
        ("band-network", BandViews(image_size=(12, 16), width=16), "but 'band-network' has none"),
        ("vit-small", CropViews(image_size=(12, 16), crop_size=8), "need removed='cut', not 'drop'"),
        ("vit-small", CellViews(image_size=(12, 16), pitch=4, num_cells=2), "need removed='null', not 'drop'"),
        (
            "vit-small",
            BandViews(image_size=(14, 16), width=4),
            "patches of 4x4, which do not tile 14x16 pixels.\n  Use",
        ),
    ],
)
def test_what_has_no_tokens_to_drop_is_refused(network, views, words):
    config = ClassifierConfig(network=network, encoding=EncodingConfig(removed="drop"))
    with pytest.raises(ModelError, match=words):
        initial_classifier(config, views, 1, 3, seed=0)
