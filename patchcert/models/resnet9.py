"""ResNet9 without its final pooling, the CIFAR-10 base classifier of randomized cropping."""

import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.config import ClassifierConfig


class _Residual(nn.Module):
    """x + f(x) with f two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return features_BCHW + self.branch(features_BCHW)


def resnet9(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """Builds ResNet9: 3x3 convolutions to 64, 128 (pool, residual), 256 (pool), 512 (pool, residual) channels, linear.

    The usual final 4x4 pooling is left out: after three halvings a 10x10 crop is 1x1 already.

    Source: randomized-cropping paper, section 4 ("ResNet9 without the final pooling").
    """
    height, width = view_size[0] // 8, view_size[1] // 8
    if min(height, width) < 1:
        raise ModelError(f"classifier: resnet9 needs views of at least 8x8 pixels, not {view_size[0]}x{view_size[1]}.")
    stem, middle, wide, last = (max(1, round(size * config.width)) for size in (64, 128, 256, 512))
    return nn.Sequential(
        _convolution(num_input_channels, stem),
        _convolution(stem, middle),
        nn.MaxPool2d(2),
        _Residual(middle),
        _convolution(middle, wide),
        nn.MaxPool2d(2),
        _convolution(wide, last),
        nn.MaxPool2d(2),
        _Residual(last),
        nn.Flatten(),
        nn.Dropout(config.dropout),
        nn.Linear(last * height * width, num_classes),
    )


def _convolution(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )
