"""How pixels reach the base classifier: normalisation, NULL encoding, positional encoding. Settings only, no torch."""

import dataclasses
from typing import Any, Literal, get_args

from patchcert.checks import check_numbers
from patchcert.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Encoding of a view for the base classifier.

    Source: NULL encoding: Levine & Feizi 2020, section 3 and appendix; positional encoding: randomized-cropping paper,
    section 3.
    """

    removed: Literal["cut", "null", "drop"] = "null"
    """cut: removed pixels are cut off, the view is what it retains (crops; bands and blocks of one-pass networks).
    null: the view is as large as the image, x in [0, 1] becomes (x, 1 - x), a removed pixel (0, 0).
    drop: as null, and vision transformers leave out the tokens of patches without a retained pixel."""
    mean: tuple[float, ...] = ()
    """Per-channel mean subtracted from pixels in [0, 1]; empty: pixels stay in [0, 1]."""
    std: tuple[float, ...] = ()
    """Per-channel standard deviation that pixels are divided by; empty exactly when the mean is."""
    positional_bound: float = 0.0
    """Learnable positional encoding, bounded to this share of the normalised input range; 0: none, 0.1: the paper."""
    coordinates: bool = False
    """Two more channels hold each pixel's row and column in the image, in [-1, 1]; for views that are cut off."""

    def __post_init__(self) -> None:
        """Checks the settings against each other."""
        choices = get_args(EncodingConfig.__annotations__["removed"])
        if self.removed not in choices:
            raise ModelError(f"encoding: removed is one of {', '.join(choices)}, not {self.removed!r}.")
        if len(self.mean) != len(self.std):
            raise ModelError(
                f"encoding: mean has {len(self.mean)} channels but std has {len(self.std)}.\n"
                "  Give one value of each per channel, or neither."
            )
        if not all(value > 0 for value in self.std):
            raise ModelError(f"encoding: std must be positive, not {self.std}.")
        if not 0 <= self.positional_bound <= 1:
            raise ModelError(
                f"encoding: positional_bound is a fraction of the input range in [0, 1], not {self.positional_bound}."
            )
        if self.coordinates and self.removed != "cut":
            raise ModelError(
                "encoding: coordinates say where a cut-off view was, but NULL-encoded views "
                f"(removed {self.removed!r}) stay in place.\n"
                "  Set --classifier.encoding.removed cut, or leave the coordinates out."
            )
        check_numbers(self, "classifier.encoding", ModelError)

    def num_input_channels(self, image_channels: int) -> int:
        """Channels of the tensor the network receives: the image's, doubled by NULL encoding, and the coordinates."""
        if self.mean and len(self.mean) not in (1, image_channels):
            raise ModelError(
                f"encoding: mean and std have {len(self.mean)} channels, the images have {image_channels}.\n"
                f"  Give {image_channels} values, or one for all channels."
            )
        return image_channels * (1 if self.removed == "cut" else 2) + 2 * self.coordinates

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values; ``EncodingConfig.from_json`` reads them back."""
        return {
            "removed": self.removed,
            "mean": list(self.mean),
            "std": list(self.std),
            "positional_bound": self.positional_bound,
            "coordinates": self.coordinates,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EncodingConfig":
        """Reads what ``to_json`` wrote."""
        return cls(
            removed=values["removed"],
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            positional_bound=values["positional_bound"],
            coordinates=values["coordinates"],
        )
