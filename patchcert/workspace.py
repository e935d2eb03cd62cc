"""Names the places of data, models, votes and studies in a work folder."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from patchcert.data.prepared import DATASET_FILE, read_record
from patchcert.data.registry import SPLITS, dataset_spec
from patchcert.data.sources import source_place
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


def _prepared_from(folder: Folder, place: str) -> bool:
    """Whether a folder holds a split that was prepared from the images at a place."""
    for split in SPLITS:
        if folder.folder(split).exists(DATASET_FILE):
            return bool(read_record(folder.folder(split)).get("source", {}).get("uri") == place)
    return False


class Workspace:
    """One work folder: ``data/``, ``training/``, ``models/``, ``votes/``, studies of votes, and the tracking store."""

    def __init__(self, location: str | None = None) -> None:
        """Chooses the folder: what is given, else PATCHCERT_WORK, else ``patchcert-work`` in the current folder."""
        self.folder = Folder(location or os.environ.get("PATCHCERT_WORK") or DEFAULT_WORK)

    def data(self, config: Any, image_size: tuple[int, int]) -> Folder:
        """Folder of a prepared dataset; one subfolder per split.

        A registered dataset is the same wherever its images lie. Your own images are another dataset in each place,
        so the place is part of the name.
        """
        values = canonical_settings(config)
        # It does not change what is prepared from the same files.
        del values["allow_subset"]
        source = values.pop("source")
        if values["class_names"] is None:
            del values["class_names"]  # older versions knew no such setting
        height, width = image_size
        name = f"data/{config.dataset}-{height}x{width}"
        shared = self.folder.folder(f"{name}-{settings_key(values)}")
        if dataset_spec(config.dataset).class_names is not None or source is None:
            return shared
        place = source_place(source)
        if _prepared_from(shared, place):  # by a version that named the folder without the place
            return shared
        return self.folder.folder(f"{name}-{settings_key(values, place)}")

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
