import pytest
import torch
from torchvision.models import VisionTransformer

from patchcert.errors import ModelError
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import build_network


def build(view_size=(32, 32), channels=2, **settings):
    return build_network(ClassifierConfig(network="vit-small", **settings), channels, view_size, 7)


@pytest.mark.parametrize("view_size", [(4, 4), (28, 28), (8, 32), (20, 12)])
def test_reads_views_that_patches_tile(view_size):
    network = build(view_size, 3, width=0.1).eval()
    views = torch.rand(5, 3, *view_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(views)
        alone = torch.cat([network(view[None]) for view in views])
    assert logits.shape == (5, 7)
    assert len(logits.unique(dim=0)) == 5
    torch.testing.assert_close(alone, logits)


def test_is_the_usual_vision_transformer():
    ours = build(width=0.25).eval()
    reference = VisionTransformer(32, 4, num_layers=2, num_heads=3, hidden_dim=96, mlp_dim=384, num_classes=7).eval()
    reference.conv_proj = torch.nn.Conv2d(2, 96, 4, stride=4)
    # The same parts under the same names, but for the head.
    names = {"heads.1.weight": "heads.head.weight", "heads.1.bias": "heads.head.bias"}
    reference.load_state_dict({names.get(name, name): value for name, value in ours.state_dict().items()})
    views = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(views), reference(views))


def test_width_scales_channels_and_blocks():
    sizes = [
        (network.class_token.shape[-1], len(network.encoder.layers))
        for network in (build(width=width) for width in (1.0, 0.5, 0.1))
    ]
    assert sizes == [(384, 8), (192, 4), (32, 2)]


def test_dropout_acts_in_training_only():
    network = build(width=0.1, dropout=0.5)
    views = torch.rand(4, 2, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(views), network(views))
        network.eval()
        assert torch.equal(network(views), network(views))


@pytest.mark.parametrize("view_size", [(30, 32), (32, 3)])
def test_sizes_that_patches_do_not_tile_are_refused(view_size):
    with pytest.raises(ModelError, match=f"which do not tile {view_size[0]}x{view_size[1]} pixels"):
        build(view_size)
