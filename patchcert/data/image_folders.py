"""Reads folders of image files, one folder for each class."""

from __future__ import annotations

import concurrent.futures
import copy
import difflib
import functools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from patchcert.data.class_names import shown
from patchcert.data.listings import FileStamp, Listing
from patchcert.data.parallel import ordered_map
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import Findings, RowSource, SourceRow, fingerprint
from patchcert.data.source_files import SourceFiles
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

FILES_AHEAD = 8
DESKTOP_FILES = {"Thumbs.db", "desktop.ini"}
# What archivers, file servers and systems leave in folders; never a class.
LEFTOVER_FOLDERS = {
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "lost+found",
}


class FolderSource:
    """Images at ``<split>/<class>/<any path>``; every file that is not hidden has to be an image.

    Class folders are matched to the dataset's classes by name (or by ``folder_names``, WordNet ids for ImageNet). A
    dataset without classes of its own takes them from the class folders of all splits, sorted.
    """

    kind = "folder"

    def __init__(self, spec: DatasetSpec, folder: Folder) -> None:
        self._spec = spec
        self._folder = folder
        self.uri = folder.uri
        self._listed: dict[str, RowSource] = {}

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return self._listing.folders

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None.

        Raises:
            DatasetError: the split is there, but cannot be followed; or it holds a file or folder out of place.
        """
        for split in names:
            if split in self._listing.problems:
                raise DatasetError(
                    f"{self.uri}/{split} cannot be read: {self._listing.problems[split]}\n  Mend or remove it."
                )
            if split in self._splits:
                # Train and validation share one listing, which takes a while for a million files.
                if split not in self._listed:
                    self._listed[split] = _FolderRows(self._spec, self._folder.folder(split), split, self._classes)
                return self._listed[split]
        return None

    @functools.cached_property
    def _listing(self) -> Listing:
        return self._folder.listing()

    @functools.cached_property
    def _splits(self) -> list[str]:
        known = {name for names in self._spec.source_splits.values() for name in names}
        return [name for name in self._listing.folders if name in known]

    @functools.cached_property
    def _classes(self) -> tuple[str, ...]:
        if self._spec.class_names is not None:
            return self._spec.class_names
        found = {name for split in self._splits for name in self._folder.folder(split).folders()}
        names = sorted(found - LEFTOVER_FOLDERS)
        if len(names) < 2:
            raise DatasetError(
                f"{self.uri} has {len(names)} class folders, but at least 2 are needed\n"
                "  Arrange the images as <split>/<class>/<image>."
            )
        return tuple(names)


class _FolderRows:
    """All images of one split, sorted by path."""

    has_generated_ids = True

    def __init__(self, spec: DatasetSpec, folder: Folder, split: str, class_names: tuple[str, ...]) -> None:
        self._folder = folder
        self._split = split
        self._prefix = f"{spec.name}/{spec.own_split(split)}"
        self.class_names = class_names
        self._labels = class_labels(spec, class_names)
        listing = folder.listing(recursive=True)
        stamps = {path: stamp for path, stamp in listing.files.items() if not _is_leftover(path)}
        self._paths = list(stamps)
        self.num_rows = len(stamps)
        self.fingerprint = fingerprint((path, stamp.size) for path, stamp in stamps.items())
        self._files: SourceFiles | None = SourceFiles.of(folder, stamps)
        self._check_classes(spec)
        self.findings = self._find(listing, stamps)

    def _check_classes(self, spec: DatasetSpec) -> None:
        for path in self._paths:
            name, _, rest = path.partition("/")
            if not rest:
                mend = "Move it to <split>/<class>/, or remove it."
                if name.endswith(".parquet"):
                    mend = "Parquet files and class folders cannot be mixed in one split: remove the one or the other."
                raise DatasetError(f"{self._folder}/{path} lies in no class folder\n  {mend}")
            if name not in self._labels:
                raise unknown_class(str(self._folder), name, spec, self._labels)

    def _find(self, listing: Listing, stamps: dict[str, FileStamp]) -> Findings:
        left_out: dict[str, str] = {}
        for name in sorted(LEFTOVER_FOLDERS & set(listing.folders)):
            num_files = sum(path.startswith(f"{name}/") for path in listing.files)
            left_out[f"{self._split}/{name}"] = f"a folder that other programs leave behind, {num_files} files"
        filled = {path.partition("/")[0] for path in self._paths}
        return Findings(
            problems={
                f"{self._split}/{name}": problem for name, problem in listing.problems.items() if not _is_leftover(name)
            },
            left_out=left_out,
            empty_classes=tuple(
                name for name in listing.folders if name in self._labels and name not in filled | LEFTOVER_FOLDERS
            ),
            places=frozenset(listing.places),
            files_N2=np.array([(stamp.device, stamp.inode) for stamp in stamps.values()], np.uint64).reshape(-1, 2)
            if self._folder.is_local
            else None,
        )

    def files(self) -> SourceFiles | None:
        """The files that hold the images."""
        return self._files

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        return pa.array([f"{self._prefix}/{path}" for path in self._paths], pa.string())

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""
        # Opening a file waits for the disk or the network, so several are read at a time.
        with concurrent.futures.ThreadPoolExecutor(FILES_AHEAD) as pool:
            yield from ordered_map(pool, self._read_file, (self._paths[row] for row in rows.tolist()), FILES_AHEAD)

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``."""
        return np.array([self._labels[path.partition("/")[0]] for path in self._paths], np.int64)

    def take(self, rows: np.ndarray) -> _FolderRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        taken = copy.copy(self)
        taken._paths = [self._paths[row] for row in rows.tolist()]
        taken.num_rows = len(rows)
        taken._files, taken.findings = None, Findings()
        return taken

    def _read_file(self, path: str) -> SourceRow:
        try:
            data = self._folder.read(path)
        except OSError as error:
            raise DatasetError(f"{self._folder}/{path} cannot be read: {error}\n  Check the source.") from error
        label = self._labels[path.partition("/")[0]]
        return SourceRow(f"{self._prefix}/{path}", data, label, f"{self._split}/{path}")


def _is_leftover(path: str) -> bool:
    *folders, name = path.split("/")
    return name in DESKTOP_FILES or not LEFTOVER_FOLDERS.isdisjoint(folders)


def class_labels(spec: DatasetSpec, class_names: tuple[str, ...]) -> dict[str, int]:
    """Labels by everything that a class folder may be called."""
    return {name: label for names in (class_names, spec.folder_names or ()) for label, name in enumerate(names)}


def unknown_class(place: str, name: str, spec: DatasetSpec, labels: dict[str, int]) -> DatasetError:
    """The message for a class folder that is none."""
    nearest = difflib.get_close_matches(name, labels, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}?  " if nearest else ""
    return DatasetError(
        f"{place} has the class folder {shown(name)}, which is no class of {spec.name}\n"
        f"  {hint}Its {len(set(labels.values()))} classes start with: {', '.join(list(labels)[:10])}."
    )
