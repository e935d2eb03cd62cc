"""Window length and distance of starts in, convolutions whose receptive field is exactly that window out."""

import dataclasses
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from patchcert.errors import ModelError

# Up to here all layers look at neighbouring pixels; longer windows are spanned by doubling the distance.
_LONGEST_DENSE = 16
_LAYERS_PER_DISTANCE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanLayer:
    """One convolution along one axis.

    Attributes:
        kernel: number of taps.
        dilation: distance of the taps, in positions of its input.
        stride: positions of its input from one output to the next.
    """

    kernel: int = 1
    dilation: int = 1
    stride: int = 1


def span_layers(length: int, start_stride: int) -> list[SpanLayer]:
    """Plans unpadded convolutions along one axis that turn each window of an axis into one position.

    Short windows are spanned by three neighbouring taps a layer. In longer ones the distance of the taps grows, at most
    by a factor 2 from one pair of layers to the next; positions are dropped on the way where the starts allow it (no
    later layer needs them), and the rest of the stride is taken in the last layer.

    Args:
        length: pixels of a window, >= 1.
        start_stride: pixels from one window to the next, >= 1.

    Returns:
        Layers whose receptive field is ``length`` pixels and whose strides multiply to ``start_stride``.
    """
    left, distance, step = length - 1, 1, 1
    if length <= _LONGEST_DENSE:
        layers = [SpanLayer(kernel=3)] * (left // 2) + [SpanLayer(kernel=2)] * (left % 2) or [SpanLayer()]
    else:
        layers, last_of_distance = [], {}
        while left >= 2 * distance:
            further = 2 * distance
            dropping = max(g for g in range(step, further + 1, step) if start_stride % g == 0)
            further -= further % dropping
            # The last distance takes all that the next one would be too long for.
            count = _LAYERS_PER_DISTANCE
            is_last = left - 2 * distance * count < 2 * further
            if is_last:
                count = left // (2 * distance)
            layers += [SpanLayer(kernel=3, dilation=distance // step)] * count
            last_of_distance[distance] = len(layers) - 1
            left -= 2 * distance * count
            if is_last:
                break
            layers[-1] = dataclasses.replace(layers[-1], stride=dropping // step)
            distance, step = further, dropping
        # What is left is shorter than two taps of the last distance: a fourth tap here and there.
        for distance, number in reversed(last_of_distance.items()):
            if left >= distance:
                layers[number] = dataclasses.replace(layers[number], kernel=4)
                left -= distance
    layers[-1] = dataclasses.replace(layers[-1], stride=layers[-1].stride * (start_stride // step))
    return layers


def reads_same_pixels(length: int, one_stride: int, other_stride: int) -> bool:
    """Whether plans for two distances of starts combine the same pixels of a window, so that weights fit both.

    True for short windows, where the distance acts in the last layer alone; in longer ones positions that are dropped
    on the way can move taps.
    """
    return _taps(span_layers(length, one_stride)) == _taps(span_layers(length, other_stride))


def _taps(layers: list[SpanLayer]) -> list[tuple[int, int]]:
    """Number and distance, in pixels, of the taps of each layer."""
    taps, step = [], 1
    for layer in layers:
        taps.append((layer.kernel, layer.dilation * step if layer.kernel > 1 else 0))
        step *= layer.stride
    return taps


def paired(rows: list[SpanLayer], columns: list[SpanLayer]) -> list[tuple[SpanLayer, SpanLayer]]:
    """Plans of both axes layer by layer; the shorter one is filled up with layers that span nothing."""
    return list(zip_longest(rows, columns, fillvalue=SpanLayer()))


class LocalConvolution(nn.Conv2d):
    """A convolution between (rows, columns) layers of two plans whose outputs never share arithmetic.

    Fast algorithms for GPUs (Winograd, FFT) compute neighbouring outputs from common intermediate sums, so that a pixel
    outside an output's window reaches it: by a rounding error, or as NaN when it is infinite. In evaluation on a GPU
    each tap is therefore a matrix product of its own. On CPUs torch's direct convolution sums over the window alone.
    """

    def __init__(self, channels_in: int, channels_out: int, layer: tuple[SpanLayer, SpanLayer], free_axis: int = -1):
        """Builds it without bias.

        Args:
            channels_in: channels of the input.
            channels_out: channels of the output.
            layer: one layer of each axis.
            free_axis: axis that is padded with zeros to keep its length (0 rows, 1 columns); -1: neither.
        """
        super().__init__(
            channels_in,
            channels_out,
            tuple(axis.kernel for axis in layer),
            stride=tuple(axis.stride for axis in layer),
            padding=tuple(axis.kernel // 2 if i == free_axis else 0 for i, axis in enumerate(layer)),
            dilation=tuple(axis.dilation for axis in layer),
            bias=False,
        )

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """Convolves; see the class for how."""
        if features_BCHW.is_cuda and not self.training:
            return self.tap_by_tap(features_BCHW)
        return super().forward(features_BCHW)

    def tap_by_tap(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """The same convolution as a sum of one matrix product per tap."""
        (down, right), (far_down, far_right) = self.stride, self.dilation
        pad_rows, pad_columns = (int(size) for size in self.padding)
        features = F.pad(features_BCHW, (pad_columns, pad_columns, pad_rows, pad_rows)).permute(0, 2, 3, 1)
        num_rows, num_columns = (
            (features.shape[1 + i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        )
        total: Any = 0
        for row in range(self.kernel_size[0]):
            for column in range(self.kernel_size[1]):
                top, left = row * far_down, column * far_right
                shifted = features[:, top::down, left::right][:, :num_rows, :num_columns]
                total = total + F.linear(shifted, self.weight[:, :, row, column])
        return total.permute(0, 3, 1, 2)


class OnePassNetwork(nn.Module):
    """A network that never looks beyond a view, and so scores all views of a grid in one pass over the image.

    ``local`` turns each window of its input into one position, by convolutions without padding along the axes that
    bound a view. Each position is then a sample of its own for ``head``. A view alone is an input with one window, a
    whole image one with many: the same function reads both.

    Guarantee: the scores of a view are a function of its retained pixels alone, whatever the others hold (1e30,
    infinity, NaN); in evaluation, because batch statistics of a training step run over all positions.
    """

    def __init__(self, local: nn.Module, head: nn.Module, bounded_axes: tuple[int, ...]) -> None:
        """Joins the parts.

        Args:
            local: (B, C, H, W) -> (B, C', H', W').
            head: samples (n, C', 1, length) -> logits (n, num_classes); length is that of the free axis, or 1.
            bounded_axes: axes whose positions are the starts of views: 0 rows, 1 columns.
        """
        super().__init__()
        self.local, self.head, self.bounded_axes = local, head, bounded_axes

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Scores every window of each input.

        Args:
            pixels_BCHW: views (B, C, h, w), or images as ``ViewCutter.continued`` returns them.

        Returns:
            logits (B * num_windows, num_classes), input by input, windows in row-major order of their starts.
        """
        features = self.local(pixels_BCHW)
        batch, channels, height, width = features.shape
        if self.bounded_axes == (0,):
            features = features.transpose(2, 3)
        if len(self.bounded_axes) == 2:
            features = features.reshape(batch, channels, 1, height * width)
        # (batch, channels, free axis, views) -> (batch * views, channels, 1, free axis); reshape of channels-last
        # features keeps that memory format.
        samples = features.permute(0, 3, 2, 1).flatten(0, 1)[:, None]
        return self.head(samples.permute(0, 3, 1, 2))


def normalised(channels: int) -> nn.Module:
    """Batch normalisation and ReLU: in evaluation a function of each position alone."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def check_views(views: Any, view_size: tuple[int, int], name: str, *kinds: str) -> None:
    """Refuses views that a one-pass network was not made for.

    Raises:
        ModelError: another kind of views, or views that are not cut off.
    """
    if views is None or views.kind not in kinds:
        found = "a view size alone" if views is None else views.describe()
        kind = kinds[0]
        raise ModelError(
            f"classifier: {name!r} scores all {kind}s of an image in one pass and needs {kind} views, not {found}.\n"
            f"  Use {kind} views, or another network such as resnet9."
        )
    retained = (views.row_axis.length, views.column_axis.length)
    if view_size != retained:
        raise ModelError(
            f"classifier: {name!r} reads {views.describe()} cut down to {retained[0]}x{retained[1]}, but the encoding "
            f"keeps them at {view_size[0]}x{view_size[1]}.\n  Set --classifier.encoding.removed cut"
        )
