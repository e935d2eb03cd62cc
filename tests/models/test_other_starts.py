"""A classifier that was trained on some starts of its views votes on others."""

import pytest
import torch

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError
from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.models.one_pass import reads_same_pixels
from patchcert.views.encoding import EncodingConfig

CUT = EncodingConfig(removed="cut", coordinates=True)
CROP_NETWORK = ClassifierConfig(network="crop-network", width=0.1, encoding=CUT)
BAND_NETWORK = ClassifierConfig(network="band-network", width=0.1, encoding=CUT)
RESNET9 = ClassifierConfig(network="resnet9", width=0.05, encoding=EncodingConfig(removed="cut"))


def crops(**settings):
    return CropViews(image_size=(14, 12), crop_size=8, **settings)


def bands(**settings):
    return BandViews(image_size=(14, 12), width=4, **settings)


@pytest.mark.parametrize(
    ("config", "made", "asked"),
    [
        (CROP_NETWORK, crops(domain="wrap"), crops()),
        (CROP_NETWORK, crops(stride=2), crops(domain="wrap")),
        (RESNET9, crops(domain="wrap", stride=3), crops()),
        (BAND_NETWORK, bands(stride=3), bands()),
    ],
)
def test_the_same_pixels_get_the_same_scores_wherever_views_start(tmp_path, config, made, asked):
    trained = initial_classifier(config, made, 1, 3, seed=0).eval()
    folder = Folder(str(tmp_path))
    save_checkpoint(trained, folder, {})
    loaded = load_checkpoint(folder, views=asked)
    assert loaded.views == asked
    images = torch.randint(
        0, 256, (2, 1, *made.image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        of_made, of_asked = trained(images), loaded(images)
    place = {tuple(start): view for view, start in enumerate(made.starts.tolist())}
    shared = [(place[tuple(s)], view) for view, s in enumerate(asked.starts.tolist()) if tuple(s) in place]
    assert len(shared) >= 4
    here, there = (torch.tensor(views) for views in zip(*shared, strict=True))
    torch.testing.assert_close(of_asked[:, there], of_made[:, here], atol=1e-5, rtol=1e-5)


def test_views_of_another_kind_or_size_are_refused(tmp_path):
    folder = Folder(str(tmp_path))
    save_checkpoint(initial_classifier(CROP_NETWORK, crops(), 1, 3, seed=0), folder, {})
    for other in (CropViews(image_size=(14, 12), crop_size=7), CropViews(image_size=(14, 13), crop_size=8), bands()):
        with pytest.raises(CheckpointError, match="was trained on 8x8 crops"):
            load_checkpoint(folder, views=other)


def test_only_starts_may_differ():
    assert bands(stride=2).differs_only_in_starts(bands())
    assert not bands().differs_only_in_starts(BandViews(image_size=(14, 12), width=4, axis="row"))
    blocks = BlockViews(image_size=(14, 12), block_size=4)
    assert blocks.differs_only_in_starts(BlockViews(image_size=(14, 12), block_size=4, stride=2))
    assert not blocks.differs_only_in_starts(CropViews(image_size=(14, 12), crop_size=4))
    cells = CellViews(image_size=(12, 12), pitch=4, num_cells=2)
    assert not cells.differs_only_in_starts(CellViews(image_size=(12, 12), pitch=4, num_cells=3))


def test_long_windows_of_one_pass_networks_must_combine_the_same_pixels(tmp_path):
    assert all(reads_same_pixels(length, 1, stride) for length in range(1, 17) for stride in (2, 3, 5))
    differing = [
        (length, stride) for length in range(17, 90) for stride in (3, 5) if not reads_same_pixels(length, 1, stride)
    ]
    assert differing and all(reads_same_pixels(80, 1, stride) for stride in (2, 4, 16))
    length, stride = differing[0]
    made, asked = (CropViews(image_size=(96, 96), crop_size=length, stride=s) for s in (stride, 1))
    save_checkpoint(initial_classifier(CROP_NETWORK, made, 1, 3, seed=0), Folder(str(tmp_path)), {})
    with pytest.raises(CheckpointError, match="was trained on"):
        load_checkpoint(Folder(str(tmp_path)), views=asked)
