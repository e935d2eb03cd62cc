"""What a base classifier is made of. Settings only, no torch."""

import dataclasses
from typing import Any

from patchcert.checks import check_numbers
from patchcert.errors import ModelError
from patchcert.views.encoding import EncodingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A network and the encoding of its input."""

    network: str = "resnet9"
    """drs-mnist-cnn, resnet9, resnet18-small, vit-small; band-network, crop-network (all views in one pass);
    torchvision:NAME (such as resnet50 or vit_b_16); package.module:function."""
    width: float = 1.0
    """Multiplies the channels of patchcert's own networks (of vit-small the blocks, too); refused elsewhere, where it
    has no effect."""
    dropout: float = 0.0
    """Dropout before the last layer of patchcert's own networks but resnet18-small, in [0, 1)."""
    members: int = 1
    """Networks with start weights of their own whose logits are averaged: each costs what one costs, their mean is more
    often right."""
    pretrained: bool = False
    """Start a torchvision network from its published weights (needs a network or a filled torch cache)."""
    encoding: EncodingConfig = dataclasses.field(default_factory=EncodingConfig)
    """How pixels reach the network."""

    def __post_init__(self) -> None:
        """Checks the settings against each other."""
        if self.width <= 0:
            raise ModelError(f"classifier: width multiplies the number of channels and must be > 0, not {self.width}.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"classifier: dropout must lie in [0, 1), not {self.dropout}.")
        if self.members < 1:
            raise ModelError(f"classifier: members is the number of networks and must be >= 1, not {self.members}.")
        if self.members > 1 and self.pretrained:
            raise ModelError(
                f"classifier: {self.members} members that all start from the same pretrained weights are one network.\n"
                "  Set --classifier.members 1 or --classifier.no-pretrained"
            )
        if ":" in self.network and (self.width != 1.0 or self.dropout):
            raise ModelError(
                f"classifier: width and dropout have no effect on {self.network!r} "
                f"(width {self.width}, dropout {self.dropout}).\n  Leave them at 1 and 0."
            )
        if self.pretrained and not self.network.startswith("torchvision:"):
            raise ModelError(
                f"classifier: {self.network!r} has no published weights; pretrained needs a torchvision:NAME network."
            )
        check_numbers(self, "classifier", ModelError)

    def to_json(self) -> dict[str, Any]:
        """What the network computes depends on, as plain JSON values (the start weights do not count)."""
        return {
            "network": self.network,
            "width": self.width,
            "dropout": self.dropout,
            "encoding": self.encoding.to_json(),
            # Only where there are several, so that what was trained as one network keeps its identity.
            **({"members": self.members} if self.members > 1 else {}),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ClassifierConfig":
        """Reads what ``to_json`` wrote."""
        return cls(
            network=values["network"],
            width=values["width"],
            dropout=values["dropout"],
            members=values.get("members", 1),
            encoding=EncodingConfig.from_json(values["encoding"]),
        )
