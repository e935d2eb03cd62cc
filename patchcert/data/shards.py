"""Some rows of a source in, one Parquet file of prepared images out: what is spread over threads and machines."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchcert.data.decoding import Preprocessing, encode_png, quiet_decoder
from patchcert.data.parallel import ordered_map
from patchcert.data.prepared import Shard, row_digest
from patchcert.data.registry import DatasetSpec, dataset_names, dataset_spec
from patchcert.data.rows import SourceRow
from patchcert.data.splits import TakenSplitRows
from patchcert.data.storage import Folder, remove_unfinished
from patchcert.data.untrusted import opened_parquet, parsed_json
from patchcert.errors import DatasetError, ImageError, ResourceError
from patchcert.interruption import blocked

_SHARD_KEY = b"patchcert.shard"
# What a decoding thread gets at a time: enough rows to outweigh the hand-over, few enough bytes to keep memory flat.
_BATCH_ROWS = 32
_BATCH_BYTES = 4 * 2**20
_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Everything that making one shard takes, picklable.

    Attributes:
        folder: of the prepared split.
        file: name of the shard.
        token: written into it; tells whether it is the shard that would be made now.
        rows: the images.
        spec: the dataset.
        num_classes: labels are 0 to ``num_classes - 1``.
        split: name of the split, for messages.
        source_uri: where the images come from, for messages.
        preprocessing: what is done to each.
        storage: "raw" or "encoded".
        on_bad_image: "error" or "quarantine".
        rows_per_group: rows of a Parquet row group.
    """

    folder: Folder
    file: str
    token: str
    rows: TakenSplitRows
    spec: DatasetSpec
    num_classes: int
    split: str
    source_uri: str
    preprocessing: Preprocessing
    storage: Literal["raw", "encoded"]
    on_bad_image: Literal["error", "quarantine"]
    rows_per_group: int

    def run(self, pool: concurrent.futures.Executor, num_threads: int) -> Iterator[int]:
        """Decode the images and write the shard, whole or not at all.

        Args:
            pool: decodes.
            num_threads: threads in it.

        Yields:
            Numbers of images done since the last one.

        Raises:
            ImageError: bad images, named with their rows, unless they are to be quarantined.
            DatasetError: the source is damaged, or another variant than the one asked for.
            ResourceError: the disk is full or the folder read-only.
        """
        bad: list[_Prepared] = []
        good: list[_Prepared] = []
        converted: list[dict[str, Any]] = []
        schema = _shard_schema(self)
        decode = functools.partial(_decode_rows, self)
        batches = ordered_map(pool, decode, _batches(self.rows.read()), num_threads + 2)
        with quiet_decoder(), contextlib.closing(batches), self.folder.writer(self.file) as sink:
            # Statistics would copy whole images into the footer, and hold bytes that no digest covers.
            writer = pq.ParquetWriter(
                sink,
                schema,
                compression={"image_id": "zstd", "label": "zstd", "image": "none", "row_sha256": "none"},
                use_dictionary=False,
                write_statistics=False,
            )
            with contextlib.closing(writer):
                for image in itertools.chain.from_iterable(batches):
                    (good if image.problem is None else bad).append(image)
                    if image.conversion is not None:
                        converted.append(_listed(image.row, conversion=image.conversion))
                    if len(good) == self.rows_per_group:
                        writer.write_table(_table(schema, good), row_group_size=self.rows_per_group)
                        yield len(good)
                        good = []
                if bad and self.on_bad_image == "error":
                    raise _bad_images(self, bad)
                if good:
                    writer.write_table(_table(schema, good), row_group_size=self.rows_per_group)
                quarantined = [_listed(image.row, reason=image.problem) for image in bad]
                note = {"token": self.token, "quarantined": quarantined, "converted": converted}
                writer.add_key_value_metadata({_SHARD_KEY: json.dumps(note, ensure_ascii=False).encode()})
        yield len(good) + len(bad)


Spread = Callable[[Iterator[ShardTask], int], Iterator[int]]
"""Makes shards: (tasks, how many) -> numbers of images done since the last one; raises what the first bad task did."""


def in_threads(num_threads: int) -> Spread:
    """Make one shard after the other with the threads of this process.

    Args:
        num_threads: decoding threads, >= 1.
    """

    def spread(tasks: Iterator[ShardTask], num_tasks: int) -> Iterator[int]:
        pool = concurrent.futures.ThreadPoolExecutor(num_threads)
        try:
            for task in tasks:
                yield from task.run(pool, num_threads)
        finally:
            pool.shutdown(cancel_futures=True)

    return spread


def in_processes(num_processes: int) -> Spread:
    """Make as many shards at a time as there are processes, each with one decoding thread; one shard needs none.

    Threads share one interpreter, which a few of them keep busy; processes share nothing but the disk. A script that
    asks for them needs the usual ``if __name__ == "__main__"`` guard.

    Args:
        num_processes: processes on this machine, >= 1.

    Raises:
        ResourceError: (by the spread) a process was killed.
    """

    def spread(tasks: Iterator[ShardTask], num_tasks: int) -> Iterator[int]:
        count = min(num_processes, num_tasks)
        if count <= 1:
            yield from in_threads(num_processes)(tasks, num_tasks)
            return
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
        try:
            others = set(multiprocessing.active_children())
            with blocked():
                # The first task starts all processes, which leave signals to this one from their first moment on.
                pool.submit(_nothing)
            try:
                yield from ordered_map(pool, make_shard, tasks, 2 * count)
            except (KeyboardInterrupt, GeneratorExit):
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
        except concurrent.futures.process.BrokenProcessPool:
            raise ResourceError(
                f"one of {count} preparing processes was killed, perhaps for want of memory\n"
                "  The same command continues; with fewer processes it needs less memory."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    return spread


def make_shard(task: ShardTask) -> int:
    """Make one shard in a process of its own; returns how many images it took."""
    return sum(in_threads(1)(iter([task]), 1))


def _nothing() -> None:
    """The first task of every pool."""


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for its next task for ever; Ctrl-C is the parent's business.

    When the parent asks, what is being written is removed and the process ends.
    """
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stop(*_: Any) -> None:
    # An exception raised at any moment can leave a lock of Python's imports taken, and the process waits for ever.
    remove_unfinished()
    os._exit(1)


class _Prepared(NamedTuple):
    """One image, ready to be written, or the reason why it cannot be."""

    row: SourceRow
    data: bytes
    digest: bytes
    problem: str | None
    conversion: str | None


def _batches(rows: Iterator[SourceRow]) -> Iterator[list[SourceRow]]:
    batch: list[SourceRow] = []
    num_bytes = 0
    for row in rows:
        batch.append(row)
        num_bytes += len(row.data or b"")
        if len(batch) >= _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _decode_rows(task: ShardTask, rows: list[SourceRow]) -> list[_Prepared]:
    decoded = []
    for row in rows:
        try:
            if row.problem is not None:
                raise ImageError(row.problem)
            if row.label is None or not 0 <= row.label < task.num_classes:
                raise ImageError(
                    f"its label is {row.label}, but {task.spec.name} has classes 0 to {task.num_classes - 1}"
                )
            pixels, conversion = task.preprocessing.convert(row.data, row.image_id)
        except ImageError as error:
            decoded.append(_Prepared(row._replace(data=None), b"", b"", str(error), None))
            continue
        except DatasetError as error:
            raise DatasetError(
                f"{error}: {row.place} of {task.source_uri}\n"
                f"  Ask for {_other_variant(task.spec)}, or give another source."
            ) from error
        digest = row_digest(row.image_id, row.label, pixels)
        if task.storage == "encoded":
            pixels = encode_png(pixels, task.preprocessing.image_size, task.preprocessing.num_channels)
        decoded.append(_Prepared(row._replace(data=None), pixels, digest, None, conversion))
    return decoded


def _other_variant(spec: DatasetSpec) -> str:
    for other in map(dataset_spec, dataset_names()):
        if other.encoding not in (None, spec.encoding) and other.class_names == spec.class_names:
            return f"dataset {other.name}"
    return "a dataset registered for such files"


def _listed(row: SourceRow, **what: str | None) -> dict[str, Any]:
    return {"image_id": row.image_id, "place": row.place, "label": row.label, **what}


def _shard_schema(task: ShardTask) -> pa.Schema:
    image_type = pa.binary(task.preprocessing.num_bytes) if task.storage == "raw" else pa.binary()
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("image", image_type, nullable=False),
            pa.field("row_sha256", pa.binary(32), nullable=False),
        ]
    )


def _table(schema: pa.Schema, images: Iterable[_Prepared]) -> pa.Table:
    images = list(images)
    columns = [
        pa.array([image.row.image_id for image in images], pa.string()),
        pa.array([image.row.label for image in images], pa.int64()),
        pa.array([image.data for image in images], schema.field("image").type),
        pa.array([image.digest for image in images], pa.binary(32)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _bad_images(task: ShardTask, bad: list[_Prepared]) -> ImageError:
    lines = [f"{image.row.image_id} ({image.row.place}): {image.problem}" for image in bad[:_MOST_NAMED]]
    more = f"\n  and {len(bad) - _MOST_NAMED} more in the same shard" if len(bad) > _MOST_NAMED else ""
    return ImageError(
        f"{len(bad)} bad image{'s' if len(bad) > 1 else ''} in the {task.split} split of {task.spec.name}, "
        f"{task.source_uri}:\n  " + "\n  ".join(lines) + more + "\n  Mend or remove them at the source, or set "
        "data.on_bad_image to quarantine: they are then set apart, counted and listed."
    )


def shard_note(folder: Folder, file: str, token: str) -> dict[str, Any] | None:
    """What the footer of a finished shard says, with its size; None if it is missing, damaged or another one.

    Args:
        folder: of the prepared split.
        file: name of the shard.
        token: tells which rows, settings and decoders it must have been made with.
    """
    if not folder.exists(file):
        return None
    try:
        with opened_parquet(folder, file) as reader:
            note = parsed_json(reader.key_values.get(_SHARD_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return None
    if note.get("token") != token:
        return None
    shard = Shard(
        file=file,
        num_rows=reader.num_rows,
        num_row_groups=len(reader.group_rows),
        num_bytes=reader.num_bytes,
        frame_sha256=reader.frame_sha256,
    )
    return {**note, "shard": shard}
