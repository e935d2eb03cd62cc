"""Parquet files in the layout of public hubs in, labelled encoded images out."""

from __future__ import annotations

import bisect
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import RowSource, SourceRow, TakenRows, fingerprint
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

_IMAGE_COLUMNS = ("image", "img")
_BATCH_ROWS = 32


def find_parquet(folder: Folder) -> tuple[Folder, dict[str, int]] | None:
    """The folder itself or its ``data/`` (as hubs lay it out) with the Parquet files in it, or None."""
    for candidate in (folder, folder.folder("data")):
        files = {name: size for name, size in candidate.files().items() if name.endswith(".parquet")}
        if files:
            return candidate, files
    return None


class ParquetSource:
    """Files ``<split>-*.parquet`` or ``<split>.parquet`` with an image column and an integer ``label`` column.

    The image column is ``image`` (or ``img``): a struct with ``bytes``, or plain binary. An ``image_id`` column is
    used where there is one; otherwise an image is named by its split and row, counted through the sorted files.
    """

    kind = "parquet"

    def __init__(self, spec: DatasetSpec, folder: Folder, files: dict[str, int]) -> None:
        self.spec = spec
        self.folder = folder
        self.uri = folder.uri
        self._files = files

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return sorted({re.split(r"-|\.parquet$", name)[0] for name in self._files})

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None."""
        for split in names:
            files = [n for n in sorted(self._files) if n == f"{split}.parquet" or n.startswith(f"{split}-")]
            if files:
                self._check_complete(files)
                return _ParquetRows(self.spec, self.folder, split, {name: self._files[name] for name in files})
        return None

    def _check_complete(self, files: list[str]) -> None:
        numbered = [match for name in files if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", name))]
        totals = {int(match[2]) for match in numbered}
        if len(totals) > 1:
            raise DatasetError(
                f"{self.uri} mixes files of different downloads: {', '.join(files[:6])}\n  Keep one of them."
            )
        missing = set(range(max(totals, default=0))) - {int(match[1]) for match in numbered}
        if missing:
            raise DatasetError(
                f"{self.uri} has {len(numbered)} of {max(totals)} files {files[0].split('-')[0]}-*: missing "
                f"{', '.join(f'{index:05d}' for index in sorted(missing)[:8])}\n  Download the missing files."
            )


@dataclass(frozen=True)
class _File:
    name: str
    first_row: int
    group_rows: tuple[int, ...]
    image_column: str
    has_path_struct: bool
    has_ids: bool
    metadata: dict[bytes, bytes]


class _ParquetRows:
    """All images of one split, in the order of the sorted files."""

    def __init__(self, spec: DatasetSpec, folder: Folder, split: str, files: dict[str, int]) -> None:
        self._folder = folder
        self._prefix = f"{spec.name}/{spec.own_split(split)}"
        self._files: list[_File] = []
        self.num_rows = 0
        for name in files:
            file = self._inspect(name)
            self._files.append(file)
            self.num_rows += sum(file.group_rows)
        if len({file.has_ids for file in self._files}) > 1:
            raise DatasetError(
                f"only some of the {split} files in {folder} have a column image_id\n  Add it to all, or drop it."
            )
        self.has_generated_ids = not self._files[0].has_ids
        self.fingerprint = fingerprint(files.items())
        self.class_names = spec.class_names or self._hub_class_names()

    def _inspect(self, name: str) -> _File:
        with self._folder.open(name) as stream, _readable(self._folder, name):
            parquet = pq.ParquetFile(stream)
            schema = parquet.schema_arrow
            metadata = parquet.metadata
            group_rows = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
        image = next((column for column in _IMAGE_COLUMNS if column in schema.names), None)
        wrong = f"{self._folder}/{name} has the columns {', '.join(f'{f.name}: {f.type}' for f in schema)}"
        if image is None or "label" not in schema.names:
            raise DatasetError(f"{wrong}\n  It needs image (struct with bytes, or binary) and label (integer).")
        image_type = schema.field(image).type
        is_struct = pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0
        if not _is_binary(image_type.field("bytes").type if is_struct else image_type):
            raise DatasetError(f"{wrong}\n  Its column {image} must be a struct with bytes, or binary.")
        if not pa.types.is_integer(schema.field("label").type):
            raise DatasetError(f"{wrong}\n  Its column label must hold integers, the class indices.")
        return _File(
            name=name,
            first_row=self.num_rows,
            group_rows=group_rows,
            image_column=image,
            has_path_struct=is_struct,
            has_ids="image_id" in schema.names,
            # Only the first file's is looked at, and this record travels to other processes.
            metadata={} if self._files else dict(schema.metadata or {}),
        )

    def _hub_class_names(self) -> tuple[str, ...]:
        try:
            features = json.loads(self._files[0].metadata[b"huggingface"])["info"]["features"]
            names = features["label"]["names"]
        except (KeyError, TypeError, ValueError):
            raise DatasetError(
                f"{self._folder}/{self._files[0].name} does not name its classes\n"
                "  Register the dataset: patchcert.data.register_dataset(DatasetSpec(name=..., class_names=(...)))."
            ) from None
        return tuple(str(name) for name in names)

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        if self.has_generated_ids:
            return pa.array([self._generated_id(row) for row in range(self.num_rows)], pa.string())
        parts = []
        for file in self._files:
            with self._folder.open(file.name) as stream, _readable(self._folder, file.name):
                parts.append(pq.ParquetFile(stream).read(columns=["image_id"]).column(0).cast(pa.string()))
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()).combine_chunks()

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``; -1 where there is none."""
        parts = [np.empty(0, np.int64)]
        for file in self._files:
            with self._folder.open(file.name) as stream, _readable(self._folder, file.name):
                column = pq.ParquetFile(stream).read(columns=["label"]).column(0)
            parts.append(pc.fill_null(column.cast(pa.int64()), -1).to_numpy())
        return np.concatenate(parts)

    def _generated_id(self, row: int) -> str:
        return f"{self._prefix}/{row:06d}"

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""
        starts = [file.first_row for file in self._files]
        done = 0
        while done < len(rows):
            file = self._files[bisect.bisect_right(starts, int(rows[done])) - 1]
            end = int(np.searchsorted(rows, file.first_row + sum(file.group_rows)))
            yield from self._read_file(file, rows[done:end] - file.first_row)
            done = end

    def take(self, rows: np.ndarray) -> TakenRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        return TakenRows(self, rows)

    def _read_file(self, file: _File, rows: np.ndarray) -> Iterator[SourceRow]:
        bounds = np.concatenate([[0], np.cumsum(file.group_rows)])
        groups = np.flatnonzero(np.diff(np.searchsorted(rows, bounds)))
        columns = [f"{file.image_column}.bytes" if file.has_path_struct else file.image_column, "label"]
        columns += ["image_id"] if file.has_ids else []
        with self._folder.open(file.name) as stream, _readable(self._folder, file.name):
            parquet = pq.ParquetFile(stream)
            for group in groups.tolist():
                start = int(bounds[group])
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    first, last = np.searchsorted(rows, (start, start + batch.num_rows))
                    if first < last:
                        yield from self._rows_of(file, batch, start, rows[first:last] - start)
                    start += batch.num_rows

    def _rows_of(self, file: _File, batch: Any, start: int, picked: np.ndarray) -> Iterator[SourceRow]:
        batch = batch.take(pa.array(picked))
        images = batch.column(file.image_column)
        if file.has_path_struct:
            images = pc.struct_field(images, "bytes")
        labels = batch.column("label").to_pylist()
        ids = batch.column("image_id").to_pylist() if file.has_ids else [None] * len(labels)
        for index, row in enumerate((picked + start).tolist()):
            yield SourceRow(
                image_id=str(ids[index]) if file.has_ids else self._generated_id(file.first_row + row),
                data=images[index].as_py(),
                label=labels[index],
                place=f"{file.name} row {row}",
            )


def _is_binary(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
        or pa.types.is_binary_view(data_type)
    )


@contextlib.contextmanager
def _readable(folder: Folder, name: str) -> Iterator[None]:
    """Turn pyarrow's complaint about a damaged file into one that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{folder}/{name} is no readable Parquet file: {error}\n  Download or make this file again."
        ) from error
