"""Checks of numbers that every settings dataclass shares: finite, and seeds that all generators take."""

import dataclasses
import math
from typing import Any

_MOST_SEED = 2**63 - 1


def check_numbers(settings: Any, option: str, error: type[Exception]) -> None:
    """Refuse NaN and infinity in any field of a settings dataclass, alone or in a tuple, and seeds out of range.

    Args:
        settings: a dataclass; fields named ``seed`` or ``..._seed`` hold seeds.
        option: what its options begin with on the command line, such as ``classifier.encoding``.
        error: what is raised, built from one string.

    Raises:
        error: names the setting, its value and its option.
    """
    section = option.rpartition(".")[2]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        name = f"--{option}.{field.name.replace('_', '-')}"
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise error(
                    f"{section}: {field.name} must be a finite number, not {number}.\n  Give {name} such a number."
                )
        if field.name == "seed" or field.name.endswith("_seed"):
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or not 0 <= value <= _MOST_SEED:
                raise error(
                    f"{section}: {field.name} must be a whole number from 0 to 2^63 - 1, not {value}.\n"
                    f"  Give {name} such a number."
                )
