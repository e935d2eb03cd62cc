"""The small vision transformer: a base classifier for views of any size that patches of 4x4 pixels tile."""

import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.config import ClassifierConfig

_PATCH = 4
_HEAD_CHANNELS = 32


class SmallVisionTransformer(nn.Module):
    """A vision transformer whose parts bear torchvision's names, for images that need not be square."""

    def __init__(
        self, num_input_channels: int, image_size: tuple[int, int], num_heads: int, num_layers: int, head: nn.Module
    ) -> None:
        """Joins the parts.

        Args:
            num_input_channels: channels of a view.
            image_size: height and width, multiples of the patch of 4x4 pixels.
            num_heads: heads of attention; tokens have 32 channels for each.
            num_layers: blocks of attention and perceptron.
            head: from the class token to logits.
        """
        from torchvision.models.vision_transformer import Encoder

        super().__init__()
        channels = _HEAD_CHANNELS * num_heads
        num_patches = (image_size[0] // _PATCH) * (image_size[1] // _PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.conv_proj = nn.Conv2d(num_input_channels, channels, _PATCH, stride=_PATCH)
        nn.init.trunc_normal_(self.conv_proj.weight, std=self.conv_proj.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.conv_proj.bias)
        self.encoder = Encoder(
            seq_length=num_patches + 1,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=channels,
            mlp_dim=4 * channels,
            dropout=0.0,
            attention_dropout=0.0,
        )
        # As large as what patches say: from torchvision's 0.02, short trainings hardly learn where a patch lies.
        nn.init.normal_(self.encoder.pos_embedding, std=0.3)
        self.heads = head

    def forward(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of views, all their tokens kept."""
        patches_BTD = self.conv_proj(views_BCHW).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches_BTD), -1, -1), patches_BTD], dim=1)
        return self.heads(self.encoder(tokens)[:, 0])


def vit_small(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """Builds a vision transformer for images of about 32x32: patches of 4x4, 384 channels, 12 heads, 8 blocks.

    Args:
        config: ``width`` multiplies channels, heads and blocks (at least 1 head and 2 blocks); ``dropout`` acts before
            the last layer.
        num_input_channels: channels of a view.
        view_size: height and width of a view, multiples of 4.
        num_classes: number of logits.

    Raises:
        ModelError: a size that patches of 4x4 do not tile.

    Source: Dosovitskiy et al. 2021 (ViT), scaled down; blocks are torchvision's.
    """
    if view_size[0] % _PATCH or view_size[1] % _PATCH:
        raise ModelError(
            f"classifier: vit-small reads views in patches of {_PATCH}x{_PATCH}, which do not tile "
            f"{view_size[0]}x{view_size[1]} pixels.\n  Use an image size of multiples of {_PATCH}, or another network."
        )
    num_heads, num_layers = max(1, round(12 * config.width)), max(2, round(8 * config.width))
    head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(_HEAD_CHANNELS * num_heads, num_classes))
    return SmallVisionTransformer(num_input_channels, view_size, num_heads, num_layers, head)
