"""Checks before any work that a base classifier does what certificates assume: each view's scores are its own.

A certificate counts views that a patch can reach, so a view's scores have to depend on that view alone and to repeat.
A few views are scored alone, in other company, at another place, in other chunk sizes, twice, and with gradients on;
networks that score all views in one pass are compared with the view alone, and with other pixels outside of it. Weights
are to survive saving and loading, and a step of training is to have a loss and gradients.
"""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchcert.errors import ModelError
from patchcert.models.checkpoint import initial_classifier, load_weights, weights_of
from patchcert.models.classifier import BaseClassifier
from patchcert.models.custom_code import is_custom
from patchcert.models.one_pass import OnePassNetwork

# Multiply-adds of one view up to which it is scored in float64, and in all ways; together they keep a probe within
# about 2 s of one core. Larger batches hold as many views as this work is enough for.
_FLOAT64_WORK, _SHORT_WORK = 1e8, 1e9
_LARGE_BATCH_WORK, _LEAST_LARGE_BATCH, _MOST_LARGE_BATCH = 1e9, 9, 129
# Own networks of more parameters are not built anew to be loaded: tests do that, and it would take seconds.
_MOST_REBUILT_PARAMETERS = 20_000_000
_MOST_COPIED_PARAMETERS = 32_000_000
# Differences up to these shares of how far scores are apart between views, and of their size, are rounding. Fast
# algorithms are chosen by batch size, so float32 rounds a correct network differently in other chunks.
_ROUNDING = {torch.float64: (1e-7, 1e-12), torch.float32: (1e-3, 1e-5)}
_COARSE_ROUNDING = (5e-2, 1e-2)
_SEED = 20_240_521
_FILLED = 0.1

_COMPANY_CAUSE = (
    "Usual causes: BatchNorm with track_running_stats=False, statistics over the batch, or attention across it. Make "
    "forward treat each view alone in evaluation mode."
)
_REPEAT_CAUSE = (
    "Usual causes: dropout or noise that is left on in evaluation mode, or state that forward changes. Let nothing but "
    "the view decide in evaluation mode (self.training is False)."
)
_SAVED_CAUSE = (
    "Usual causes: persistent=False for a buffer that is random or learned, or tensors kept outside of parameters and "
    "buffers. Register them with register_buffer or nn.Parameter."
)

_COMPANY = "depend on the views that are scored with it, on its place or on their number"
_OUTSIDE_CAUSE = "Make the network read nothing but the pixels of the view."
_GRADIENT_CAUSE = "Let forward compute the same with and without gradients (torch.is_grad_enabled())."

_Rows = list[int]


def probe(classifier: BaseClassifier, images_NHWC: np.ndarray | None = None, *, trains: bool = False) -> None:
    """Check on the CPU that a base classifier can be certified, saved and, if asked, trained.

    Scores are compared in float64, where a small dependence and rounding are far apart; in float32, with a tolerance
    from the scale of the scores, where the network cannot compute in float64 or is larger than 1e8 multiply-adds a
    view. From 1e9 on, a view is scored alone and beside another, and no backward pass is made. The classifier itself is
    not changed: a copy is probed, in which weights that are all the same and near zero get values, so that layers which
    start at zero hide nothing.

    Args:
        classifier: on the CPU.
        images_NHWC: a few uint8 images, shape (N, H, W, C); None: noise. Black, white and noise go with them.
        trains: whether it is about to be trained.

    Raises:
        ModelError: what was found, by how much, and the usual cause.
    """
    with _generators_kept():
        torch.manual_seed(_SEED)
        probed = _copy(classifier).eval()
        views = _Views(probed, images_NHWC)
        filled = _filled(probed)
        work, alone = _first_scores(probed, views)
        if filled and not alone.isfinite().all():
            _restore(probed, filled)
            work, alone = _first_scores(probed, views)
        _check_finite(probed, alone)
        _probe_scores(probed, views, work, alone)
        if trains:
            _restore(probed, filled)
            _probe_step(probed, views, work)
            filled = _filled(probed)
        num_parameters = sum(parameter.numel() for parameter in probed.parameters())
        if is_custom(probed.config.network) or num_parameters <= _MOST_REBUILT_PARAMETERS:
            _probe_saving(probed, views)


class _Views:
    """Images and views of them that are scored, each named by its row.

    Row 0 is the view that all else is compared with. Row 4 is the same view of an image with other pixels outside.
    """

    def __init__(self, classifier: BaseClassifier, images_NHWC: np.ndarray | None) -> None:
        shape = (classifier.image_channels, *classifier.views.image_size)
        rng = np.random.default_rng(_SEED)
        real = [] if images_NHWC is None else list(images_NHWC[:2].transpose(0, 3, 1, 2))
        noise = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2 - len(real))]
        first, last = (*real, *noise)
        images = [first, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), last]
        generator = torch.Generator().manual_seed(_SEED)
        names = classifier.cutter.draw((len(images), 1), generator)
        retained_HW = _retained(classifier, names[0, 0])
        outside = np.where(first > 127, 0, 255).astype(np.uint8)
        images.append(np.where(retained_HW, first, outside))
        self.images = torch.from_numpy(np.stack(images))
        self.names = torch.cat([names, names[:1]])

    def scores(self, classifier: BaseClassifier, rows: _Rows) -> torch.Tensor:
        """Scores (rows, classes) of views, as one batch."""
        pixels = classifier.cutter.encode(self.images[rows])
        return classifier.some_views(pixels, self.names[rows])[:, 0]


def _retained(classifier: BaseClassifier, name: torch.Tensor) -> np.ndarray:
    """Which pixels a view retains, bool (H, W)."""
    height, width = classifier.views.image_size
    if classifier.views.kind == "pixel":
        mask = np.zeros(height * width, bool)
        mask[name.numpy()] = True
        return mask.reshape(height, width)
    return np.asarray(classifier.views.retained(np.array([int(name)])))[0]


def _copy(classifier: BaseClassifier) -> BaseClassifier:
    try:
        return copy.deepcopy(classifier)
    except Exception:  # modules of users may hold anything
        config, views = classifier.config, classifier.views
        other = initial_classifier(config, views, classifier.image_channels, classifier.num_classes, _SEED)
        other.load_state_dict(classifier.state_dict())
        return other.train(classifier.training)


def _first_scores(classifier: BaseClassifier, views: _Views) -> tuple[float, torch.Tensor]:
    """Multiply-adds of convolutions and matrix products for view 0, and its scores (1, classes)."""
    work = 0

    def count(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal work
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and isinstance(output, torch.Tensor):
            work += output.numel() * weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in classifier.network.modules()]
    try:
        with torch.no_grad():
            scores = _tried(classifier, lambda: views.scores(classifier, [0]))
        return work, scores
    finally:
        for hook in hooks:
            hook.remove()


def _probe_step(classifier: BaseClassifier, views: _Views, work: float) -> None:
    """Raises ModelError where a step of training would fail: forward, loss, gradients."""
    network = classifier.config.network
    parameters = list(classifier.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        found = f"all of its {len(parameters)} parameters are frozen" if parameters else "it has no parameters"
        raise ModelError(
            f"classifier: {network!r} cannot be trained: {found}.\n"
            "  Return a module with parameters whose requires_grad is True, or vote with it as it is:  "
            "patchcert train RECIPE --untrained"
        )
    rows = [0, 1] if work > _SHORT_WORK else [0, 1, 2, 3]
    classifier.train()
    losses = []
    for member in classifier.members:
        inputs = classifier.network_inputs(classifier.cutter.encode(views.images[rows]), views.names[rows])
        logits = _tried(classifier, lambda member=member, inputs=inputs: member(*inputs), "in training mode")
        expected = (len(rows), classifier.num_classes)
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
            found = str(tuple(logits.shape)) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
            raise ModelError(
                f"classifier: in training mode {network!r} returns {found} for {len(rows)} views; logits of shape "
                f"{expected} are needed.\n"
                "  Return the logits alone in both modes; leave out losses and outputs of other heads."
            )
        losses.append(F.cross_entropy(logits.float(), torch.arange(len(rows)) % classifier.num_classes))
    loss = torch.stack(losses).sum()
    if not loss.isfinite():
        raise ModelError(
            f"classifier: the first loss of {network!r} is {loss.item()}, before anything was learned.\n"
            "  Check its start weights and its forward in training mode."
        )
    if not _reaches_a_parameter(loss, parameters):
        raise ModelError(
            f"classifier: {network!r} cannot be trained: none of its parameters has a gradient.\n"
            "  Usual causes: detach(), torch.no_grad() or numpy on the way to the logits."
        )
    if work <= _SHORT_WORK:
        _tried(classifier, loss.backward, "backwards")
    classifier.zero_grad(set_to_none=True)
    classifier.eval()


def _reaches_a_parameter(loss: torch.Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether a loss was computed from one of the parameters, as its graph says."""
    wanted = {id(parameter) for parameter in parameters}
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        waiting += [function for function, _ in node.next_functions]
    return False


@torch.no_grad()
def _filled(classifier: BaseClassifier) -> dict[str, torch.Tensor]:
    """Gives small random values to weights that are all the same and near zero; returns what they were, by name.

    What starts at zero (a head, the last layer of a block, its scale) would hide what the rest of the network does.
    """
    generator = torch.Generator().manual_seed(_SEED)
    kept = {}
    for name, parameter in classifier.network.named_parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        least, most = parameter.aminmax()
        if least == most and abs(float(most)) < _FILLED:
            kept[name] = parameter.clone()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * _FILLED)
    return kept


@torch.no_grad()
def _restore(classifier: BaseClassifier, kept: dict[str, torch.Tensor]) -> None:
    for name, parameter in classifier.network.named_parameters():
        if name in kept:
            parameter.copy_(kept[name])


def _probe_scores(classifier: BaseClassifier, views: _Views, work: float, alone: torch.Tensor) -> None:
    """Raises ModelError where the scores of a view do not depend on it alone, or do not repeat."""
    state, numbers = _state(classifier), _random_state()
    rounded = _Comparison(classifier, views, torch.float32, alone=alone)
    if work <= _SHORT_WORK:
        rounded.run([0], label="do not repeat when it is scored twice", cause=_REPEAT_CAUSE)
        _check_random_numbers(classifier, views, numbers)
        _check_state(classifier, state)
        exact, precision = _in_float64(classifier, views) if work <= _FLOAT64_WORK else (None, torch.float32)
        comparison = rounded if exact is None else _Comparison(exact, views, precision)
        comparison.run([1, 2, 0], label=_COMPANY)
        comparison.run([0, 0], label=_COMPANY)
        if classifier.one_pass:
            comparison.run([1, 4], label="depend on pixels outside of the view", cause=_OUTSIDE_CAUSE)
        comparison.run([3, 0], label="depend on whether gradients are on", cause=_GRADIENT_CAUSE, gradients=True)
        comparison.run([3, 0], label=_COMPANY)
        if (many := min(_MOST_LARGE_BATCH, int(_LARGE_BATCH_WORK / max(work, 1)))) >= _LEAST_LARGE_BATCH:
            rounded.run([*(1 + number % 3 for number in range(many - 1)), 0], label=_COMPANY)
    elif rounded.differs([1, 0]):
        rounded.run([0], label="do not repeat when it is scored twice", cause=_REPEAT_CAUSE)
        rounded.run([1, 0], label=_COMPANY)
    else:
        _check_random_numbers(classifier, views, numbers)
    if isinstance(classifier.members[0], OnePassNetwork):
        rounded.run_in_one_pass()
    _check_state(classifier, state)


def _check_state(classifier: BaseClassifier, before: dict[str, torch.Tensor]) -> None:
    if changed := _changed(before, _state(classifier)):
        raise ModelError(
            f"classifier: {classifier.config.network!r} changes its {changed} while it scores in evaluation mode, so "
            f"that the next scores are those of another network.\n  {_REPEAT_CAUSE}"
        )


class _Comparison:
    """Compares the scores of view 0 alone with those that it gets in other ways."""

    def __init__(
        self, classifier: BaseClassifier, views: _Views, precision: torch.dtype, *, alone: torch.Tensor | None = None
    ) -> None:
        """Takes the scores of view 0 alone (1, classes); None: scores it."""
        self._classifier, self._views = classifier, views
        self._share, self._floor = _ROUNDING.get(precision, _COARSE_ROUNDING)
        self._expected = (self._scores([0]) if alone is None else alone)[0]
        self._spread: float | None = None

    def run(self, rows: _Rows, *, label: str, cause: str = "", gradients: bool = False) -> None:
        """Scores view 0 as the last one of a batch; raises ModelError if its scores are others than alone."""
        self.compare_with(self._scores(rows, gradients=gradients)[-1], label, cause or _COMPANY_CAUSE)

    def differs(self, rows: _Rows) -> bool:
        """Return whether view 0, the last one of a batch, gets other scores than alone."""
        scores = self._scores(rows)
        self._spread = float((scores[0] - self._expected).abs().max())
        return not self._difference(scores[-1]) <= self._tolerance

    def _scores(self, rows: _Rows, *, gradients: bool = False) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            scores = _tried(self._classifier, lambda: self._views.scores(self._classifier, rows)).detach()
        _check_finite(self._classifier, scores)
        return cast(torch.Tensor, scores)

    def _difference(self, scores: torch.Tensor) -> float:
        return float((scores - self._expected).abs().max())

    @property
    def _tolerance(self) -> float:
        if self._spread is None:
            self._spread = self._difference(self._scores([1])[0])
        return self._share * self._spread + self._floor * float(self._expected.abs().max())

    def run_in_one_pass(self) -> None:
        """Scores all views in one pass, beside another image and with other pixels outside of view 0."""
        if not self._difference(self._one_pass([1, 4])) <= self._tolerance:
            label = "in one pass over the image are not those of the view alone"
            self.compare_with(self._one_pass([0]), label, _OUTSIDE_CAUSE)
            self.compare_with(self._one_pass([4]), "depend on pixels outside of the view", _OUTSIDE_CAUSE)
            self.compare_with(self._one_pass([1, 4]), "depend on the images that are scored with it", _COMPANY_CAUSE)

    @torch.no_grad()
    def _one_pass(self, rows: _Rows) -> torch.Tensor:
        """Scores of view 0 in the last of some images, all of whose views are scored."""
        pixels = self._classifier.cutter.encode(self._views.images[rows])
        scores = _tried(self._classifier, lambda: self._classifier.all_views(pixels))
        return cast(torch.Tensor, scores[-1, int(self._views.names[0])])

    def compare_with(self, scores: torch.Tensor, label: str, cause: str) -> None:
        """Raises ModelError if scores (classes) are not those of view 0 alone."""
        difference = self._difference(scores)
        if not difference <= self._tolerance:
            raise ModelError(
                f"classifier: the scores of a view by {self._classifier.config.network!r} {label}: they change by "
                f"{difference:.3g}, where two different views are {self._spread:.3g} apart and rounding explains "
                f"{self._tolerance:.1g}.\n  {cause}"
            )


@torch.no_grad()
def _check_random_numbers(classifier: BaseClassifier, views: _Views, before: tuple[Any, ...]) -> None:
    """Raises ModelError where scoring took random numbers, which a handful of views may not show."""
    after = _random_state()
    if before == after:
        return
    # One that seeds a generator anew each time takes the same numbers, wherever the generator stood before.
    torch.manual_seed(_SEED + 1)
    np.random.seed(_SEED + 1)  # noqa: NPY002
    random.seed(_SEED + 1)
    views.scores(classifier, [0])
    if _random_state() != after:
        raise ModelError(
            f"classifier: {classifier.config.network!r} takes random numbers while it scores in evaluation mode, so "
            f"that its scores do not repeat.\n  {_REPEAT_CAUSE}"
        )


def _random_state() -> tuple[bytes, str, str]:
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), str(random.getstate())  # noqa: NPY002


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leaves the global generators of random numbers as they were."""
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


def _state(classifier: BaseClassifier) -> dict[str, torch.Tensor]:
    """Copies of all buffers and parameters; of very many parameters their sums."""
    parameters = dict(classifier.named_parameters())
    is_large = sum(parameter.numel() for parameter in parameters.values()) > _MOST_COPIED_PARAMETERS
    state = {f"buffer {name}": _dense(buffer).clone() for name, buffer in classifier.named_buffers()}
    for name, parameter in parameters.items():
        values = _dense(parameter)
        state[f"parameter {name}"] = values.sum() if is_large else values.clone()
    return state


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> str:
    """Name of a tensor that is another one now, or empty."""
    for name in before.keys() | after.keys():
        if name not in before or name not in after:
            return name
        one, other = before[name], after[name]
        if one.shape != other.shape or not bool(((one == other) | ((one != one) & (other != other))).all()):
            return name
    return ""


@torch.no_grad()
def _in_float64(classifier: BaseClassifier, views: _Views) -> tuple[BaseClassifier | None, torch.dtype]:
    """A copy that computes in float64, and the coarsest arithmetic inside: some turn to float32 for attention.

    Without a copy where the network cannot.
    """
    exact = _copy(classifier).double()
    try:
        inputs = exact.network_inputs(exact.cutter.encode(views.images[:1]), views.names[:1])
        with _LowestPrecision() as mode:
            scores = exact.network(*inputs)
    except Exception:  # types that do not fit raise whatever the operation raises
        return None, torch.float32
    is_exact = scores.dtype == torch.float64 and bool(scores.isfinite().all())
    return (exact, mode.found) if is_exact else (None, torch.float32)


class _LowestPrecision(TorchDispatchMode):
    """Notes the coarsest floating type that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found = torch.float64

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.found = max(self.found, tensor.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


@torch.no_grad()
def _probe_saving(classifier: BaseClassifier, views: _Views) -> None:
    """Raises ModelError where a network that is built anew and loaded is not the one that was saved."""
    network = classifier.config.network
    weights = weights_of(classifier)
    other = initial_classifier(
        classifier.config, classifier.views, classifier.image_channels, classifier.num_classes, _SEED + 2
    )
    try:
        load_weights(other, weights)
    except Exception as error:  # load_state_dict raises whatever the modules raise
        problem = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise ModelError(
            f"classifier: the saved weights of {network!r} do not fit a network that is built anew: {problem}\n"
            "  Build the same parameters and buffers every time."
        ) from None
    comparison = _Comparison(classifier.eval(), views, torch.float32)
    comparison.compare_with(
        views.scores(other.eval(), [0])[0], "change when the network is saved, built anew and loaded", _SAVED_CAUSE
    )


def _tried(classifier: BaseClassifier, function: Callable[[], Any], how: str = "in evaluation mode") -> Any:
    """What a function of the network returns; whatever it raises becomes a ModelError."""
    try:
        return function()
    except ModelError:
        raise
    except Exception as error:  # networks of users may raise anything
        problem = str(error).strip().partition("\n")[0] or "without a message"
        raise ModelError(
            f"classifier: {classifier.config.network!r} fails {how}: {type(error).__name__}: {problem}\n"
            "  Mend its forward; it is called with float views (n, channels, height, width)."
        ) from error


def _check_finite(classifier: BaseClassifier, scores: torch.Tensor) -> None:
    if not scores.isfinite().all():
        raise ModelError(
            f"classifier: {classifier.config.network!r} returns scores that are not finite, such as "
            f"{float(scores[~scores.isfinite()][0])}, for views of a few images (real ones, black, white, noise).\n"
            "  Check the weights (a diverged training?) and divisions by what a plain image makes zero."
        )
