"""A convolution and the shape of its input in, the same function as fewer multiplications out. CPU, float32."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Points at which Winograd's method evaluates, besides infinity: these keep its rounding error within a few times that
# of the direct sum. Source of the choice: Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd
# convolution for deep neural networks".
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}
_TAPS = 3
# What a number that is moved through memory costs, in multiply-adds of a matrix product: measured, as is the value
# below which products are too thin to gain.
_MOVE = 40
_THINNEST = 192
# The direct convolution fills the machine less where few outputs share a tap.
_DIRECT_SMALL = {1: 1.0, 2: 1.8, 3: 1.2, 4: 1.25}
_MOST_DENSE_PAIRS = 16


class Product(nn.Module):
    """x -> x W^T + b by oneDNN, whose products are twice as fast as torch's default on processors that are not Intel's.

    Rows never share arithmetic, so a row of the result depends on that row alone (and on how many there are).
    """

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        """Packs the weights once."""
        super().__init__()
        self.weight_NK, self.bias_N = weight_NK.detach().float().contiguous(), bias_N
        self._packed = None
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight_NK)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 (..., K) to (..., N)."""
        if self._packed is None:
            return F.linear(rows, self.weight_NK, self.bias_N)
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias_N, "none", [], "")


class PackedConvolution(nn.Module):
    """A convolution by oneDNN whose weights are laid out once instead of in each call."""

    def __init__(self, convolution: nn.Conv2d, shape: tuple[int, int, int, int], padding: tuple[int, int]) -> None:
        """Packs the weights.

        Args:
            convolution: zero padding.
            shape: of the input it will mostly see; others are computed as well.
            padding: rows and columns of zeros on each side.
        """
        super().__init__()
        self.settings = (list(padding), list(convolution.stride), list(convolution.dilation), convolution.groups)
        self.weight = convolution.weight.detach()
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self._packed = None
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.settings, list(shape))

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Convolves."""
        if self._packed is None:
            padding, stride, dilation, groups = self.settings
            return F.conv2d(features_BCHW, self.weight, self.bias, stride, padding, dilation, groups)
        return torch.ops.mkldnn._convolution_pointwise(
            features_BCHW, self._packed, self.bias, *self.settings, "none", [], ""
        )


class DenseConvolution(nn.Module):
    """A convolution of a map of a few pixels as one matrix from all inputs to all outputs: no tap meets padding."""

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        """Lays the taps out.

        Args:
            convolution: not grouped, zero padding.
            size: height and width of its input.
        """
        super().__init__()
        out_size = self.out_size = output_size(convolution, size)
        channels_in, channels_out = convolution.in_channels, convolution.out_channels
        matrix = torch.zeros(*out_size, channels_out, *size, channels_in)
        for row, column in itertools.product(*map(range, out_size)):
            for taps in itertools.product(*map(range, convolution.kernel_size)):
                source = [
                    place * convolution.stride[i] - int(convolution.padding[i]) + taps[i] * convolution.dilation[i]
                    for i, place in enumerate((row, column))
                ]
                if all(0 <= place < size[i] for i, place in enumerate(source)):
                    matrix[row, column, :, source[0], source[1]] = convolution.weight[:, :, taps[0], taps[1]].detach()
        bias = None if convolution.bias is None else convolution.bias.detach().repeat(out_size[0] * out_size[1])
        self.product = Product(matrix.reshape(out_size[0] * out_size[1] * channels_out, -1), bias)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Convolves."""
        flat = features_BCHW.permute(0, 2, 3, 1).reshape(len(features_BCHW), -1)
        return self.product(flat).view(len(flat), *self.out_size, -1).permute(0, 3, 1, 2)


class WinogradConvolution(nn.Module):
    """A 3x3 convolution in tiles of 2x2 or 4x4 outputs: 2.25 or 4 times fewer multiplications.

    Neighbouring outputs of one input share arithmetic; inputs of a batch never do.

    Source: Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", eq. 8.
    """

    def __init__(self, convolution: nn.Conv2d, tile: int, out_size: tuple[int, int]) -> None:
        """Transforms the weights, in double precision.

        Args:
            convolution: 3x3, stride 1, not dilated, not grouped, zero padding.
            tile: 2 or 4.
            out_size: outputs that are needed, rows and columns from the upper left.
        """
        super().__init__()
        self.tile, self.out_size = tile, out_size
        self.padding = tuple(int(size) for size in convolution.padding)
        self.channels_out = convolution.out_channels
        outputs, weights, inputs = _toom_cook(tile)
        taps_9F = convolution.weight.detach().double().flatten(2).permute(2, 0, 1).reshape(_TAPS**2, -1)
        placed = (torch.from_numpy(np.kron(weights, weights)) @ taps_9F).view(-1, *convolution.weight.shape[:2])
        self.products = nn.ModuleList(Product(weight_OC) for weight_OC in placed)
        self.from_inputs = torch.from_numpy(np.kron(inputs, inputs)).float()
        self.to_outputs = torch.from_numpy(np.kron(outputs, outputs)).float()
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Convolves."""
        batch, channels, *size = features_BCHW.shape
        tile, window = self.tile, self.tile + _TAPS - 1
        tiles = [-(-length // tile) for length in self.out_size]
        height, width = (tile * count + _TAPS - 1 for count in tiles)
        top, left = self.padding
        rows, columns = min(size[0], height - top), min(size[1], width - left)
        framed = features_BCHW.new_zeros(batch, height, width, channels)
        framed[:, top : top + rows, left : left + columns] = features_BCHW.permute(0, 2, 3, 1)[:, :rows, :columns]
        row = width * channels
        windows = framed.as_strided(
            (window, window, batch, *tiles, channels),
            (row, channels, height * row, tile * row, tile * channels, 1),
        ).reshape(window**2, -1)
        inputs = (self.from_inputs @ windows).view(window**2, -1, channels)
        products = inputs.new_empty(window**2, inputs.shape[1], self.channels_out)
        for place, product in enumerate(self.products):
            products[place] = product(inputs[place])
        outputs = (self.to_outputs @ products.flatten(1)).view(tile, tile, batch, *tiles, self.channels_out)
        outputs = outputs.permute(2, 3, 0, 4, 1, 5).reshape(batch, tile * tiles[0], tile * tiles[1], -1)
        if self.bias is not None:
            outputs += self.bias
        return outputs[:, : self.out_size[0], : self.out_size[1]].contiguous().permute(0, 3, 1, 2)


def faster_convolution(
    convolution: nn.Conv2d, batch: int, size: tuple[int, int], out_size: tuple[int, int] | None = None
) -> tuple[Callable[[], nn.Module], float]:
    """Chooses how to compute a convolution; a function of its shape alone.

    Args:
        convolution: any.
        batch: inputs that it will mostly see at once; the choice does not depend on it.
        size: height and width of its input.
        out_size: rows and columns of its output that are needed, from the upper left; None: all.

    Returns:
        What builds the convolution or a faster module of the same function (of at least the needed outputs), and what
        one input costs, in multiply-adds.
    """
    whole = output_size(convolution, size)
    needed = whole if out_size is None else out_size
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return lambda: convolution, direct_cost(convolution, size)

    def packed() -> nn.Module:
        return PackedConvolution(convolution, (batch, convolution.in_channels, *size), pair(convolution.padding))

    choices: list[tuple[float, Callable[[], nn.Module]]] = [(direct_cost(convolution, size), packed)]
    if convolution.groups == 1:
        channels = convolution.in_channels, convolution.out_channels
        pairs = size[0] * size[1] * whole[0] * whole[1]
        if pairs <= _MOST_DENSE_PAIRS and convolution.kernel_size != (1, 1):
            choices.append((pairs * channels[0] * channels[1], lambda: DenseConvolution(convolution, size)))
        is_plain = convolution.stride == convolution.dilation == (1, 1) and convolution.kernel_size == (_TAPS, _TAPS)
        if is_plain and max(channels) >= _THINNEST:
            for tile in _POINTS:
                values = (tile + _TAPS - 1) ** 2 * -(-needed[0] // tile) * -(-needed[1] // tile)
                cost = values * (channels[0] * channels[1] + _MOVE * (2 * channels[0] + 2 * channels[1]))
                choices.append((cost, lambda tile=tile: WinogradConvolution(convolution, tile, needed)))
    cost, build = min(choices, key=lambda choice: choice[0])
    return build, cost


def direct_cost(convolution: nn.Conv2d, size: tuple[int, int]) -> float:
    """What torch's own convolution of one input costs, in multiply-adds at the rate of a matrix product."""
    height, width = output_size(convolution, size)
    taps = convolution.kernel_size[0] * convolution.kernel_size[1] * convolution.in_channels // convolution.groups
    return height * width * convolution.out_channels * taps * _DIRECT_SMALL.get(min(height, width), 1.1)


def output_size(module: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what a convolution or pooling without ceiling makes of an input's."""
    kernel, stride, padding, dilation = (
        pair(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    height, width = ((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))
    return height, width


def pair(value: Any) -> tuple[int, int]:
    """Torch's "one number or two" as two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _toom_cook(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of F(tile, 3): outputs = A ((G weights) * (B inputs)), float64."""
    points = np.array(_POINTS[tile])
    length = tile + _TAPS - 1

    def evaluation(degree: int) -> np.ndarray:
        return np.vstack([np.vander(points, degree, increasing=True), np.eye(degree)[-1]])

    return evaluation(tile).T, evaluation(_TAPS), np.linalg.inv(evaluation(length)).T
