"""Classifies single views of images: the view cutter and the network as one module."""

from typing import Any

import torch
from torch import nn

from patchcert.errors import ModelError
from patchcert.models.averaged import AveragedNetworks
from patchcert.models.config import ClassifierConfig
from patchcert.models.networks import build_network
from patchcert.models.one_pass import OnePassNetwork
from patchcert.models.token_dropping import TokenDroppingTransformer
from patchcert.views.cutting import ViewCutter

# Classes are stored as uint16.
_MAX_CLASSES = 65536


class BaseClassifier(nn.Module):
    """Classifies single views of images.

    Attributes:
        views: the view set it was built for.
        config: network and encoding.
        num_classes: number of logits.
        cutter: cuts and encodes views on the device.
        network: module from views (B, C', h, w) to logits (B, num_classes); one that drops tokens reads images and
            view numbers instead. Several members are one module that averages them.
    """

    def __init__(self, config: ClassifierConfig, views: Any, image_channels: int, num_classes: int) -> None:
        """Builds the classifier with fresh weights (drawn from torch's generator: seed it first).

        Raises:
            ModelError: the settings do not fit together.
        """
        super().__init__()
        if num_classes > _MAX_CLASSES:
            raise ModelError(
                f"classifier: {num_classes} classes are asked for; vote tables hold at most {_MAX_CLASSES}."
            )
        self.config = config
        self.views = views
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.cutter = ViewCutter(views, config.encoding, image_channels)
        self.network = build_network(config, self.cutter.num_input_channels, self.cutter.view_size, num_classes, views)
        self.network.to(memory_format=torch.channels_last)

    @property
    def one_pass(self) -> bool:
        """Whether the network has a way of its own to score all views of an image together."""
        return isinstance(self.members[0], (OnePassNetwork, TokenDroppingTransformer))

    @property
    def members(self) -> list[nn.Module]:
        """The networks whose logits are averaged: one or more, of one shape."""
        return list(self.network.members) if isinstance(self.network, AveragedNetworks) else [self.network]

    def some_views(self, pixels_BCHW: torch.Tensor, views_Bn: torch.Tensor) -> torch.Tensor:
        """Scores n views of each image, each on its own; as ``forward``, of pixels that ``cutter.encode`` returned."""
        logits = self.network(*self.network_inputs(pixels_BCHW, views_Bn))
        return _at_least_float32(logits).view(-1, views_Bn.shape[1], self.num_classes)

    def network_inputs(self, pixels_BCHW: torch.Tensor, views_Bn: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the network reads to score n views of each image: the views, or pixels and view numbers."""
        if isinstance(self.members[0], TokenDroppingTransformer):
            return pixels_BCHW, views_Bn
        return (self.cutter.cut(pixels_BCHW, views_Bn).contiguous(memory_format=torch.channels_last),)

    def all_views(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Scores every view of each image together, for a network that is ``one_pass``.

        Args:
            pixels_BCHW: what ``cutter.encode`` returned.

        Returns:
            float32 logits (B, num_views, num_classes), those of each view alone.
        """
        if isinstance(self.members[0], TokenDroppingTransformer):
            return self.some_views(pixels_BCHW, self._every_view_1V(pixels_BCHW.device))
        continued = self.cutter.continued(pixels_BCHW).contiguous(memory_format=torch.channels_last)
        return _at_least_float32(self.network(continued)).view(-1, self.views.num_views, self.num_classes)

    def _every_view_1V(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.views.num_views, device=device)[None]

    def forward(self, images_BCHW: torch.Tensor, views_Bn: torch.Tensor | None = None) -> torch.Tensor:
        """Scores n views of each image.

        Args:
            images_BCHW: uint8 (B, C, H, W), or float in [0, 1].
            views_Bn: int64 (B, n), or (1, n) for the same views of each image; None: all views in order.

        Returns:
            float32 logits (B, n, num_classes); of several members in training (members * B, n, num_classes), member
            by member, because each learns on its own.
        """
        pixels_BCHW = self.cutter.encode(images_BCHW)
        if views_Bn is not None:
            return self.some_views(pixels_BCHW, views_Bn)
        if self.one_pass:
            return self.all_views(pixels_BCHW)
        return self.some_views(pixels_BCHW, self._every_view_1V(pixels_BCHW.device))


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
