"""Decides whether prepared images are the ones that are asked for: settings, source files and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from patchcert.data.class_names import label_map
from patchcert.data.config import DataConfig
from patchcert.data.decoding import Preprocessing
from patchcert.data.prepared import DATASET_FILE, SCHEMA_VERSION, read_record
from patchcert.data.registry import SPLITS, DatasetSpec
from patchcert.data.source_files import record_of, stamp_of
from patchcert.data.splits import SplitSources
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

_GROUP_BYTES = 16 * 2**20
_MOST_ROWS_PER_GROUP = 4_096
_GROUPS_PER_SHARD = 16


def identity_of(
    spec: DatasetSpec,
    config: DataConfig,
    preprocessing: Preprocessing,
    split: str,
    sources: SplitSources | None,
) -> dict[str, Any]:
    """Everything that decides which pixels are written; JSON-able. Fields of a missing source are left out."""
    rows_per_group = config.rows_per_group or _default_rows_per_group(preprocessing.num_bytes)
    identity: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": spec.name,
        "variant": spec.variant,
        "split": split,
        "image_size": list(preprocessing.image_size),
        "num_channels": preprocessing.num_channels,
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
        "class_names": None if config.class_names is None else list(config.class_names),
        "limit": config.limit,
        "max_pixels": config.max_pixels,
        "storage": config.storage,
        "rows_per_group": rows_per_group,
        "rows_per_shard": config.rows_per_shard or _GROUPS_PER_SHARD * rows_per_group,
    }
    if sources is not None:
        identity["validation_size"] = sources.validation_size
        identity["validation_seed"] = sources.validation_seed
        identity["source"] = sources.fingerprint
    return identity


def _default_rows_per_group(image_bytes: int) -> int:
    rows = min(max(_GROUP_BYTES // image_bytes, 1), _MOST_ROWS_PER_GROUP)
    return int(1 << (rows.bit_length() - 1))


def check_identity(folder: Folder, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Make sure that a folder holds what is asked for.

    Raises:
        DatasetError: it was prepared differently; names every difference with both values.
    """
    differences = [
        "source: other files than the ones asked for"
        if key == "source"
        else f"{key}: {found.get(key)!r} there, {value!r} asked for"
        for key, value in asked.items()
        if found.get(key) != value
    ]
    if differences:
        raise DatasetError(
            f"{folder} holds images prepared differently: {'; '.join(differences)}\n"
            "  Choose another output folder (on the command line: --work FOLDER), or delete this one."
        )


def files_record(sources: SplitSources) -> dict[str, Any] | None:
    """What is kept of the files of a source beside the images prepared from it; None where there are no files.

    Raises:
        DatasetError: a file cannot be read.
    """
    try:
        files = sources.files()
        return record_of(files) if files else None
    except OSError as error:
        raise DatasetError(
            f"a file of {sources.uri} cannot be read: {error}\n  Check the source and its permissions."
        ) from error


def check_content(
    folder: Folder, recorded: dict[str, Any] | None, sources: SplitSources, on_warning: Callable[[str], object]
) -> None:
    """Make sure that source files whose times changed still hold what was prepared.

    A copy has other times and the same bytes. Folders of versions that kept no record are taken as they are.

    Args:
        folder: the prepared split.
        recorded: what was recorded when it was prepared, or None.
        sources: where its images come from.
        on_warning: called with one text where only a sample of the content was compared.

    Raises:
        DatasetError: the content of the source is another one, or cannot be read.
    """
    files = sources.files()
    if recorded is None or not files or stamp_of(files) == recorded["stamp"]:
        return
    found = files_record(sources) or {}
    if (found["content"], found["is_sampled"]) != (recorded["content"], recorded["is_sampled"]):
        raise DatasetError(
            f"{folder} was prepared from other content: the files of {sources.uri} have the same names and sizes, but "
            "were changed since\n"
            "  Bring the old files back, or prepare the new ones in another folder: --work FOLDER."
        )
    if found["is_sampled"]:
        on_warning(
            f"the {sources.split} files of {sources.uri} have other times of writing than when they were prepared; a "
            "sample of their content is the same"
        )


def check_class_lists(root: Folder, begun: Mapping[str, Sequence[str]]) -> None:
    """Make sure that a label means the same class in every split of a folder, whichever version prepared it.

    Args:
        root: holds one folder for each prepared split.
        begun: class names of the splits that are being prepared.

    Raises:
        DatasetError: two splits name other classes, or name them in another order.
    """
    names: dict[str, list[str]] = {}
    for split in SPLITS:
        if split not in begun and root.folder(split).exists(DATASET_FILE):
            names[split] = list(map(str, read_record(root.folder(split)).get("class_names") or []))
    names |= {split: list(found) for split, found in begun.items()}
    first = next(iter(names), "")
    for split, found in names.items():
        if found != names[first]:
            label_map(found, names[first], f"the {split} split in {root}", f"its {first} split")
            raise DatasetError(
                f"the {split} split in {root} counts its classes in another order than its {first} split\n"
                f"  Delete the folder {root.folder(split)} and prepare it again."
            )
