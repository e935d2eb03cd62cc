"""Reads what a checkpoint says about itself: its config.json, without its weights and without torch."""

import json
from typing import Any

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError

FORMAT = 1
CONFIG = "config.json"
_KEYS = {"classifier", "views", "image_channels", "num_classes", "network_code", "digest"}


def read_checkpoint_config(folder: Folder) -> dict[str, Any]:
    """Read config.json of a checkpoint folder without touching the weights.

    Raises:
        CheckpointError: no such folder, not a checkpoint, damaged, or a format of another version.
    """
    path = f"{folder}/{CONFIG}"
    try:
        config = json.loads(folder.read(CONFIG))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no checkpoint: {CONFIG} is missing.\n  Train one:  patchcert train RECIPE"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.\n  Restore the folder, or delete it and train again."
        ) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{path} has checkpoint format {found}, this version reads format {FORMAT}.\n"
            "  Use the version of patchcert that wrote it, or train again."
        )
    if not _KEYS <= config.keys():
        raise CheckpointError(
            f"{path} is damaged: it lacks {', '.join(sorted(_KEYS - config.keys()))}.\n"
            "  Restore the folder, or delete it and train again."
        )
    return config
