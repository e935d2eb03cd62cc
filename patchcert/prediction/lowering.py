"""A base classifier in, a function from images to the scores of their views with far fewer multiplications out.

Three exact rewritings, up to rounding: batch normalisation is folded into convolutions; the first layers compute each
distinct position of all views once (``shared_positions``); the others use the cheapest form of each convolution
(``convolutions``). Which is decided by shapes alone, never by a clock, so that every worker decides alike.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_weights

from patchcert.models.classifier import BaseClassifier
from patchcert.prediction.convolutions import Product, faster_convolution, pair
from patchcert.prediction.shared_positions import (
    Positions,
    Window,
    image_features,
    image_positions,
    joined,
    window_layer,
)

_POINTWISE = (nn.ReLU, nn.Identity, nn.Dropout, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6)
_POINTWISE_FUNCTIONS = (torch.relu, nn.functional.relu)
_SUMS = (operator.add, operator.iadd, torch.add)
# What gathering a number and what passing over one costs, in multiply-adds.
_MOVE, _PASS = 40, 10.0
# Views that weights are laid out for.
_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Joint:
    """A sum of two shared features."""

    positions: Positions
    operands: list[torch.Tensor]

    def __call__(self, *flats_BPC: torch.Tensor) -> torch.Tensor:
        one, other = (flat.index_select(1, places) for flat, places in zip(flats_BPC, self.operands, strict=True))
        return nn.functional.pad(one.add_(other), (0, 0, 0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pointwise:
    """A layer that treats each position alike."""

    positions: Positions
    function: Any

    def __call__(self, flat_BPC: torch.Tensor) -> torch.Tensor:
        features_BCP1 = flat_BPC.transpose(1, 2)[..., None]
        return self.function(features_BCP1)[..., 0].transpose(1, 2)


_Step = Window | _Joint | _Pointwise


class LoweredClassifier:
    """Scores views of images like a base classifier, faster. Made by ``lowered``."""

    def __init__(
        self,
        classifier: BaseClassifier,
        source: fx.Node,
        head: list[tuple[fx.Node, _Step]],
        crossing: list[tuple[fx.Node, Positions]],
        tail: fx.GraphModule,
        floats_per_view: int,
        floats_per_image: int,
    ) -> None:
        """Takes the parts that ``lowered`` made."""
        self._cutter, self._head, self._tail, self._source = classifier.cutter, head, tail, source
        self._crossing = [(node, positions, positions.of_views()) for node, positions in crossing]
        self._num_classes = classifier.num_classes
        wanted = {node for node, _ in crossing}
        self._still_wanted = []
        for node, _ in reversed(head):
            self._still_wanted.append(wanted)
            wanted = wanted | set(node.all_input_nodes)
        self._still_wanted.reverse()
        self.floats_per_view, self.floats_per_image = floats_per_view, floats_per_image

    @property
    def num_shared_layers(self) -> int:
        """Layers that are computed once per distinct position."""
        return len(self._head)

    def features(self, pixels_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Computes what views share; of pixels that ``cutter.encode`` returned."""
        known = {self._source: image_features(self._cutter, pixels_BCHW)}
        for (node, step), wanted in zip(self._head, self._still_wanted, strict=True):
            known[node] = step(*(known[source] for source in node.all_input_nodes))
            known = {source: value for source, value in known.items() if source in wanted}
        return [known[node] for node, _, _ in self._crossing]

    def logits(self, features: list[torch.Tensor], views_n: torch.Tensor) -> torch.Tensor:
        """Scores views of each image: float32 (B, n, num_classes)."""
        inputs = []
        for flat_BPC, (_, positions, places_VP) in zip(features, self._crossing, strict=True):
            batch, _, channels = flat_BPC.shape
            views = flat_BPC.index_select(1, places_VP[views_n].reshape(-1))
            inputs.append(views.view(batch * len(views_n), *positions.size, channels).permute(0, 3, 1, 2))
        return self._tail(*inputs).view(batch, len(views_n), self._num_classes)


class LoweredMembers:
    """The mean of several rewritten networks. Made by ``lowered``."""

    def __init__(self, members: list[LoweredClassifier]) -> None:
        """Takes the members, one after the other in use; what views share is kept of all of them."""
        self._members = members
        self.num_shared_layers = min(member.num_shared_layers for member in members)
        self.floats_per_view = max(member.floats_per_view for member in members)
        self.floats_per_image = sum(member.floats_per_image for member in members)

    def features(self, pixels_BCHW: torch.Tensor) -> list[list[torch.Tensor]]:
        """See ``LoweredClassifier.features``; member by member."""
        return [member.features(pixels_BCHW) for member in self._members]

    def logits(self, features: list[list[torch.Tensor]], views_n: torch.Tensor) -> torch.Tensor:
        """See ``LoweredClassifier.logits``."""
        parts = [member.logits(shared, views_n) for member, shared in zip(self._members, features, strict=True)]
        return torch.stack(parts).mean(dim=0)


def lowered(classifier: BaseClassifier, memory_floats: int) -> LoweredClassifier | LoweredMembers | None:
    """Rewrites a classifier for the CPU in single precision.

    Args:
        classifier: in evaluation mode, on the CPU; not changed, and not followed when it changes later.
        memory_floats: most numbers that the shared layers of one image may keep at once.

    Returns:
        The faster form; None for networks that torch.fx cannot trace and views that are not a grid.
    """
    members = []
    for network in classifier.members:
        member = _lowered_network(classifier, network, memory_floats // len(classifier.members))
        if member is None:
            return None
        members.append(member)
    result = members[0] if len(members) == 1 else LoweredMembers(members)
    return result if _agree(classifier, result) else None


def _lowered_network(classifier: BaseClassifier, plain: nn.Module, memory_floats: int) -> LoweredClassifier | None:
    start = image_positions(classifier.cutter)
    network = _traced(plain)
    if start is None or network is None:
        return None
    _fold_normalisation(network)
    blank = torch.zeros(1, classifier.cutter.num_input_channels, *classifier.cutter.view_size)
    ShapeProp(network).propagate(blank)
    nodes = list(network.graph.nodes)
    steps = _shared_steps(network, nodes, start)
    plain_cost = {node: _plain_cost(network, node) for node in nodes}
    best: tuple[float, int] | None = None
    spent, widest = 0.0, start.count * _channels(nodes[0])
    for length in range(len(steps) + 1):
        if length:
            node, step = steps[length - 1]
            spent += _shared_cost(node, step)
            widest = max(widest, step.positions.count * _channels(node), getattr(step, "moved", 0) * _channels(node))
        if length and widest > memory_floats:
            break
        known = {nodes[0]: start} | {node: step.positions for node, step in steps[:length]}
        rest = [node for node in nodes if node not in known]
        crossing = {source for node in rest for source in node.all_input_nodes if source in known}
        moved = sum(known[node].num_views * _floats(node) for node in crossing)
        cost = spent + _MOVE * moved + start.num_views * sum(plain_cost[node] for node in rest)
        if best is None or cost < best[0]:
            best = cost, length
    assert best is not None
    head = steps[: best[1]]
    known = {nodes[0]: start} | {node: step.positions for node, step in head}
    tail, crossing_nodes = _tail(network, set(known))
    widest_shared = max(positions.count * _channels(node) for node, positions in known.items())
    return LoweredClassifier(
        classifier,
        nodes[0],
        head,
        [(node, known[node]) for node in crossing_nodes],
        tail,
        floats_per_view=max(_floats(node) for node in nodes if node not in known or node in crossing_nodes),
        floats_per_image=widest_shared,
    )


@torch.inference_mode()
def _agree(classifier: BaseClassifier, result: Any) -> bool:
    """Tries both on some noise: a trace follows one path through code, which a user's own network may leave."""
    noise = torch.rand(
        1, classifier.image_channels, *classifier.views.image_size, generator=torch.Generator().manual_seed(0)
    )
    num_views = classifier.views.num_views
    views_n = torch.arange(0, num_views, max(1, num_views // 4))
    pixels = classifier.cutter.encode(noise)
    expected = classifier.some_views(pixels, views_n[None])
    return torch.allclose(result.logits(result.features(pixels), views_n), expected, rtol=1e-3, atol=1e-3)


def _traced(network: nn.Module) -> fx.GraphModule | None:
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network))
    except Exception:  # a user's own network may do anything that a trace cannot follow
        return None
    return traced.eval()


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _fold_normalisation(network: fx.GraphModule) -> None:
    """Folds batch normalisation into the convolution before it, where nothing else reads or shares either."""
    uses: dict[Any, int] = {}
    for node in network.graph.nodes:
        uses[node.target] = uses.get(node.target, 0) + 1
    for node in list(network.graph.nodes):
        norm = _module(network, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        (source,) = node.all_input_nodes
        convolution = _module(network, source)
        if not isinstance(convolution, nn.Conv2d) or len(source.users) > 1 or uses[source.target] > 1:
            continue
        weight, bias = fuse_conv_bn_weights(
            convolution.weight.double(),
            None if convolution.bias is None else convolution.bias.double(),
            norm.running_mean.double(),
            norm.running_var.double() if norm.running_var is not None else None,
            norm.eps,
            norm.weight.double() if norm.weight is not None else None,
            norm.bias.double() if norm.bias is not None else None,
        )
        convolution.weight, convolution.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        node.replace_all_uses_with(source)
        network.graph.erase_node(node)
    network.recompile()


def _shared_steps(network: fx.GraphModule, nodes: list[fx.Node], start: Positions) -> list[tuple[fx.Node, _Step]]:
    """The longest run of layers from the input that positions can be followed through."""
    known = {nodes[0]: start}
    steps: list[tuple[fx.Node, _Step]] = []
    for node in nodes[1:]:
        sources = node.all_input_nodes
        if not sources or any(source not in known for source in sources) or len(node.args) != len(sources):
            break
        step = _step(network, node, [known[source] for source in sources])
        if step is None:
            break
        steps.append((node, step))
        known[node] = step.positions
    return steps


def _step(network: fx.GraphModule, node: fx.Node, inputs: list[Positions]) -> _Step | None:
    module = _module(network, node)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return window_layer(inputs[0], module)
    if isinstance(module, nn.MaxPool2d) and not module.ceil_mode and not module.return_indices:
        return window_layer(inputs[0], module)
    if _is_pointwise(module, node):
        function = module if module is not None else node.target
        return _Pointwise(positions=inputs[0], function=function)
    if node.op == "call_function" and node.target in _SUMS and len(inputs) == 2 and not node.kwargs:
        positions, operands = joined(*inputs)
        return _Joint(positions=positions, operands=operands)
    return None


def _is_pointwise(module: nn.Module | None, node: fx.Node) -> bool:
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is not None
    return isinstance(module, _POINTWISE) or (
        node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS and len(node.all_input_nodes) == 1
    )


def _faster(network: fx.GraphModule, node: fx.Node) -> tuple[Callable[[], nn.Module], float]:
    """A convolution of the tail in its cheapest form, and its cost; see ``faster_convolution``."""
    convolution = network.get_submodule(str(node.target))
    assert isinstance(convolution, nn.Conv2d)
    return faster_convolution(convolution, _BATCH, _shape(node.all_input_nodes[0])[2:], _needed_size(network, node))


def _needed_size(network: fx.GraphModule, node: fx.Node) -> tuple[int, int] | None:
    """Rows and columns of a layer's output that are read at all: pooling drops what fills no window."""
    while len(node.users) == 1:
        (node,) = node.users
        module = _module(network, node)
        if isinstance(module, nn.MaxPool2d) and pair(module.padding) == (0, 0) and not module.ceil_mode:
            kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
            height, width = (
                (_shape(node)[2 + i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(2)
            )
            return height, width
        if not _is_pointwise(module, node):
            break
    return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if hasattr(found, "shape") else ()


def _floats(node: fx.Node) -> int:
    return int(torch.Size(_shape(node)).numel()) if _shape(node) else 0


def _channels(node: fx.Node) -> int:
    return _shape(node)[1]


def _plain_cost(network: fx.GraphModule, node: fx.Node) -> float:
    """What a layer costs for one view on its own, in multiply-adds."""
    module = _module(network, node)
    if isinstance(module, nn.Conv2d):
        return _faster(network, node)[1] + _PASS * _floats(node)
    return _PASS * _floats(node)


def _shared_cost(node: fx.Node, step: _Step) -> float:
    """What a layer costs for all views of an image when distinct positions are computed once."""
    channels_out = _channels(node)
    if isinstance(step, Window):
        channels_in = _channels(node.all_input_nodes[0])
        return step.multiply_adds + _MOVE * (step.moved * channels_in + step.positions.count * channels_out)
    if isinstance(step, _Joint):
        return 3 * _MOVE * step.positions.count * channels_out
    return _PASS * step.positions.count * channels_out


def _tail(network: fx.GraphModule, known: set[fx.Node]) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The layers that are not shared, with faster convolutions, as a module of what they read of the shared ones."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    crossing = [node for node in network.graph.nodes if node in known and any(user not in known for user in node.users)]
    for node in crossing:
        copies[node] = graph.placeholder(node.name)
    for node in network.graph.nodes:
        if node not in known:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    for node in network.graph.nodes:
        module = _module(network, node)
        if node in known or module is None:
            continue
        name = f"faster_{node.name}"
        if isinstance(module, nn.Conv2d):
            network.add_module(name, _faster(network, node)[0]())
        elif isinstance(module, nn.Linear):
            network.add_module(name, Product(module.weight, None if module.bias is None else module.bias.detach()))
        else:
            continue
        copies[node].target = name
    return fx.GraphModule(network, graph), crossing
