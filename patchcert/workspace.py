"""A work folder and a recipe in, the places of its data, models, votes and studies out."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from patchcert.data.storage import Folder
from patchcert.votes.table import Identity, fingerprint

DEFAULT_WORK = "patchcert-work"


def canonical_settings(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values


def settings_key(*settings: Any) -> str:
    """Eight hexadecimal digits that change whenever one of the settings does."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Workspace:
    """One work folder: ``data/``, ``training/``, ``models/``, ``votes/``, studies of votes, and the tracking store."""

    def __init__(self, location: str | None = None) -> None:
        """Chooses the folder: what is given, else PATCHCERT_WORK, else ``patchcert-work`` in the current folder."""
        self.folder = Folder(location or os.environ.get("PATCHCERT_WORK") or DEFAULT_WORK)

    def data(self, config: Any, image_size: tuple[int, int]) -> Folder:
        """Folder of a prepared dataset; one subfolder per split."""
        values = canonical_settings(config)
        # Neither changes what is prepared from the same files.
        del values["source"], values["allow_subset"]
        height, width = image_size
        return self.folder.folder(f"data/{config.dataset}-{height}x{width}-{settings_key(values)}")

    def training(self, recipe_name: str, key: str) -> Folder:
        """Folder of the checkpoints of an unfinished training run."""
        return self.folder.folder(f"training/{recipe_name}-{key}")

    def models(self, recipe_name: str) -> Folder:
        """Folder of a recipe's models, each in a folder named by the key of its training."""
        return self.folder.folder(f"models/{recipe_name}")

    def votes(self, recipe_name: str, identity: Identity) -> Folder:
        """Folder of the vote table with an identity."""
        return self.folder.folder(f"votes/{recipe_name}-{fingerprint(identity)[:8]}")

    def study(self, recipe_name: str, identity: dict[str, Any]) -> Folder:
        """Folder of the results of one study."""
        return self.folder.folder(f"studies/{recipe_name}-{fingerprint(identity)[:8]}")

    def variance(self, recipe_name: str, identity: dict[str, Any]) -> Folder:
        """Folder of the results of one variance study."""
        return self.folder.folder(f"variance/{recipe_name}-{fingerprint(identity)[:8]}")
