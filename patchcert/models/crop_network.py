"""Crop or block views in, a network that scores all of them in one pass over the image out."""

from typing import Any

from torch import nn

from patchcert.models.config import ClassifierConfig
from patchcert.models.one_pass import LocalConvolution, OnePassNetwork, check_views, normalised, paired, span_layers


def crop_network(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int, views: Any
) -> nn.Module:
    """Builds the network: convolutions without padding that span the crop, then layers at each position alone.

    Channels rise evenly from 32 in the first layer to 192 in the last. For 10x10 crops of 32x32 pixels these are five
    layers, and 0.24 GMAC an image for all 529 crops.

    Args:
        config: ``width`` multiplies the channels; ``dropout`` acts before the last layer.
        num_input_channels: channels of a crop.
        view_size: height and width of a crop.
        num_classes: number of logits.
        views: CropViews of any size, domain and stride, or BlockViews, which are cut out as crops that wrap are.

    Raises:
        ModelError: other views than crops and blocks, or blocks that are not cut out.
    """
    check_views(views, view_size, "crop-network", "crop", "block")
    rows, columns = views.row_axis, views.column_axis
    plan = paired(span_layers(rows.length, rows.stride), span_layers(columns.length, columns.stride))
    local: list[nn.Module] = []
    channels = num_input_channels
    for number, pair in enumerate(plan, start=1):
        share = (number - 1) / max(1, len(plan) - 1) if len(plan) > 1 else 1.0
        channels_out = max(1, round(config.width * (32 + (192 - 32) * share)))
        local += [LocalConvolution(channels, channels_out, pair), normalised(channels_out)]
        channels = channels_out
    head = nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        normalised(channels),
        nn.Flatten(),
        nn.Dropout(config.dropout),
        nn.Linear(channels, num_classes),
    )
    return OnePassNetwork(nn.Sequential(*local), head, bounded_axes=(0, 1))
