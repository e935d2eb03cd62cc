"""Which positions of which views hold equal features in; each distinct one computed once out.

Views of one image overlap, and what is removed is equal in all of them. Along one axis, what a layer computes at a
position of a view is decided by the inputs its taps reach; two positions that reach the same inputs hold equal values.
So positions are numbered by what they reach, layer by layer, and only new numbers are computed: the inner part of crops
is shared by all crops that hold it, and the far surroundings of a NULL-encoded band by all bands. Rows and columns are
numbered apart, because views of a grid are products of the two.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from patchcert.prediction.convolutions import PackedConvolution, output_size, pair
from patchcert.views.cutting import ViewCutter

_PADDING = -1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where the features of all views of an image lie in a flat list of distinct ones.

    Attributes:
        numbers: per axis (rows, columns) int64 (starts, length): the number of each position of each view.
        places: int64 (row numbers, column numbers): places in the list.
        count: length of the list; the place after its end is what padding reads.
    """

    numbers: tuple[np.ndarray, np.ndarray]
    places: np.ndarray
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the features of one view."""
        return self.numbers[0].shape[1], self.numbers[1].shape[1]

    @property
    def num_views(self) -> int:
        """Views of an image."""
        return len(self.numbers[0]) * len(self.numbers[1])

    def of_views(self) -> torch.Tensor:
        """Places of all positions of all views, int64 (V, height * width)."""
        rows, columns = self.numbers
        places = self.places[rows[:, None, :, None], columns[None, :, None, :]]
        return torch.from_numpy(places.reshape(self.num_views, -1))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A layer that looks at windows of its input: a convolution or pooling.

    Attributes:
        positions: of its output.
        gathers: one per shape of a run of windows: (places of the inputs, height, width, computes unpadded windows).
        moved: inputs gathered.
        multiply_adds: what the outputs of one image cost.
        fill: what padding holds.
    """

    positions: Positions
    gathers: list[tuple[torch.Tensor, int, int, Callable[[torch.Tensor], torch.Tensor]]]
    moved: int
    multiply_adds: float
    fill: float

    def __call__(self, flat_BPC: torch.Tensor) -> torch.Tensor:
        """Maps distinct inputs (B, P + 1, C), the last for padding, to distinct outputs (B, P' + 1, C')."""
        flat_BPC[:, -1] = self.fill
        batch, _, channels = flat_BPC.shape
        parts = []
        for places, height, width, function in self.gathers:
            runs = flat_BPC.index_select(1, places).view(-1, height, width, channels).permute(0, 3, 1, 2)
            out = function(runs).permute(0, 2, 3, 1)
            parts.append(out.reshape(batch, -1, out.shape[-1]))
        parts.append(parts[0].new_empty(batch, 1, parts[0].shape[-1]))
        return torch.cat(parts, dim=1)


def image_positions(cutter: ViewCutter) -> Positions | None:
    """Positions of the pixels of all views; None where views are not a grid."""
    views = cutter.views
    if not hasattr(views, "row_indices"):
        return None
    sources = np.asarray(views.row_indices), np.asarray(views.column_indices)
    height, width = views.image_size
    places = np.arange(height * width).reshape(height, width)
    if cutter.encoding.removed == "cut":
        return Positions(numbers=(sources[0], sources[1]), places=places, count=height * width)
    numbers = []
    for indices_Sl, length in zip(sources, (height, width), strict=True):
        table = np.full((len(indices_Sl), length), length)
        np.put_along_axis(table, indices_Sl, indices_Sl, axis=1)
        numbers.append(table)
    # One more row and column: whatever is removed along either axis is one and the same.
    places = np.pad(places, (0, 1), constant_values=height * width)
    return Positions(numbers=(numbers[0], numbers[1]), places=places, count=height * width + 1)


def image_features(cutter: ViewCutter, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Distinct pixels of all views, as ``image_positions`` numbers them: float32 (B, P + 1, C')."""
    flat = pixels_BCHW.flatten(2).transpose(1, 2)
    if cutter.encoding.removed == "cut":
        return nn.functional.pad(flat, (0, 0, 0, 1))
    return nn.functional.pad(torch.cat([flat, 1 - flat], dim=2), (0, 0, 0, 2))


def window_layer(inputs: Positions, module: nn.Conv2d | nn.MaxPool2d) -> Window:
    """Numbers the outputs of a layer by the inputs that they reach.

    Args:
        inputs: positions of its input.
        module: a convolution with zero padding, or max pooling without ceiling.
    """
    kernel, stride, padding, dilation = (
        pair(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    out_size = output_size(module, inputs.size)
    axes = [
        _number_axis(inputs.numbers[i], out_size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)
    ]
    padded = np.pad(inputs.places, (0, 1), constant_values=inputs.count)
    num_numbers = [1 + int(numbers.max()) for numbers, _ in axes]
    places = np.empty(num_numbers, np.int64)
    gathers, count, moved = [], 0, 0
    for (rows_Rh, first_rows), (columns_Rw, first_columns) in itertools.product(axes[0][1], axes[1][1]):
        # Runs of rows, runs of columns, window height, window width.
        windows = padded[rows_Rh[:, None, :, None], columns_Rw[None, :, None, :]]
        height, width = rows_Rh.shape[1], columns_Rw.shape[1]
        function: Callable[[torch.Tensor], torch.Tensor]
        if isinstance(module, nn.Conv2d):
            shape = len(rows_Rh) * len(columns_Rw), module.in_channels, height, width
            function = PackedConvolution(module, shape, padding=(0, 0))
        else:
            function = nn.MaxPool2d(kernel, stride, 0, dilation)
        gathers.append((torch.from_numpy(windows.reshape(-1)), height, width, function))
        moved += windows.size
        runs = len(first_rows), len(first_columns), first_rows.shape[1], first_columns.shape[1]
        new = count + np.arange(np.prod(runs)).reshape(runs)
        places[first_rows[:, None, :, None], first_columns[None, :, None, :]] = new
        count += new.size
    taps = module.weight.numel() if isinstance(module, nn.Conv2d) else 0
    return Window(
        positions=Positions(numbers=(axes[0][0], axes[1][0]), places=places, count=count),
        gathers=gathers,
        moved=moved,
        multiply_adds=count * taps,
        fill=0.0 if isinstance(module, nn.Conv2d) else -torch.inf,
    )


def joined(one: Positions, other: Positions) -> tuple[Positions, list[torch.Tensor | None]]:
    """Positions of the sum of two features of the same views, and where each operand's lie (None: in order).

    Returns:
        The positions, and per operand int64 (P,), so that ``operand[:, places]`` lines up.
    """
    numbers, sources = [], []
    for a, b in zip(one.numbers, other.numbers, strict=True):
        table, first = _first_seen(np.stack([a, b], axis=2).reshape(-1, 2))
        numbers.append(table.reshape(a.shape))
        sources.append((a.reshape(-1)[first], b.reshape(-1)[first]))
    places = np.arange(len(sources[0][0]) * len(sources[1][0])).reshape(len(sources[0][0]), -1)
    operands = [
        torch.from_numpy(positions.places[sources[0][i][:, None], sources[1][i][None]].reshape(-1))
        for i, positions in enumerate((one, other))
    ]
    return Positions(numbers=(numbers[0], numbers[1]), places=places, count=places.size), operands


def _number_axis(
    numbers_SL: np.ndarray, out_length: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Numbers outputs along one axis and groups new ones into runs of neighbours.

    Returns:
        Output numbers int64 (S, out_length), and per length n of runs: the inputs of each run's window, int64
        (R, window), -1 for padding; and the numbers it computes, (R, n).
    """
    num_starts = len(numbers_SL)
    frame = np.pad(numbers_SL, ((0, 0), (padding, padding)), constant_values=_PADDING)
    taps = np.arange(out_length)[:, None] * stride + np.arange(kernel) * dilation
    table, first = _first_seen(frame[:, taps].reshape(-1, kernel))
    is_new = np.zeros(num_starts * out_length + 1, bool)
    is_new[first] = True
    runs: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for start in range(num_starts):
        edges = np.flatnonzero(np.diff(np.r_[False, is_new[start * out_length : (start + 1) * out_length], False]))
        for begin, end in edges.reshape(-1, 2):
            window = frame[start, begin * stride : (end - 1) * stride + dilation * (kernel - 1) + 1]
            computed = table[start * out_length + begin : start * out_length + end]
            runs.setdefault(int(end - begin), []).append((window, computed))
    groups = [tuple(map(np.stack, zip(*runs[length], strict=True))) for length in sorted(runs)]
    return table.reshape(num_starts, out_length), [(group[0], group[1]) for group in groups]


def _first_seen(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers equal rows alike, in order of first appearance: the number of each row, and the first row of each."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(-1)], first[order]
