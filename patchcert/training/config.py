"""How a base classifier is trained. Settings only, no torch."""

import dataclasses
import math
from typing import Literal, get_args, get_origin

from patchcert.checks import check_numbers
from patchcert.errors import TrainingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one training run; all of them are part of the run's fingerprint."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, all workers together."""
    views_per_image: int = 1
    """Random views of each image in a step; 0: all of them, in one pass where the network offers it."""
    view_sampling: Literal["image", "batch", "spread"] = "image"
    """image: each image gets views of its own; batch: one draw for all images of a batch, as DRS published; spread: as
    batch, but at even distances from a random first view on, because neighbours tell almost the same."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """Gradient descent with momentum; AdamW; Muon for kernels, beside AdamW at a tenth of the rate for all else."""
    learning_rate: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty (SGD) or decoupled decay (AdamW, Muon)."""
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    """one_cycle: up, then down by a cosine; cosine: down; steps: times 0.1 at each milestone; constant."""
    warmup_fraction: float = 0.15
    """Share of the run in which one_cycle rises."""
    milestones: tuple[float, ...] = (150 / 350, 250 / 350)
    """Shares of the run after which the steps schedule multiplies the rate by 0.1."""
    augmentation: Literal["none", "shift", "shift_flip", "trivial_augment"] = "none"
    """shift: random translation with zeros outside; shift_flip: and a random mirror image; trivial_augment: and one
    random operation on colours or geometry (TrivialAugment, Mueller & Hutter 2021), against overfitting."""
    augmentation_share: float = 1.0
    """Share of the images that trivial_augment recolours or bends, in (0, 1]; others are moved and mirrored only."""
    shift_pixels: int = 4
    """Largest translation of the augmentation, in pixels."""
    objective: Literal["cross_entropy", "certified_margin"] = "cross_entropy"
    """cross_entropy: of each view. certified_margin: mixes in a hinge on the lead that the worst patch leaves."""
    margin_patch: str = ""
    """Patch that certified_margin trains against, such as 5x5 or 2%."""
    margin_weight: float = 0.5
    """Share of the hinge in the loss of certified_margin, in (0, 1]; reached by half of the run, rising from 0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic: bfloat16 is autocast with float32 weights."""
    split: Literal["train", "trainval"] = "train"
    """Images to learn from. trainval adds the held-out images: only when no choice depends on them."""
    memory_gib: float = 4.0
    """Datasets up to this size are held in each worker's memory; larger ones are streamed, this much at a time."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    seed: int = 0
    """Start weights, order of images, views and augmentation."""

    def __post_init__(self) -> None:
        """Checks ranges and settings without effect."""
        for field in dataclasses.fields(self):
            choices = get_args(field.type) if get_origin(field.type) is Literal else None
            if choices and getattr(self, field.name) not in choices:
                raise TrainingError(
                    f"training: {field.name} is one of {', '.join(choices)}, not {getattr(self, field.name)!r}."
                )
        for name in ("epochs", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"training: {name} must be at least 1, not {getattr(self, name)}.")
        if self.views_per_image < 0:
            raise TrainingError(
                f"training: views_per_image must be positive, or 0 for all views; not {self.views_per_image}."
            )
        if self.views_per_image == 0 and self.view_sampling != "image":
            raise TrainingError(
                f"training: view_sampling {self.view_sampling!r} has no effect when views_per_image is 0: no draw.\n"
                "  Leave view_sampling at image, or set --training.views-per-image to 1 or more"
            )
        self._check_objective()
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"training: learning_rate must be > 0, not {self.learning_rate}.")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"training: momentum must lie in [0, 1), not {self.momentum}.")
        for name in ("weight_decay", "memory_gib", "seed"):
            if not getattr(self, name) >= 0:
                raise TrainingError(f"training: {name} must be >= 0, not {getattr(self, name)}.")
        if not 0 <= self.label_smoothing < 1:
            raise TrainingError(f"training: label_smoothing must lie in [0, 1), not {self.label_smoothing}.")
        if not 0 < self.warmup_fraction < 1:
            raise TrainingError(f"training: warmup_fraction must lie in (0, 1), not {self.warmup_fraction}.")
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise TrainingError(f"training: milestones are shares of the run in (0, 1), not {self.milestones}.")
        if self.shift_pixels < 0:
            raise TrainingError(f"training: shift_pixels must be >= 0, not {self.shift_pixels}.")
        if not 0 < self.augmentation_share <= 1:
            raise TrainingError(f"training: augmentation_share must lie in (0, 1], not {self.augmentation_share}.")
        if self.augmentation_share < 1 and self.augmentation != "trivial_augment":
            raise TrainingError(
                f"training: augmentation_share {self.augmentation_share} has no effect on {self.augmentation!r}.\n"
                "  Leave it out, or set --training.augmentation trivial_augment"
            )
        if self.augmentation == "shift" and self.shift_pixels == 0:
            raise TrainingError(
                "training: augmentation 'shift' by 0 pixels has no effect.\n"
                "  Set --training.shift-pixels to 1 or more, or --training.augmentation none"
            )
        check_numbers(self, "training", TrainingError)

    def _check_objective(self) -> None:
        if self.objective == "cross_entropy":
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in ("margin_patch", "margin_weight") and value != field.default:
                    raise TrainingError(
                        f"training: {field.name} {value!r} has no effect on cross_entropy.\n"
                        "  Leave it out, or set --training.objective certified_margin"
                    )
            return
        if self.views_per_image != 0 and self.view_sampling != "spread":
            raise TrainingError(
                f"training: certified_margin weighs all views of an image or a spread of them, not "
                f"{self.views_per_image} drawn by {self.view_sampling}.\n"
                "  Set --training.views-per-image 0, or --training.view-sampling spread"
            )
        if not self.margin_patch:
            raise TrainingError(
                "training: certified_margin needs the patch to train against.\n"
                "  Name it, for example --training.margin-patch 5x5"
            )
        if not 0 < self.margin_weight <= 1:
            raise TrainingError(f"training: margin_weight must lie in (0, 1], not {self.margin_weight}.")
