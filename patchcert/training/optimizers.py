"""A classifier and training settings in, the optimizer of its weights out; every group names its share of the rate."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from patchcert.models.classifier import BaseClassifier
from patchcert.training.config import TrainingConfig

_MUON_MOMENTUM = 0.95
# Orthogonal steps are larger than those of AdamW that suit the other weights.
_ADAMW_SHARE = 0.1


def make_optimizer(classifier: BaseClassifier, config: TrainingConfig) -> "torch.optim.Optimizer | JoinedOptimizers":
    """Builds the optimizer that ``config.optimizer`` names.

    Args:
        classifier: on its device, in its memory format; its parameters stay the same tensors afterwards.
        config: optimizer, momentum, weight decay.
    """
    parameters = list(classifier.parameters())
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "muon":
        kernels = [kernel for member in classifier.members for kernel in _kernels(member)]
        inside = {id(kernel) for kernel in kernels}
        others = [parameter for parameter in parameters if id(parameter) not in inside]
        return JoinedOptimizers(
            muon=KernelMuon(kernels, lr=rate, weight_decay=decay, momentum=_MUON_MOMENTUM),
            adamw=torch.optim.AdamW([{"params": others, "rate_share": _ADAMW_SHARE}], lr=rate, weight_decay=decay),
        )
    return torch.optim.SGD(
        parameters,
        lr=rate,
        momentum=config.momentum,
        weight_decay=decay,
        nesterov=config.nesterov and config.momentum > 0,
    )


def set_rate(optimizer: Any, rate: float) -> None:
    """Sets the learning rate of the next step; groups with a ``rate_share`` get that share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)


class KernelMuon(torch.optim.Muon):
    """Muon for kernels of any number of dimensions, each read as a matrix with one row per output channel.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as torch implements it.
    Deviation: torch takes matrices alone; these are views of the kernels' own memory.
    """

    def __init__(self, kernels: list[nn.Parameter], **settings: Any) -> None:
        """Takes the kernels (output channels first) and the settings of ``torch.optim.Muon``."""
        self._kernels = kernels
        super().__init__([nn.Parameter(_matrix(kernel.detach())) for kernel in kernels], **settings)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of the kernels."""
        for kernel in self._kernels:
            kernel.grad = None
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step along the orthogonalised momentum of the kernels' gradients."""
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            if kernel.grad is None:
                matrix.grad = None
                continue
            # In the memory format of the kernel, so that both matrices have the same columns.
            matrix.grad = _matrix(torch.empty_like(kernel).copy_(kernel.grad))
        return super().step(closure)


class JoinedOptimizers:
    """Optimizers of different parameters, stepped as one."""

    def __init__(self, **optimizers: torch.optim.Optimizer) -> None:
        """Joins optimizers by name."""
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all of them."""
        return [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Steps each."""
        for optimizer in self._optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """State of each, by name."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` returned."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])


def _kernels(member: nn.Module) -> list[nn.Parameter]:
    """Weights of all convolutions and linear layers but the last, which turns features into logits."""
    layers: Iterable[Any] = [m for m in member.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [layer.weight for layer in list(layers)[:-1]]


def _matrix(kernel: torch.Tensor) -> torch.Tensor:
    """The same memory as (output channels, rest); the order of the columns is that of the memory."""
    dense = kernel.permute(0, 2, 3, 1) if kernel.dim() == 4 and not kernel.is_contiguous() else kernel
    return dense.view(len(kernel), -1)
