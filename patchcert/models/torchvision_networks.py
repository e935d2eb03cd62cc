"""torchvision classifiers with their first layer widened for encoded views, and ResNet18 for 32x32 inputs.

torchvision takes as long to import as torch itself, so only networks made of its parts load it.
"""

import difflib

import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.config import ClassifierConfig


def resnet18_small(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """ResNet18 for inputs of about 32x32: a 3x3 stem of stride 1, no first pooling, four stages of two basic blocks.

    Source: Levine & Feizi 2020, appendix (CIFAR-10 base classifier, 6 input channels).
    """
    from torchvision.models.resnet import BasicBlock

    if config.dropout:
        raise ModelError(f"classifier: dropout {config.dropout} has no effect on resnet18-small.\n  Leave it at 0.")
    widths = [max(1, round(size * config.width)) for size in (64, 128, 256, 512)]
    layers: list[nn.Module] = [
        nn.Conv2d(num_input_channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    channels = widths[0]
    for stage, channels_out in enumerate(widths):
        for stride in (1 if stage == 0 else 2, 1):
            shortcut = None
            if stride != 1 or channels != channels_out:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
                )
            layers.append(BasicBlock(channels, channels_out, stride, shortcut))
            channels = channels_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def torchvision_network(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """Builds any torchvision classifier for encoded views.

    The first convolution is widened to ``num_input_channels``. With pretrained weights w, the NULL-encoded channels
    (x, 1 - x) get (w / 2, -w / 2), which computes w * x up to a constant.

    Args:
        config: ``network`` is ``torchvision:NAME``.
        num_input_channels: channels of a view after encoding.
        view_size: height and width of a view; networks with a fixed input size need exactly that.
        num_classes: number of logits.

    Raises:
        ModelError: unknown name, a view size that the network refuses, weights that cannot be fetched, or no first
            convolution to widen.
    """
    from torchvision import models

    name = config.network.partition(":")[2]
    known = torchvision_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"classifier: torchvision has no classifier {name!r}.{hint}\n  See torchvision.models.")
    options = {"image_size": view_size[0]} if name.startswith("vit_") and view_size[0] == view_size[1] else {}
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": True}
    if config.pretrained:
        try:
            network = models.get_model(name, weights="DEFAULT")
        except OSError as error:
            raise ModelError(
                f"classifier: the published weights of {name} cannot be fetched: {error}.\n"
                "  Put them into the torch hub cache, or train from scratch: --classifier.no-pretrained"
            ) from error
        _replace_last_linear(network, name, num_classes)
    else:
        try:
            network = models.get_model(name, weights=None, num_classes=num_classes, **options)
        except (AssertionError, ValueError) as error:
            raise ModelError(
                f"classifier: torchvision's {name} cannot read views of {view_size[0]}x{view_size[1]}: {error}\n"
                "  Choose another size or another network."
            ) from error
    _widen_first_convolution(network, name, num_input_channels, keep_weights=config.pretrained)
    return network


def _widen_first_convolution(network: nn.Module, name: str, num_input_channels: int, keep_weights: bool) -> None:
    convolutions = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ModelError(f"classifier: torchvision's {name} has no convolution to widen for encoded views.")
    path, module = convolutions[0]
    if module.in_channels == num_input_channels:
        return
    wide = nn.Conv2d(
        num_input_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        bias=module.bias is not None,
    )
    if keep_weights:
        if num_input_channels != 2 * module.in_channels:
            raise ModelError(
                f"classifier: published weights of {name} read {module.in_channels} channels, the views have "
                f"{num_input_channels}.\n  Prepare the images in colour, or train without pretrained weights."
            )
        with torch.no_grad():
            wide.weight.copy_(torch.cat([module.weight / 2, -module.weight / 2], dim=1))
            if module.bias is not None:
                wide.bias.copy_(module.bias)
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, wide)


def _replace_last_linear(network: nn.Module, name: str, num_classes: int) -> None:
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(f"classifier: torchvision's {name} has no last linear layer to replace.")
    path, module = linear[-1]
    if module.out_features != num_classes:
        parent, _, attribute = path.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Linear(module.in_features, num_classes))
