"""Reads what a checkpoint says about itself: its config.json, without its weights and without torch."""

from typing import Any

from patchcert.data.sealed import read_sealed
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError

FORMAT = 1
CONFIG = "config.json"
_KEYS = {"classifier", "views", "image_channels", "num_classes", "network_code", "digest"}
_UNSEALED = _KEYS | {"format", "provenance", "weights"}


def read_checkpoint_config(folder: Folder) -> dict[str, Any]:
    """Read config.json of a checkpoint folder without touching the weights.

    Raises:
        CheckpointError: no such folder, not a checkpoint, damaged, or a format of another version.
    """
    path = f"{folder}/{CONFIG}"
    try:
        config, is_whole = read_sealed(folder, CONFIG, unsealed=_UNSEALED)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no checkpoint: {CONFIG} is missing.\n  Train one:  patchcert train RECIPE"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.\n  Restore the folder, or delete it and train again."
        ) from None
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {config.get('format')}, this version reads format {FORMAT}.\n"
            "  Use the version of patchcert that wrote it, or train again."
        )
    if not _KEYS <= config.keys():
        raise CheckpointError(
            f"{path} is damaged: it lacks {', '.join(sorted(_KEYS - config.keys()))}.\n"
            "  Restore the folder, or delete it and train again."
        )
    if not is_whole:
        raise CheckpointError(
            f"{path} was changed after it was written.\n  Restore the folder, or delete it and train again."
        )
    return config
