"""Builds base classifiers' networks by name: modules from views (B, C, h, w) to logits (B, num_classes)."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.averaged import AveragedNetworks
from patchcert.models.band_network import band_network
from patchcert.models.config import ClassifierConfig
from patchcert.models.crop_network import crop_network
from patchcert.models.drs_mnist_cnn import drs_mnist_cnn
from patchcert.models.resnet9 import resnet9
from patchcert.models.token_dropping import drop_tokens
from patchcert.models.torchvision_networks import resnet18_small, torchvision_names, torchvision_network
from patchcert.models.vision_transformer import vit_small

_Builder = Callable[[ClassifierConfig, int, tuple[int, int], int], nn.Module]

NETWORKS: dict[str, _Builder] = {
    "drs-mnist-cnn": drs_mnist_cnn,
    "resnet9": resnet9,
    "resnet18-small": resnet18_small,
    "vit-small": vit_small,
}


# These are built for the whole view set: where views start decides how positions are dropped on the way.
ONE_PASS_NETWORKS: dict[str, Callable[[ClassifierConfig, int, tuple[int, int], int, Any], nn.Module]] = {
    "band-network": band_network,
    "crop-network": crop_network,
}


def build_network(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int, views: Any = None
) -> nn.Module:
    """Builds a base classifier's network, or its members, with fresh weights and checks them on one blank view.

    Args:
        config: names the network: one of ``NETWORKS`` or ``ONE_PASS_NETWORKS``, ``torchvision:NAME``, or
            ``package.module:function``, a callable that takes (num_input_channels, view_size, num_classes) and returns
            a module.
        num_input_channels: channels of a view, after encoding.
        view_size: height and width of a view in pixels.
        num_classes: number of logits, >= 2.
        views: the view set; only the networks of ``ONE_PASS_NETWORKS`` and those that drop tokens need it.

    Returns:
        A module: float (B, num_input_channels, *view_size) -> logits (B, num_classes). With encoding removed="drop" a
        ``TokenDroppingTransformer``, which reads images and view numbers. Of several members, ``AveragedNetworks``.

    Raises:
        ModelError: unknown name, views too small for the network, logits of another shape, or no tokens to drop.
    """
    members = [_build_member(config, num_input_channels, view_size, num_classes, views) for _ in range(config.members)]
    return AveragedNetworks(members) if config.members > 1 else members[0]


def _build_member(
    config: ClassifierConfig, num_input_channels: int, view_size: tuple[int, int], num_classes: int, views: Any
) -> nn.Module:
    name = config.network
    if name.startswith("torchvision:"):
        network = torchvision_network(config, num_input_channels, view_size, num_classes)
    elif ":" in name:
        network = _custom_network(name, num_input_channels, view_size, num_classes)
    elif name in NETWORKS:
        network = NETWORKS[name](config, num_input_channels, view_size, num_classes)
    elif name in ONE_PASS_NETWORKS:
        network = ONE_PASS_NETWORKS[name](config, num_input_channels, view_size, num_classes, views)
    else:
        own = [*NETWORKS, *ONE_PASS_NETWORKS]
        near = [f"torchvision:{name}"] if name in torchvision_names() else difflib.get_close_matches(name, own, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"classifier: there is no network {name!r}.{hint}\n"
            f"  Known: {', '.join(own)}, torchvision:NAME, or your own package.module:function."
        )
    _check_logits(network, name, num_input_channels, view_size, num_classes)
    return drop_tokens(network, views, name) if config.encoding.removed == "drop" else network


def _custom_network(name: str, num_input_channels: int, view_size: tuple[int, int], num_classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    # The user's own code may raise anything.
    try:
        build = getattr(importlib.import_module(module_name), function_name)
        network = build(num_input_channels, view_size, num_classes)
    except Exception as error:
        raise ModelError(
            f"classifier: cannot build {name!r}: {type(error).__name__}: {error}.\n"
            "  Name a function on the Python path as package.module:function; it takes "
            "(num_input_channels, view_size, num_classes) and returns a torch module."
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"classifier: {name!r} returned {type(network).__name__}, not a torch.nn.Module.")
    return network


def _check_logits(
    network: nn.Module, name: str, num_input_channels: int, view_size: tuple[int, int], num_classes: int
) -> None:
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, num_input_channels, *view_size))
    except Exception as error:
        raise ModelError(
            f"classifier: {name!r} cannot read views of {view_size[0]}x{view_size[1]} with {num_input_channels} "
            f"channels: {str(error).partition(chr(10))[0] or type(error).__name__}\n"
            "  Choose larger views or another network."
        ) from error
    network.train(was_training)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, num_classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"classifier: {name!r} returns {shape} for two views; logits of shape (2, {num_classes}) are needed."
        )
