"""A step of a run in, the learning rate of that step out; no state, so a resumed run continues exactly."""

import math

from patchcert.training.config import TrainingConfig

_START_FRACTION = 1 / 25
_END_FRACTION = 1e-4


def learning_rate_at(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: peak rate and schedule.
        step: 0-based, in [0, total_steps).
        total_steps: steps of the whole run, >= 1.
    """
    progress = step / max(1, total_steps - 1)
    if config.schedule == "constant":
        factor = 1.0
    elif config.schedule == "cosine":
        factor = _cosine(1.0, _END_FRACTION, progress)
    elif config.schedule == "steps":
        factor = 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    elif progress < config.warmup_fraction:
        factor = _cosine(_START_FRACTION, 1.0, progress / config.warmup_fraction)
    else:
        factor = _cosine(1.0, _END_FRACTION, (progress - config.warmup_fraction) / (1 - config.warmup_fraction))
    return config.learning_rate * factor


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
