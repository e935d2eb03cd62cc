"""Reads ImageNet's tar archives where they lie; nothing is ever unpacked."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from patchcert.data.ground_truth import GROUND_TRUTH_FILES, find_ground_truth
from patchcert.data.image_folders import DESKTOP_FILES, FILES_AHEAD, FolderSource, class_labels, unknown_class
from patchcert.data.listings import FileStamp, is_text, printable
from patchcert.data.parallel import ordered_map
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import Findings, RowSource, SourceRow, fingerprint
from patchcert.data.source_files import SourceFiles
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

_BLOCK = tarfile.BLOCKSIZE


def find_archives(spec: DatasetSpec, folder: Folder) -> dict[str, dict[str, int]]:
    """The tar files of each source split with their sizes in bytes: one of all images, or one a class.

    Class folders beside an archive win: somebody unpacked it.
    """
    if spec.class_names is None:
        return {}
    found = {}
    files = folder.files()
    for split in (name for names in spec.source_splits.values() for name in names):
        inner = folder.folder(split)
        if inner.folders():
            continue
        name = spec.source_archives.get(split, "")
        class_archives = {f"{split}/{n}": size for n, size in inner.files().items() if n.endswith(".tar")}
        if archives := {name: files[name]} if name in files else class_archives:
            found[split] = archives
    return found


class ArchiveSource:
    """Tar archives as ImageNet is published.

    A training archive holds one tar archive a class, ``<class>.tar``; ``train/<class>.tar`` is read alike. A validation
    archive holds photos without classes, and a list beside it says what is on them. Class folders inside an archive
    are understood, too. Images are named and ordered as if all were unpacked to ``<split>/<class>/<image>``, so that
    both ways prepare the same dataset.
    """

    kind = "archive"

    def __init__(self, spec: DatasetSpec, folder: Folder, archives: dict[str, dict[str, int]]) -> None:
        self._spec = spec
        self._folder = folder
        self._archives = archives
        self._unpacked = FolderSource(spec, folder)
        self._indexed: dict[str, _ArchiveRows] = {}
        self.uri = folder.uri

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return sorted({*self._archives, *self._unpacked.available()})

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None."""
        names = list(names)
        for split in names:
            if split in self._archives:
                # Train and validation share one index, which takes a minute for a million images.
                if split not in self._indexed:
                    self._indexed[split] = _ArchiveRows(self._spec, self._folder, split, self._archives[split])
                return self._indexed[split]
        return self._unpacked.find(names)


class _ArchiveRows:
    """All images of one split, sorted by class folder and name."""

    has_generated_ids = True
    findings = Findings()

    def __init__(self, spec: DatasetSpec, folder: Folder, split: str, archives: dict[str, int]) -> None:
        self._spec = spec
        self._folder = folder
        self._split = split
        self._archives = archives
        self._prefix = f"{spec.name}/{spec.own_split(split)}"
        self.class_names = spec.class_names or ()
        self._ground_truth = find_ground_truth(folder) if spec.own_split(split) != "train" else None
        entries = list(archives.items())
        if self._ground_truth is not None:
            entries.append((self._ground_truth.digest, 0))
        self.fingerprint = fingerprint(entries)

    @property
    def num_rows(self) -> int:
        """Number of images; goes through the archives when first asked."""
        return int(self._index.num_rows)

    def files(self) -> SourceFiles | None:
        """The archives."""
        stamps: dict[str, FileStamp] = {}
        for parent in sorted({name.rpartition("/")[0] for name in self._archives}):
            inner = self._folder.folder(parent) if parent else self._folder
            prefix = f"{parent}/" if parent else ""
            stamps |= {prefix + name: stamp for name, stamp in inner.listing().files.items()}
        return SourceFiles.of(self._folder, {name: stamps[name] for name in self._archives})

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        return pa.array([f"{self._prefix}/{path}" for path in self._index["path"].to_pylist()], pa.string())

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``."""
        return np.asarray(self._index["label"])

    def take(self, rows: np.ndarray) -> _ArchiveRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        taken = copy.copy(self)
        taken.__dict__["_index"] = self._index.take(pa.array(rows)).combine_chunks()
        return taken

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""
        index = self._index.take(pa.array(rows))
        streams = {name: self._folder.open(name, mapped=False) for name in index["archive"].unique().to_pylist()}

        def read_one(entry: dict[str, Any]) -> SourceRow:
            place = f"{self._folder}/{entry['archive']}"
            try:
                data = streams[entry["archive"]].read_at(entry["size"], entry["offset"])
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(f"{place} cannot be read: {error}\n  Check the source.") from error
            if len(data) != entry["size"]:
                raise _cut_off(place, f"{entry['path']} ends after {len(data):,} of {entry['size']:,} bytes")
            image_id = f"{self._prefix}/{entry['path']}"
            return SourceRow(image_id, data, entry["label"], f"{entry['archive']}: {entry['path']}")

        try:
            # Disks and networks serve several reads in the time of one.
            with concurrent.futures.ThreadPoolExecutor(FILES_AHEAD) as pool:
                entries = (entry for batch in index.to_batches(1_024) for entry in batch.to_pylist())
                yield from ordered_map(pool, read_one, entries, FILES_AHEAD)
        finally:
            for stream in streams.values():
                stream.close()

    @functools.cached_property
    def _index(self) -> pa.Table:
        """Where each image lies: path, archive, offset, size (bytes) and label, sorted by path."""
        labels = class_labels(self._spec, self.class_names)
        entries: list[tuple[str, str, int, int]] = []
        flat: list[tuple[str, str, int, int]] = []
        for archive in self._archives:
            for path, offset, size in self._members(archive):
                parts = path.split("/")
                first = next((index for index, part in enumerate(parts) if part in labels), None)
                if first is not None and first < len(parts) - 1:
                    entries.append(("/".join(parts[first:]), archive, offset, size))
                elif len(parts) == 1:
                    flat.append((path, archive, offset, size))
                else:
                    raise unknown_class(f"{self._folder}/{archive}", parts[-2], self._spec, labels)
        if flat:
            entries += self._with_classes(flat, labels)
        entries.sort()
        for (path, *_), (following, *_) in itertools.pairwise(entries):
            if path == following:
                raise DatasetError(f"{self._folder} holds {path} twice in its archives\n  Get the archives again.")
        paths, archives, offsets, sizes = zip(*entries, strict=True) if entries else ((), (), (), ())
        return pa.table(
            {
                "path": pa.array(paths, pa.string()),
                "archive": pa.array(archives, pa.string()).dictionary_encode(),
                "offset": pa.array(offsets, pa.int64()),
                "size": pa.array(sizes, pa.int64()),
                "label": pa.array([labels[path.partition("/")[0]] for path in paths], pa.int64()),
            }
        )

    def _with_classes(
        self, flat: list[tuple[str, str, int, int]], labels: dict[str, int]
    ) -> Iterator[tuple[str, str, int, int]]:
        archive = f"{self._folder}/{flat[0][1]}"
        truth = self._ground_truth
        if truth is None:
            mend = (
                "A training archive holds one tar archive a class: n01440764.tar and so on."
                if self._spec.own_split(self._split) == "train"
                else f"Put a list of their classes beside it: {', '.join(GROUND_TRUTH_FILES)}."
            )
            raise DatasetError(f"{archive} holds {len(flat):,} images without a class, such as {flat[0][0]}\n  {mend}")
        for folder, (path, *entry) in zip(truth.of([path for path, *_ in flat], archive), flat, strict=True):
            if folder not in labels:
                raise unknown_class(truth.place, folder, self._spec, labels)
            yield (f"{folder}/{path}", *entry)  # type: ignore[misc]

    def _members(self, archive: str) -> Iterator[tuple[str, int, int]]:
        """Path, offset and size in bytes of every image file, those of archives in the archive included."""
        place = f"{self._folder}/{archive}"
        class_archives = []
        with self._folder.open(archive, mapped=False) as stream:
            stem = archive.rpartition("/")[2].removesuffix(".tar")
            is_class = archive != self._spec.source_archives.get(self._split)
            for path, offset, size in _walk(_Section(stream, 0, stream.size()), place):
                if path.endswith(".tar"):
                    class_archives.append((path, offset, size))
                else:
                    yield f"{stem}/{path}" if is_class else path, offset, size

            def walk_class(member: tuple[str, int, int]) -> list[tuple[str, int, int]]:
                path, offset, size = member
                name = path.rpartition("/")[2].removesuffix(".tar")
                return [(f"{name}/{p}", o, s) for p, o, s in _walk(_Section(stream, offset, size), f"{place}/{path}")]

            # A distant store answers many small questions at a time.
            with concurrent.futures.ThreadPoolExecutor(1 if self._folder.is_local else FILES_AHEAD) as pool:
                for members in ordered_map(pool, walk_class, class_archives, FILES_AHEAD):
                    yield from members


class _Section:
    """A part of a file, read as a file of its own; several share one open file."""

    def __init__(self, stream: pa.NativeFile, offset: int, size: int) -> None:
        self._stream = stream
        self._offset = offset
        self._position = 0
        self._ahead = (0, b"")
        self.size = size

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, num_bytes: int) -> bytes:
        num_bytes = max(min(num_bytes, self.size - self._position), 0)
        start, data = self._ahead
        first = self._position - start
        if not 0 <= first <= first + num_bytes <= len(data):
            # tarfile looks at the byte before a header, then at the header: one read serves both.
            length = max(min(max(num_bytes, 2 * _BLOCK), self.size - self._position), 0)
            data, first = self._stream.read_at(length, self._offset + self._position), 0
            self._ahead = (self._position, data)
        found = bytes(data[first : first + num_bytes])
        self._position += len(found)
        return found


def _walk(section: _Section, place: str) -> Iterator[tuple[str, int, int]]:
    """Path, offset in the file and size of each plain file of a tar archive, hidden ones left out."""
    try:
        with tarfile.open(fileobj=section, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                # tarfile remembers all members, which nobody asks for here.
                archive.members.clear()
                parts = member.name.split("/")
                if member.name.startswith("/") or ".." in parts or "\0" in member.name:
                    raise DatasetError(
                        f"{place} has the member {member.name!r}, which leaves its folder\n"
                        "  No published archive has one: nothing was read; get the archive again."
                    )
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DatasetError(
                        f"{place} has the member {member.name!r}, which is a link or device and no image file\n"
                        "  Get the archive again, or pack it again from plain files."
                    )
                if not is_text(member.name):
                    raise DatasetError(
                        f"{place} has the member {printable(member.name)}, whose name is no UTF-8 text\n"
                        "  Pack the archive again under another name."
                    )
                parts = [part for part in parts if part != "."]
                if not any(part.startswith(".") for part in parts) and parts[-1] not in DESKTOP_FILES:
                    yield "/".join(parts), section._offset + member.offset_data, member.size
            end = archive.offset
        section.seek(end)
        # tarfile takes a damaged header for the end.
        if section.read(_BLOCK).strip(b"\0"):
            raise _cut_off(place, f"no header at byte {end:,} of {section.size:,}")
    except (tarfile.TarError, pa.ArrowException, OSError, ValueError) as error:
        raise _cut_off(place, str(error)) from error


def _cut_off(place: str, problem: str) -> DatasetError:
    return DatasetError(
        f"{place} is no whole tar archive: {problem}\n  Compare its size and checksum with the published ones."
    )
