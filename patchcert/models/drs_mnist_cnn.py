"""The MNIST network of (de)randomized smoothing: two strided convolutions and three linear layers."""

from torch import nn

from patchcert.errors import ModelError
from patchcert.models.config import ClassifierConfig


def drs_mnist_cnn(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """Builds the network: 4x4 convolutions of stride 2 to 64 and 128 channels, then 500, 100, num_classes units.

    Source: Levine & Feizi 2020, appendix (MNIST base classifier).
    """
    height, width = view_size[0] // 2 // 2, view_size[1] // 2 // 2
    if min(height, width) < 1:
        raise ModelError(
            f"classifier: drs-mnist-cnn needs views of at least 4x4 pixels, not {view_size[0]}x{view_size[1]}."
        )
    first, second, hidden, last = (max(1, round(size * config.width)) for size in (64, 128, 500, 100))
    return nn.Sequential(
        nn.Conv2d(num_input_channels, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, last),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(last, num_classes),
    )
