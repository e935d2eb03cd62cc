"""Reads folders of prepared images: batches of uint8 pixels with names and labels, checked against their digests."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from patchcert.data.sealed import read_sealed
from patchcert.data.storage import Folder
from patchcert.data.untrusted import ParquetReader, opened_parquet
from patchcert.errors import DatasetError, ResourceError

DATASET_FILE = "dataset.json"
SCHEMA_VERSION = 1
# What records of versions held that gave them no digest of their own.
_UNSEALED = (
    *("schema_version", "name", "variant", "split", "image_size", "num_channels", "num_rows", "digest"),
    *("preprocessing", "storage", "rows_per_group", "num_quarantined", "quarantine_file", "num_converted"),
    *("converted_file", "source", "source_files", "identity", "made_with", "class_names", "images_per_class", "shards"),
)
_READ_ALL_SHARE = 0.8
# Ranges of rows that this process has compared with their digests: (state of the file, first row, number of rows).
_CHECKED: set[tuple[tuple[str | int, ...] | None, int, int]] = set()
_COLUMNS = ["image_id", "label", "image", "row_sha256"]


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Consecutive images of a prepared dataset.

    Attributes:
        image_ids: names, str array of shape (num_images,).
        images_NHWC: uint8 pixels, shape (num_images, height, width, num_channels); the caller owns and may write it.
        labels_N: class indices, int64, shape (num_images,).
    """

    image_ids: np.ndarray
    images_NHWC: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a prepared dataset; all its row groups but the last have ``rows_per_group`` rows.

    Rows have digests of their own; ``frame_sha256`` is that of the rest (``ParquetReader.frame_sha256``), or empty in
    records of versions that noted none.
    """

    file: str
    num_rows: int
    num_row_groups: int
    num_bytes: int
    frame_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """Images of one split at network size; any range of rows can be read alone, from any process.

    Attributes:
        folder: where it lies.
        name: registered name of the dataset.
        variant: edition of its images.
        split: train, validation, test or trainval.
        image_size: (height, width), pixels.
        num_channels: 1 or 3.
        class_names: in label order.
        num_rows: number of images.
        digest: sha256 over names, labels and pixels in order, hex; independent of shards and storage.
        preprocessing: what was done to the pixels, JSON-able.
        storage: "raw" or "encoded".
        rows_per_group: rows of a row group, the least that is read from disk at once.
        shards: the Parquet files, in row order.
        num_quarantined: images set apart as bad, listed in quarantine.parquet.
        identity: everything that decides which pixels are in here, JSON-able.
    """

    folder: Folder
    name: str
    variant: str
    split: str
    image_size: tuple[int, int]
    num_channels: int
    class_names: tuple[str, ...]
    num_rows: int
    digest: str
    preprocessing: dict[str, Any]
    storage: str
    rows_per_group: int
    shards: tuple[Shard, ...]
    num_quarantined: int
    identity: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pixels in memory."""
        return self.num_rows * self._image_bytes

    @property
    def _image_bytes(self) -> int:
        return self.image_size[0] * self.image_size[1] * self.num_channels

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | Folder) -> PreparedDataset:
        """Open one split of a prepared dataset and check that its shards are there, by name and size.

        Args:
            folder: path or URI of the split, ``<prepared folder>/<split>``.

        Raises:
            DatasetError: it is missing, unfinished, damaged or of another format version.
        """
        folder = Folder(folder)
        record = read_record(folder)
        try:
            dataset = cls(
                folder=folder,
                name=record["name"],
                variant=record["variant"],
                split=record["split"],
                image_size=(int(record["image_size"][0]), int(record["image_size"][1])),
                num_channels=int(record["num_channels"]),
                class_names=tuple(record["class_names"]),
                num_rows=int(record["num_rows"]),
                digest=record["digest"],
                preprocessing=dict(record["preprocessing"]),
                storage=record["storage"],
                rows_per_group=int(record["rows_per_group"]),
                shards=tuple(Shard(**shard) for shard in record["shards"]),
                num_quarantined=int(record["num_quarantined"]),
                identity=dict(record["identity"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _damaged(folder, f"{DATASET_FILE} lacks or misstates {error}") from error
        if sum(shard.num_rows for shard in dataset.shards) != dataset.num_rows:
            raise _damaged(folder, f"its shards do not add up to the {dataset.num_rows} rows of {DATASET_FILE}")
        for shard in dataset.shards:
            folder.path(shard.file)
        sizes = folder.files()
        for shard in dataset.shards:
            if sizes.get(shard.file) != shard.num_bytes:
                found = f"{sizes[shard.file]:,} bytes" if shard.file in sizes else "missing"
                raise _damaged(folder, f"{shard.file} is {found}, but must have {shard.num_bytes:,} bytes")
        return dataset

    def parts(self, rows_per_part: int) -> list[tuple[int, int]]:
        """Cut the rows into consecutive ranges (start, stop) of ``rows_per_part`` rows, the last one shorter.

        Raises:
            DatasetError: rows_per_part < 1.
        """
        if rows_per_part < 1:
            raise DatasetError(f"parts of {rows_per_part} rows were asked for\n  Give at least 1.")
        return [(start, min(start + rows_per_part, self.num_rows)) for start in range(0, self.num_rows, rows_per_part)]

    def read(self, start: int, stop: int) -> ImageBatch:
        """Read rows ``start`` to ``stop`` (exclusive), touching only the row groups that hold them.

        Raises:
            DatasetError: the range leaves the dataset, or a shard is damaged.
        """
        self._check_range(start, stop)
        images_NHWC = np.empty((stop - start, *self.image_size, self.num_channels), np.uint8)
        labels_N = np.empty(stop - start, np.int64)
        names: list[str] = []
        for rows, table in self._filled(start, images_NHWC, labels_N):
            names[rows] = table.column("image_id").to_pylist()
        return ImageBatch(image_ids=np.array(names, dtype=str), images_NHWC=images_NHWC, labels_N=labels_N)

    def fill(self, start: int, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
        """Read rows from ``start`` on into arrays that are there already: nothing is copied twice.

        Args:
            start: first row.
            images_NHWC: uint8, shape (num_images, height, width, num_channels), written to; as many rows are read.
            labels_N: int64, shape (num_images,), written to.

        Raises:
            DatasetError: the range leaves the dataset, or a shard is damaged.
        """
        self._check_range(start, start + len(labels_N))
        for _ in self._filled(start, images_NHWC, labels_N):
            pass

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_rows:
            raise DatasetError(
                f"rows {start} to {stop} of {self.folder} were asked for, but it has {self.num_rows}\n"
                "  Ask for 0 <= start <= stop <= num_rows."
            )

    def _filled(
        self, start: int, images_NHWC: np.ndarray, labels_N: np.ndarray, *, trust_checked: bool = True
    ) -> Iterator[tuple[slice, pa.Table]]:
        """Fill the arrays table by table, each row checked; yields which of their rows each table filled.

        Training reads the same rows in every epoch: what this process found right is not checked again until the file
        is another one, or ``trust_checked`` is off.
        """
        row = 0
        for shard, first_row, table in self._tables(start, start + len(labels_N), checks_frames=trust_checked):
            rows = slice(row, row + table.num_rows)
            self._fill(images_NHWC[rows], table.column("image"), shard)
            labels_N[rows] = table.column("label").to_numpy()
            state = self._file_state(shard)
            if not trust_checked or (key := (state, first_row, table.num_rows)) not in _CHECKED:
                self._check_rows(shard, first_row, table, images_NHWC[rows])
                if state is not None and trust_checked:
                    _CHECKED.add(key)
            yield rows, table
            row = rows.stop

    def _file_state(self, shard: Shard) -> tuple[str | int, ...] | None:
        """Changes whenever a shard is written; None where only reading it tells."""
        if not self.folder.is_local:
            return None
        path = self.folder.path(shard.file)
        found = os.stat(path)
        return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _check_rows(self, shard: Shard, first_row: int, table: pa.Table, images_NHWC: np.ndarray) -> None:
        """Compare names, labels and pixels with the digests that were written beside them.

        Raises:
            DatasetError: names the file and the rows that are not what was written.
        """
        columns = (table.column(name).to_pylist() for name in ("image_id", "label", "row_sha256"))
        wrong = [
            (first_row + index, name)
            for index, (name, label, expected) in enumerate(zip(*columns, strict=True))
            if row_digest(name, label, images_NHWC[index].data) != expected
        ]
        if wrong:
            more = f", nor are {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise _damaged(
                self.folder, f"{shard.file}: row {wrong[0][0]} ({wrong[0][1]}) is not what was written{more}"
            )

    def read_all(self) -> ImageBatch:
        """Read every image into memory.

        Raises:
            ResourceError: the pixels would not fit into the memory that is free.
        """
        available = available_memory()
        if self.num_bytes > _READ_ALL_SHARE * available:
            raise ResourceError(
                f"{self.folder} needs {self.num_bytes / 2**30:.1f} GiB of memory, but {available / 2**30:.1f} GiB are "
                "free\n  Read it in parts, or prepare fewer images (data.limit)."
            )
        return self.read(0, self.num_rows)

    def verify(self) -> tuple[np.ndarray, np.ndarray]:
        """Read everything and check every name, label and pixel against the digests, and the record against the rows.

        Returns:
            Names, a str array of shape (num_rows,), and labels, int64 of the same shape.

        Raises:
            DatasetError: rows that changed, named; or a record that tells of other rows.
        """
        hashes = hashlib.sha256(digest_header(self.image_size, self.num_channels))
        images_NHWC = np.empty((self.rows_per_group, *self.image_size, self.num_channels), np.uint8)
        labels_N = np.empty(self.num_rows, np.int64)
        names: list[str] = []
        for start, stop in self.parts(self.rows_per_group):
            for _, table in self._filled(start, images_NHWC[: stop - start], labels_N[start:stop], trust_checked=False):
                hashes.update(b"".join(table.column("row_sha256").to_pylist()))
                names += table.column("image_id").to_pylist()
        if hashes.hexdigest() != self.digest:
            raise _damaged(self.folder, f"its digest is {hashes.hexdigest()}, but {DATASET_FILE} says {self.digest}")
        for shard in self.shards:
            with opened_parquet(self.folder, shard.file) as reader:
                self._check_frame(shard, reader)
        counted = read_record(self.folder).get("images_per_class")
        if counted is not None and counted != np.bincount(labels_N, minlength=self.num_classes).tolist():
            raise _damaged(self.folder, f"{DATASET_FILE} counts other images of each class than its shards hold")
        return np.array(names, dtype=str), labels_N

    def _check_frame(self, shard: Shard, reader: ParquetReader) -> None:
        if shard.frame_sha256 not in ("", reader.frame_sha256):
            raise _damaged(
                self.folder,
                f"{shard.file}: its footer has digest {reader.frame_sha256[:12]}, {DATASET_FILE} says "
                f"{shard.frame_sha256[:12]}",
            )

    def _tables(self, start: int, stop: int, *, checks_frames: bool = True) -> Iterator[tuple[Shard, int, pa.Table]]:
        """The rows of a range, at most one row group at a time: their shard, the first row's number, the rows."""
        first_row = 0
        for shard in self.shards:
            low, high = max(start - first_row, 0), min(stop - first_row, shard.num_rows)
            shard_row, first_row = first_row, first_row + shard.num_rows
            if low >= high:
                continue
            try:
                # Mapping would cost a page fault for every 4 KiB, more than reading and copying them.
                with opened_parquet(self.folder, shard.file, mapped=False) as reader:
                    reader.require(self._column_types())
                    if (reader.num_rows, len(reader.group_rows)) != (shard.num_rows, shard.num_row_groups):
                        raise _damaged(self.folder, f"{shard.file} holds other rows than {DATASET_FILE} lists")
                    for group in range(low // self.rows_per_group, (high - 1) // self.rows_per_group + 1):
                        base = group * self.rows_per_group
                        table = reader.read_group(group, _COLUMNS)
                        first = max(low - base, 0)
                        num_rows = min(high - base, table.num_rows) - first
                        yield shard, shard_row + base + first, table.slice(first, num_rows)
                    # After the rows, whose own digests say more about what is wrong.
                    if checks_frames:
                        self._check_frame(shard, reader)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise _damaged(self.folder, f"{shard.file} cannot be read: {error}") from error

    def _column_types(self) -> dict[str, pa.DataType]:
        image = pa.binary(self._image_bytes) if self.storage == "raw" else pa.binary()
        return {"image_id": pa.string(), "label": pa.int64(), "image": image, "row_sha256": pa.binary(32)}

    def _fill(self, images_NHWC: np.ndarray, column: pa.ChunkedArray, shard: Shard) -> None:
        start = 0
        for chunk in column.chunks:
            stop = start + len(chunk)
            if self.storage == "raw":
                offset, count = chunk.offset * self._image_bytes, len(chunk) * self._image_bytes
                values = np.frombuffer(chunk.buffers()[1], np.uint8, count, offset)
                images_NHWC[start:stop] = values.reshape(len(chunk), *self.image_size, self.num_channels)
            else:
                with concurrent.futures.ThreadPoolExecutor(available_cpus()) as pool:
                    try:
                        for index, image_HWC in enumerate(pool.map(self._decode, chunk)):
                            images_NHWC[start + index] = image_HWC
                    except Exception as error:  # Pillow's decoders raise many types for damaged files
                        raise _damaged(self.folder, f"an image in {shard.file} cannot be decoded: {error}") from error
            start = stop

    def _decode(self, data: pa.Scalar) -> np.ndarray:
        with Image.open(io.BytesIO(data.as_py()), formats=("PNG",)) as image:
            return np.asarray(image).reshape(*self.image_size, self.num_channels)


def read_record(folder: Folder) -> dict[str, Any]:
    """The contents of ``dataset.json``, checked for its version.

    Raises:
        DatasetError: it is missing, damaged or of another version.
    """
    try:
        is_there = folder.exists(DATASET_FILE)
        splits = [] if is_there else [name for name in folder.folders() if folder.folder(name).exists(DATASET_FILE)]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error}\n  Give the folder of a prepared split.") from error
    if not is_there:
        mend = f"Open one of its splits: {', '.join(splits)}." if splits else "Make it first:  patchcert prepare"
        raise DatasetError(f"{folder} is no prepared dataset: it has no {DATASET_FILE}\n  {mend}")
    try:
        record, is_whole = read_sealed(folder, DATASET_FILE, unsealed=_UNSEALED)
        version = record["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, f"{DATASET_FILE} cannot be read: {error}") from error
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{folder} has format version {version}, but this program reads version {SCHEMA_VERSION}\n"
            "  Prepare it again with this program, in another folder."
        )
    if not is_whole:
        raise _damaged(folder, f"{DATASET_FILE} was changed after it was written")
    return record


def digest_header(image_size: tuple[int, int], num_channels: int) -> bytes:
    """What the dataset digest starts with, before the digests of all rows."""
    return f"patchcert images {image_size[0]}x{image_size[1]}x{num_channels}\n".encode()


def row_digest(image_id: str, label: int, pixels: bytes | memoryview) -> bytes:
    """sha256 of one image with its name and label, 32 bytes; pixels have to be contiguous."""
    digest = hashlib.sha256(f"{image_id}\0{label}\n".encode())
    digest.update(pixels)
    return digest.digest()


def available_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory this process can still use, within its control group where there is one."""
    free = []
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            with open("/sys/fs/cgroup/memory.current", encoding="ascii") as used:
                free.append(int(limit.read()) - int(used.read()))
    except (OSError, ValueError, StopIteration):
        pass  # no control group, no limit in it ("max"), or no Linux
    return max(min(free), 0) if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _damaged(folder: Folder, problem: str) -> DatasetError:
    return DatasetError(
        f"the prepared dataset {folder} is damaged: {problem}\n  Delete the folder and prepare it again."
    )
