"""Reads Parquet files in the layout of public hubs."""

from __future__ import annotations

import bisect
import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchcert.data.class_names import check_class_names, label_map
from patchcert.data.listings import FileStamp, printable
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import Findings, RowSource, SourceRow, TakenRows, fingerprint
from patchcert.data.source_files import SourceFiles
from patchcert.data.storage import Folder
from patchcert.data.untrusted import FileProblem, opened_parquet, parsed_json
from patchcert.errors import DatasetError

_IMAGE_COLUMNS = ("image", "img")


def find_parquet(spec: DatasetSpec, folder: Folder) -> tuple[Folder, dict[str, FileStamp]] | None:
    """The folder itself or its ``data/`` (as hubs lay it out) with the Parquet files of splits in it, or None."""
    known = {name for names in spec.source_splits.values() for name in names}
    others = None
    for candidate in (folder, folder.folder("data")):
        listing = candidate.listing()
        stamps = {name: stamp for name, stamp in listing.files.items() if name.endswith(".parquet")}
        for split in known & set(listing.folders):
            inner = candidate.folder(split).listing()
            stamps |= {f"{split}/{name}": s for name, s in inner.files.items() if name.endswith(".parquet")}
        if any(_split_of(name) in known for name in stamps):
            return candidate, stamps
        others = others or ((candidate, stamps) if stamps and not known & set(listing.folders) else None)
    return others


def _split_of(name: str) -> str:
    """The split of ``<split>-*.parquet``, ``<split>.parquet`` or ``<split>/*.parquet``."""
    return re.split(r"/|-|\.parquet$", name)[0]


class ParquetSource:
    """Files ``<split>-*.parquet``, ``<split>.parquet`` or ``<split>/*.parquet`` with images and integer labels.

    The image column is ``image`` (or ``img``): a struct with ``bytes``, or plain binary; the labels are in ``label``.
    An ``image_id`` column is used where there is one; otherwise an image is named by its split and row, counted through
    the sorted files. Where files name their classes, labels are compared by name.
    """

    kind = "parquet"

    def __init__(self, spec: DatasetSpec, folder: Folder, stamps: dict[str, FileStamp]) -> None:
        self.spec = spec
        self.folder = folder
        self.uri = folder.uri
        self._stamps = stamps
        self._found: dict[str, RowSource] = {}

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return sorted(set(map(_split_of, self._stamps)))

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None.

        Raises:
            DatasetError: files are missing, unreadable, of another layout, or name other classes than the rest.
        """
        for split in names:
            if files := self._files_of(split):
                if split not in self._found:
                    self._check_complete(split, files)
                    stamps = {name: self._stamps[name] for name in files}
                    self._found[split] = _ParquetRows(self, split, stamps)
                return self._found[split]
        return None

    def _files_of(self, split: str) -> list[str]:
        return [name for name in sorted(self._stamps) if _split_of(name) == split]

    @functools.cached_property
    def classes(self) -> tuple[tuple[str, ...], str]:
        """Class names in label order and what says so: the dataset, else the first file of the first split."""
        if self.spec.class_names is not None:
            return self.spec.class_names, f"the dataset {self.spec.name}"
        splits = [name for names in self.spec.source_splits.values() for name in names]
        first = next(files[0] for split in splits if (files := self._files_of(split)))
        names = inspect_file(self.folder, first).class_names
        if names is None:
            raise DatasetError(
                f"{self.folder}/{first} does not name its classes\n"
                "  Give their names in the order of the labels, such as --data.class-names ant bee cow. From Python, "
                "the dataset can be registered instead: patchcert.data.register_dataset."
            )
        check_class_names(names, f"{self.folder}/{first}")
        return names, first

    def _check_complete(self, split: str, files: list[str]) -> None:
        folders = {name.rpartition("/")[0] for name in files}
        numbered = [match for name in files if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", name))]
        totals = {int(match[2]) for match in numbered}
        if len(totals) > 1 or len(folders) > 1:
            raise DatasetError(
                f"{self.uri} mixes files of different downloads: {', '.join(files[:6])}\n  Keep one of them."
            )
        class_folders = self.folder.folder(split).folders()
        if class_folders:
            raise DatasetError(
                f"{self.uri} holds its {split} images twice: {files[0]}, and the folder {split}/{class_folders[0]}\n"
                "  Keep either the Parquet files or the class folders."
            )
        missing = set(range(max(totals, default=0))) - {int(match[1]) for match in numbered}
        if missing:
            raise DatasetError(
                f"{self.uri} has {len(numbered)} of {max(totals)} files {files[0].split('-')[0]}-*: missing "
                f"{', '.join(f'{index:05d}' for index in sorted(missing)[:8])}\n  Download the missing files."
            )


@dataclass(frozen=True)
class ParquetFile:
    """What the footer of a file of images says.

    Attributes:
        name: inside its folder.
        group_rows: rows of each row group.
        image_column: where the images are.
        has_bytes_struct: whether that is a struct with ``bytes``.
        has_paths: whether the struct also has a ``path``.
        has_ids: whether there is a column image_id.
        class_names: in label order; None: the file does not say.
    """

    name: str
    group_rows: tuple[int, ...]
    image_column: str
    has_bytes_struct: bool
    has_paths: bool
    has_ids: bool
    class_names: tuple[str, ...] | None

    @property
    def num_rows(self) -> int:
        """Number of images."""
        return sum(self.group_rows)


def inspect_file(folder: Folder, name: str) -> ParquetFile:
    """Read the footer of a file of images.

    Raises:
        DatasetError: it cannot be read, or has not the columns it needs.
    """
    with readable(folder, name), opened_parquet(folder, name) as reader:
        schema, group_rows = reader.schema, reader.group_rows
        if reader.num_rows > reader.num_bytes:
            raise FileProblem(f"its {reader.num_bytes:,} bytes cannot hold the {reader.num_rows:,} images it claims")
    image = next((column for column in _IMAGE_COLUMNS if column in schema.names), None)
    wrong = f"{folder}/{name} has the columns {', '.join(f'{f.name}: {f.type}' for f in schema)}"
    if image is None or "label" not in schema.names:
        raise DatasetError(f"{wrong}\n  It needs image (struct with bytes, or binary) and label (integer).")
    image_type = schema.field(image).type
    is_struct = pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0
    if not _is_binary(image_type.field("bytes").type if is_struct else image_type):
        raise DatasetError(f"{wrong}\n  Its column {image} must be a struct with bytes, or binary.")
    if not pa.types.is_integer(schema.field("label").type):
        raise DatasetError(f"{wrong}\n  Its column label must hold integers, the class indices.")
    has_ids = "image_id" in schema.names
    if has_ids and not _is_name(schema.field("image_id").type):
        raise DatasetError(f"{wrong}\n  Its column image_id must hold text or integers, the names of the images.")
    return ParquetFile(
        name=name,
        group_rows=group_rows,
        image_column=image,
        has_bytes_struct=is_struct,
        has_paths=is_struct and image_type.get_field_index("path") >= 0,
        has_ids=has_ids,
        class_names=_hub_class_names(reader.key_values),
    )


def _hub_class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """The names that hubs write beside the columns, in label order; None if there are none."""
    try:
        names = parsed_json(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):  # as dataset cards list them: the label as text, and its name
        names = [names[label] for label in sorted(names, key=lambda label: int(label) if label.isdigit() else -1)]
    return tuple(map(str, names)) if isinstance(names, list) and names else None


class _ParquetRows:
    """All images of one split, in the order of the sorted files."""

    findings = Findings()

    def __init__(self, source: ParquetSource, split: str, stamps: dict[str, FileStamp]) -> None:
        spec, folder = source.spec, source.folder
        self._folder = folder
        self._prefix = f"{spec.name}/{spec.own_split(split)}"
        self.class_names, named_by = source.classes
        self._parts: list[ParquetFile] = []
        self._label_maps: list[np.ndarray | None] = []
        self._first_rows: list[int] = []
        self.num_rows = 0
        for name in stamps:
            file = inspect_file(folder, name)
            self._parts.append(file)
            self._label_maps.append(self._label_map(spec, file, named_by))
            self._first_rows.append(self.num_rows)
            self.num_rows += file.num_rows
        if len({file.has_ids for file in self._parts}) > 1:
            raise DatasetError(
                f"only some of the {split} files in {folder} have a column image_id\n  Add it to all, or drop it."
            )
        self.has_generated_ids = not self._parts[0].has_ids
        self.fingerprint = fingerprint((name, stamp.size) for name, stamp in stamps.items())
        self._files = SourceFiles.of(folder, stamps)

    def _label_map(self, spec: DatasetSpec, file: ParquetFile, named_by: str) -> np.ndarray | None:
        if file.class_names is not None:
            place = f"{self._folder}/{file.name}"
            return label_map(file.class_names, self.class_names, place, named_by, spec.folder_names)
        if spec.class_names is None:
            raise DatasetError(
                f"{self._folder}/{file.name} does not name its classes, but {named_by} does\n"
                "  Give their names in the order of its labels: --data.class-names ant bee cow."
            )
        return None

    def files(self) -> SourceFiles:
        """The files that hold the images."""
        return self._files

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        if self.has_generated_ids:
            return pa.array([self._generated_id(row) for row in range(self.num_rows)], pa.string())
        parts = []
        for file in self._parts:
            column = self._column(file, "image_id").cast(pa.string())
            with readable(self._folder, file.name):
                column.validate(full=True)  # names that are no UTF-8 text
            parts.append(column)
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).combine_chunks()

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``; -1 where there is none."""
        parts = [np.empty(0, np.int64)]
        for file, translation in zip(self._parts, self._label_maps, strict=True):
            labels_N = pc.fill_null(self._column(file, "label").cast(pa.int64()), -1).to_numpy()
            parts.append(_translated(labels_N, translation))
        return np.concatenate(parts)

    def _column(self, file: ParquetFile, column: str) -> pa.ChunkedArray:
        with readable(self._folder, file.name), opened_parquet(self._folder, file.name) as reader:
            return reader.read([column]).column(0)

    def _generated_id(self, row: int) -> str:
        return f"{self._prefix}/{row:06d}"

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""
        done = 0
        while done < len(rows):
            index = bisect.bisect_right(self._first_rows, int(rows[done])) - 1
            first_row = self._first_rows[index]
            end = int(np.searchsorted(rows, first_row + self._parts[index].num_rows))
            yield from self._read_file(index, rows[done:end] - first_row)
            done = end

    def take(self, rows: np.ndarray) -> TakenRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        return TakenRows(self, rows)

    def _read_file(self, index: int, rows: np.ndarray) -> Iterator[SourceRow]:
        file = self._parts[index]
        bounds = np.concatenate([[0], np.cumsum(file.group_rows)])
        groups = np.flatnonzero(np.diff(np.searchsorted(rows, bounds)))
        columns = [f"{file.image_column}.bytes" if file.has_bytes_struct else file.image_column, "label"]
        columns += [f"{file.image_column}.path"] if file.has_paths else []
        columns += ["image_id"] if file.has_ids else []
        with readable(self._folder, file.name), opened_parquet(self._folder, file.name) as reader:
            for group in groups.tolist():
                start = int(bounds[group])
                for batch in reader.batches(columns, groups=[group]):
                    first, last = np.searchsorted(rows, (start, start + batch.num_rows))
                    if first < last:
                        yield from self._rows_of(index, batch, start, rows[first:last] - start)
                    start += batch.num_rows

    def _rows_of(self, index: int, batch: Any, start: int, picked: np.ndarray) -> Iterator[SourceRow]:
        file = self._parts[index]
        labels_N = _translated(
            pc.fill_null(batch.column("label").cast(pa.int64()), -1).to_numpy(), self._label_maps[index]
        )
        has_label = batch.column("label").is_valid().to_pylist()
        images = batch.column(file.image_column)
        paths = None
        if file.has_bytes_struct:
            images, paths = (
                pc.struct_field(images, "bytes"),
                pc.struct_field(images, "path") if file.has_paths else None,
            )
        ids = batch.column("image_id") if file.has_ids else None
        # Row by row: not every binary type can be taken from by position.
        for row in picked.tolist():
            data = images[row].as_py()
            path = None if data or paths is None else paths[row].as_py()
            yield SourceRow(
                image_id=self._generated_id(self._first_rows[index] + start + row) if ids is None else str(ids[row]),
                data=data,
                label=int(labels_N[row]) if has_label[row] else None,
                place=f"{file.name} row {start + row}",
                problem=None if path is None else f"it has no bytes, only the path {printable(str(path))!r} of a file",
            )


def _translated(labels_N: np.ndarray, translation: np.ndarray | None) -> np.ndarray:
    """Labels in the dataset's order of classes; what is no label of the file stays as it is."""
    if translation is None:
        return labels_N
    is_label_N = (labels_N >= 0) & (labels_N < len(translation))
    return np.where(is_label_N, translation[np.where(is_label_N, labels_N, 0)], labels_N)


def _is_name(data_type: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return any(is_kind(data_type) for is_kind in kinds)


def _is_binary(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
        or pa.types.is_binary_view(data_type)
    )


@contextlib.contextmanager
def readable(folder: Folder, name: str) -> Iterator[None]:
    """Turn pyarrow's complaint about a damaged file into one that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(
            f"{folder}/{name} is no readable Parquet file: {error}\n  Download or make this file again."
        ) from error
