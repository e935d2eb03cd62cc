"""Band views in, a network that scores all bands of an image in one pass out."""

from typing import Any

from torch import nn

from patchcert.models.config import ClassifierConfig
from patchcert.models.one_pass import LocalConvolution, OnePassNetwork, SpanLayer, check_views, normalised, span_layers

# Longer free axes are halved while the band is being spanned, as a stem of stride 2 does.
_LONGEST_FREE_AXIS = 64


def band_network(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int, views: Any
) -> nn.Module:
    """Builds the network: local convolutions that span the band, then a residual network along it, then its mean.

    Local layers have three taps along the band (padded) and span its width without padding; after them each band is
    one sequence, read by four stages of one basic residual block with 48, 96, 192 and 384 channels, the last three
    halving its length. At 32x32 and width 4 it costs 0.17 GMAC an image for all 32 bands.

    Args:
        config: ``width`` multiplies the channels; ``dropout`` acts before the last layer.
        num_input_channels: channels of a band.
        view_size: height and width of a band that is cut out (encoding removed="cut").
        num_classes: number of logits.
        views: BandViews, of any axis, width and stride.

    Raises:
        ModelError: other views than bands, or bands that are not cut out.
    """
    check_views(views, view_size, "band-network", "band")
    bounded = 1 if views.axis == "column" else 0
    axis = views.column_axis if bounded else views.row_axis
    stem, *stages = (max(1, round(size * config.width)) for size in (32, 48, 96, 192, 384))
    local: list[nn.Module] = []
    channels, free_length = num_input_channels, views.image_size[1 - bounded]
    plan = span_layers(axis.length, axis.stride)
    for number, layer in enumerate(plan):
        halves = free_length > _LONGEST_FREE_AXIS
        free_length = -(-free_length // 2) if halves else free_length
        channels_out = stages[0] if number == len(plan) - 1 else stem
        along = SpanLayer(kernel=3, stride=2 if halves else 1)
        pair = (along, layer) if bounded else (layer, along)
        local += [LocalConvolution(channels, channels_out, pair, free_axis=1 - bounded), normalised(channels_out)]
        channels = channels_out
    blocks: list[nn.Module] = []
    for number, channels_out in enumerate(stages):
        blocks.append(_Residual(channels, channels_out, stride=1 if number == 0 else 2))
        channels = channels_out
    head = nn.Sequential(
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(config.dropout),
        nn.Linear(channels, num_classes),
    )
    return OnePassNetwork(nn.Sequential(*local), head, bounded_axes=(bounded,))


class _Residual(nn.Module):
    """Basic residual block along a sequence: two convolutions of three taps, the shortcut projected where needed."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, (1, 3), stride=(1, stride), padding=(0, 1), bias=False),
            normalised(channels_out),
            nn.Conv2d(channels_out, channels_out, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out and stride == 1
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=(1, stride), bias=False), nn.BatchNorm2d(channels_out)
            )
        )

    def forward(self, features):
        return nn.functional.relu(self.branch(features) + self.shortcut(features))
