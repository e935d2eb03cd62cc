"""How a base classifier is trained. Settings only, no torch."""

import dataclasses
import math
from typing import Literal, get_args, get_origin

from patchcert.errors import TrainingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one training run; all of them are part of the run's fingerprint."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, all workers together."""
    views_per_image: int = 1
    """Random views cut out of each image in a step."""
    view_sampling: Literal["image", "batch"] = "image"
    """image: each image gets views of its own; batch: one draw for all images of a batch, as DRS published."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
    learning_rate: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    """one_cycle: up, then down by a cosine; cosine: down; steps: times 0.1 at each milestone; constant."""
    warmup_fraction: float = 0.15
    """Share of the run in which one_cycle rises."""
    milestones: tuple[float, ...] = (150 / 350, 250 / 350)
    """Shares of the run after which the steps schedule multiplies the rate by 0.1."""
    augmentation: Literal["none", "shift", "shift_flip"] = "none"
    """shift: random translation with zeros outside; shift_flip: and a random mirror image."""
    shift_pixels: int = 4
    """Largest translation of the augmentation, in pixels."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic: bfloat16 is autocast with float32 weights."""
    split: Literal["train", "trainval"] = "train"
    """Images to learn from. trainval adds the held-out images: only when no choice depends on them."""
    memory_gib: float = 4.0
    """Datasets up to this size are held in each worker's memory; larger ones are streamed from their shards."""
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
        for name in ("epochs", "batch_size", "views_per_image", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"training: {name} must be at least 1, not {getattr(self, name)}.")
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
        if self.augmentation == "shift" and self.shift_pixels == 0:
            raise TrainingError(
                "training: augmentation 'shift' by 0 pixels has no effect.\n"
                "  Set --training.shift-pixels to 1 or more, or --training.augmentation none"
            )
