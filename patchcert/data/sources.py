"""Finds the source of a dataset's images and the reader for it."""

from __future__ import annotations

import os

from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import DATA_VARIABLE, Source
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

TORCHVISION = "torchvision"


def source_place(location: str) -> str:
    """One spelling of where a source lies: relative paths and homes in full."""
    return location if _is_download(location) else Folder(location).uri


def _is_download(location: str) -> bool:
    return location == TORCHVISION or location.startswith(f"{TORCHVISION}:")


def open_source(spec: DatasetSpec, location: str | None) -> Source:
    """Find the images of a dataset.

    Args:
        spec: the dataset.
        location: folder or URI, "torchvision" or "torchvision:<folder>"; None: ``$PATCHCERT_DATA/<folder of the
            dataset>``, else embedded images.

    Raises:
        DatasetError: nothing is there, or it is no dataset; the message says what to do.
    """
    # Each kind is imported where it is used, so that no reader is loaded that this dataset does not need.
    if location is not None and _is_download(location):
        from patchcert.data.torchvision_downloads import TorchvisionSource

        return TorchvisionSource(spec, location.removeprefix(TORCHVISION).removeprefix(":") or None)
    if location is not None:
        return _open_folder(spec, Folder(location))
    root = os.environ.get(DATA_VARIABLE)
    for name in spec.source_folders if root else ():
        folder = Folder(root or "").folder(name)
        if folder.exists():
            return _open_folder(spec, folder)
    if spec.embedded:
        from patchcert.data.digits import DigitsSource

        return DigitsSource(spec)
    looked = " or ".join(f"{root}/{name}" for name in spec.source_folders) if root else f"${DATA_VARIABLE} (not set)"
    mends = [
        "--data.source FOLDER, where FOLDER holds <split>-*.parquet or <split>/<class>/<image> "
        f"(splits: {', '.join('/'.join(names) for names in spec.source_splits.values())})"
    ]
    if spec.source_folders:
        mends.append(f"or export {DATA_VARIABLE}=PARENT with that folder at PARENT/{spec.source_folders[0]}")
    if spec.torchvision_class:
        mends.append("or --data.source torchvision, to download it")
    looked = f"looked in {looked}" if spec.source_folders else "no source was given"
    raise DatasetError(f"the images of {spec.name} are missing: {looked}\n  Give " + "\n  ".join(mends))


def _open_folder(spec: DatasetSpec, folder: Folder) -> Source:
    from patchcert.data.archives import ArchiveSource, find_archives
    from patchcert.data.image_folders import FolderSource
    from patchcert.data.parquet_files import ParquetSource, find_parquet

    if not folder.exists():
        raise DatasetError(
            f"the source folder of {spec.name} is missing: {folder}\n  Check data.source, or export {DATA_VARIABLE}."
        )
    if folder.is_file():
        raise DatasetError(f"the source of {spec.name} is a file: {folder}\n  Give the folder it lies in.")
    if found := find_parquet(spec, folder):
        return ParquetSource(spec, *found)
    if archives := find_archives(spec, folder):
        return ArchiveSource(spec, folder, archives)
    if folder.folders():
        return FolderSource(spec, folder)
    also = f", or {' and '.join(spec.source_archives.values())}" if spec.source_archives else ""
    raise DatasetError(
        f"the source folder of {spec.name} holds no images: {folder}\n"
        f"  It needs <split>-*.parquet files, or <split>/<class>/<image>{also}."
    )
