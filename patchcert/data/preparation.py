"""Prepares images: decodes them once, in parallel, into folders of shards; a killed preparation continues."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from patchcert import __version__
from patchcert.data.audit import audit_source
from patchcert.data.config import DataConfig, spec_of
from patchcert.data.decoding import Preprocessing
from patchcert.data.identity import check_class_lists, check_content, check_identity, files_record, identity_of
from patchcert.data.prepared import (
    DATASET_FILE,
    SCHEMA_VERSION,
    PreparedDataset,
    Shard,
    available_cpus,
    digest_header,
    read_record,
)
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import Source
from patchcert.data.sealed import sealed_bytes
from patchcert.data.shards import ShardTask, Spread, in_threads, shard_note
from patchcert.data.sources import open_source
from patchcert.data.splits import SplitRows, SplitSources, find_split
from patchcert.data.storage import Folder, write_error
from patchcert.data.untrusted import opened_parquet, read_json
from patchcert.errors import DatasetError, ResourceError

PLAN_FILE = "preparation.json"
QUARANTINE_FILE = "quarantine.parquet"
CONVERTED_FILE = "converted.parquet"
_ROWS_AT_A_TIME = 1_000


def prepare(
    config: DataConfig,
    image_size: tuple[int, int] | None,
    output_folder: str | Folder,
    *,
    splits: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], object] = warnings.warn,
    num_threads: int | None = None,
    spread: Spread | None = None,
) -> dict[str, PreparedDataset]:
    """Decode, convert and resize the images of a dataset once, into shards that are fast to read.

    Repeating the call continues after a kill, and returns at once when everything is there. The result does not
    depend on ``num_threads``, on ``spread`` or on interruptions.

    Args:
        config: which images, and how they are resized.
        image_size: (height, width) at network input, pixels; None: the dataset's own.
        output_folder: path or URI; every split gets a folder in it.
        splits: names from train, validation, test, trainval; None: every split of the dataset but trainval.
        on_progress: called with (rows done, rows in total) of all splits.
        on_warning: called with one text when the source is only a part of the dataset, and may be.
        num_threads: decoding threads of this process; None: one per CPU core.
        spread: who makes the missing shards, such as :func:`patchcert.data.shards.in_processes`; None: the threads of
            this process.

    Returns:
        The prepared splits by name, in the order asked for.

    Raises:
        DatasetError: the source is missing, empty or damaged, or the folder holds images prepared differently.
        ImageError: bad images, named with their rows, unless they are to be quarantined.
        ResourceError: the disk is full or the folder read-only, or fewer than one thread was asked for.
    """
    spec = spec_of(config)
    preprocessing = _preprocessing(spec, config, image_size)
    if splits is None:
        splits = [split for split in spec.splits if split != "trainval"]
    if not splits:
        raise DatasetError(f"no split of {spec.name} was asked for\n  Choose from: {', '.join(spec.splits)}.")
    num_threads = available_cpus() if num_threads is None else num_threads
    if num_threads < 1:
        raise ResourceError(f"{num_threads} decoding threads were asked for\n  Give at least 1, or leave it out.")
    root = Folder(output_folder)
    source = _open_source(spec, config)
    # Two splits of one source say the same.
    said: dict[str, None] = {}
    works = [
        _find_work(spec, config, preprocessing, source, root.folder(split), split, said.setdefault)
        for split in dict.fromkeys(splits)
    ]
    works = _select(works, source, said.setdefault)
    for text in said:
        on_warning(text)
    check_class_lists(root, {work.split: work.rows.class_names for work in works if work.rows is not None})
    progress = _Progress(on_progress, sum(work.num_rows for work in works))
    prepared = {}
    for work in works:
        if work.finished is None:
            _prepare_split(work, spread or in_threads(num_threads), progress)
        else:
            progress.add(work.num_rows)
        prepared[work.split] = work.finished or PreparedDataset.open(work.folder)
    return prepared


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be made of one split, or the finished dataset if it is there already."""

    spec: DatasetSpec
    config: DataConfig
    preprocessing: Preprocessing
    folder: Folder
    split: str
    identity: dict[str, Any]
    sources: SplitSources | None
    rows: SplitRows | None = None
    source: dict[str, str]
    finished: PreparedDataset | None

    @property
    def num_rows(self) -> int:
        if self.finished is not None:
            return self.finished.num_rows + self.finished.num_quarantined
        assert self.rows is not None
        return self.rows.num_rows


@dataclass
class _Progress:
    report: Callable[[int, int], None] | None
    total: int
    done: int = field(default=0)

    def add(self, num_rows: int) -> None:
        self.done += num_rows
        if self.report is not None and num_rows:
            self.report(self.done, self.total)


def _preprocessing(spec: DatasetSpec, config: DataConfig, image_size: tuple[int, int] | None) -> Preprocessing:
    if image_size is None:
        if spec.native_size is None:
            raise DatasetError(f"the images of {spec.name} have no common size\n  Give an image size, e.g. 224x224.")
        image_size = spec.native_size
    if len(image_size) != 2 or any(int(side) != side or side < 1 for side in image_size):
        raise DatasetError(f"the image size {image_size} is none\n  Give (height, width), both at least 1 pixel.")
    image_size = (int(image_size[0]), int(image_size[1]))
    resize = config.resize or spec.default_resize
    if resize == "none" and spec.native_size not in (None, image_size):
        native = f"{spec.native_size[0]}x{spec.native_size[1]}" if spec.native_size else ""
        raise DatasetError(
            f"{spec.name} images are {native}, but {image_size[0]}x{image_size[1]} was asked for without resizing\n"
            "  Set data.resize to stretch, pad or crop, or ask for the native size."
        )
    if resize == "none" and config.interpolation is not None:
        raise DatasetError(
            f"data.interpolation is {config.interpolation}, but with data.resize none nothing is interpolated\n"
            "  Leave one of them out."
        )
    return Preprocessing(
        image_size=image_size,
        num_channels=spec.num_channels,
        resize=resize,
        interpolation=None if resize == "none" else config.interpolation or "bilinear",
        max_pixels=config.max_pixels,
        encoding=spec.encoding,
    )


def _open_source(spec: DatasetSpec, config: DataConfig) -> Source | DatasetError:
    """The source, or why there is none: that matters only if a split is not finished."""
    try:
        return open_source(spec, config.source)
    except DatasetError as error:
        return error
    except OSError as error:
        return _unreadable(spec, error)


def _unreadable(spec: DatasetSpec, error: OSError) -> DatasetError:
    return DatasetError(f"the source of {spec.name} cannot be read: {error}\n  Check data.source and its permissions.")


def _find_work(
    spec: DatasetSpec,
    config: DataConfig,
    preprocessing: Preprocessing,
    source: Source | DatasetError,
    folder: Folder,
    split: str,
    on_warning: Callable[[str], object],
) -> _Work:
    try:
        is_finished = folder.exists(DATASET_FILE)
        is_begun = not is_finished and folder.exists(PLAN_FILE) and bool(_shard_files(folder))
    except OSError as error:
        raise write_error(folder.uri, error) from error
    sources: SplitSources | None = None
    place = {"kind": "", "uri": ""}
    try:
        if isinstance(source, DatasetError):
            raise source
        sources = find_split(spec, config, source, split)
        place = {"kind": source.kind, "uri": source.uri}
    except OSError as error:
        raise _unreadable(spec, error) from error
    except DatasetError:
        # A finished dataset must stay usable on machines that do not have its source.
        if not is_finished:
            raise
    identity = identity_of(spec, config, preprocessing, split, sources)
    if is_finished:
        record = read_record(folder)
        found = {**record["identity"], "num_quarantined": record["num_quarantined"]}
        quarantine = {"num_quarantined": 0} if config.on_bad_image == "error" else {}
        check_identity(folder, found, {**identity, **quarantine})
        if sources is not None:
            check_content(folder, record.get("source_files"), sources, on_warning)
    elif is_begun:
        try:
            begun = read_json(folder, PLAN_FILE)
        except ValueError as error:
            raise DatasetError(f"{folder}/{PLAN_FILE} cannot be read: {error}\n  Delete the folder.") from error
        # Bad images are mended at the source between two runs: shards made from it before are then made again.
        check_identity(folder, begun, {**identity, "source": begun.get("source")})
    return _Work(
        spec=spec,
        config=config,
        preprocessing=preprocessing,
        folder=folder,
        split=split,
        identity=identity,
        sources=sources,
        source=place,
        finished=PreparedDataset.open(folder) if is_finished else None,
    )


def _select(works: list[_Work], source: Source | DatasetError, on_warning: Callable[[str], object]) -> list[_Work]:
    """Audit the source and decide which of its images belong to the splits that are not finished."""
    asked = [work for work in works if work.finished is None]
    if not asked or isinstance(source, DatasetError):
        return works
    try:
        audit_source(asked[0].config, source, [work.split for work in asked], on_warning)
        return [
            work
            if work.finished is not None or work.sources is None
            else replace(work, rows=work.sources.select(on_warning, on_bad_name=work.config.on_bad_image))
            for work in works
        ]
    except OSError as error:
        raise _unreadable(asked[0].spec, error) from error


def _prepare_split(work: _Work, spread: Spread, progress: _Progress) -> None:
    assert work.rows is not None
    folder, rows_per_shard = work.folder, work.identity["rows_per_shard"]
    folder.remove_stale_temporaries()
    folder.write(PLAN_FILE, _json(work.identity))
    num_rows = work.rows.num_rows
    assert work.sources is not None
    source_files = files_record(work.sources)
    ranges = [(start, min(start + rows_per_shard, num_rows)) for start in range(0, num_rows, rows_per_shard)]
    files = [f"shard-{index:05d}-of-{len(ranges):05d}.parquet" for index in range(len(ranges))]
    tokens = [_token(work, source_files, start, stop) for start, stop in ranges]
    for stale in set(_shard_files(folder)) - set(files):
        folder.remove(stale)
    missing = []
    for index, (file, token) in enumerate(zip(files, tokens, strict=True)):
        if shard_note(folder, file, token) is None:
            missing.append(index)
        else:
            progress.add(ranges[index][1] - ranges[index][0])
    tasks = (_shard_task(work, files[index], tokens[index], *ranges[index]) for index in missing)
    for num_done in spread(tasks, len(missing)):
        progress.add(num_done)
    _finish(work, files, tokens, source_files)


def _shard_task(work: _Work, file: str, token: str, start: int, stop: int) -> ShardTask:
    assert work.rows is not None
    return ShardTask(
        folder=work.folder,
        file=file,
        token=token,
        rows=work.rows.take(start, stop),
        spec=work.spec,
        num_classes=len(work.rows.class_names),
        split=work.split,
        source_uri=work.source["uri"],
        preprocessing=work.preprocessing,
        storage=work.config.storage,
        on_bad_image=work.config.on_bad_image,
        rows_per_group=work.identity["rows_per_group"],
    )


def _shard_files(folder: Folder) -> list[str]:
    return [name for name in folder.files() if name.startswith("shard-") and name.endswith(".parquet")]


def _token(work: _Work, source_files: dict[str, Any] | None, start: int, stop: int) -> str:
    """Tells whether a shard found in the folder is the one that would be written now, by these decoders."""
    content = None
    if source_files is not None:  # a sample would not show every change
        content = source_files["stamp" if source_files["is_sampled"] else "content"]
    parts = [work.identity, content, start, stop, metadata.version("pillow"), metadata.version("pyarrow")]
    return hashlib.sha256(_json(parts)).hexdigest()


def _finish(work: _Work, files: list[str], tokens: list[str], source_files: dict[str, Any] | None) -> None:
    """Digest all shards and write the list of bad images and, last, dataset.json."""
    assert work.rows is not None
    folder, preprocessing = work.folder, work.preprocessing
    digest = hashlib.sha256(digest_header(preprocessing.image_size, preprocessing.num_channels))
    shards: list[Shard] = []
    quarantined: list[dict[str, Any]] = []
    images_per_class_K = np.zeros(len(work.rows.class_names), np.int64)
    converted: list[dict[str, Any]] = []
    for file, token in zip(files, tokens, strict=True):
        note = shard_note(folder, file, token)
        if note is None:
            raise DatasetError(
                f"{folder}/{file} changed while it was being prepared\n"
                "  Let only one program write there, and run it again."
            )
        shards.append(note["shard"])
        quarantined += note["quarantined"]
        converted += note.get("converted", [])  # shards begun by an earlier version have no such list
        with opened_parquet(folder, file) as reader:
            for batch in reader.batches(["label", "row_sha256"], batch_rows=_ROWS_AT_A_TIME):
                images_per_class_K += np.bincount(batch.column("label"), minlength=len(images_per_class_K))
                digest.update(b"".join(batch.column("row_sha256").to_pylist()))
    num_rows = sum(shard.num_rows for shard in shards)
    if num_rows == 0:
        raise DatasetError(
            f"all {len(quarantined)} images of the {work.split} split of {work.spec.name} are bad, the first: "
            f"{quarantined[0]['image_id']}: {quarantined[0]['reason']}\n  Check the source {work.source['uri']}."
        )
    for name, listed, what in ((QUARANTINE_FILE, quarantined, "reason"), (CONVERTED_FILE, converted, "conversion")):
        if listed:
            schema = pa.schema(
                [("image_id", pa.string()), ("place", pa.string()), ("label", pa.int64()), (what, pa.string())]
            )
            folder.write(name, pa.Table.from_pylist(listed, schema=schema))
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": work.spec.name,
        "variant": work.spec.variant,
        "split": work.split,
        "image_size": list(preprocessing.image_size),
        "num_channels": preprocessing.num_channels,
        "num_rows": num_rows,
        "digest": digest.hexdigest(),
        "preprocessing": preprocessing.describe(),
        "storage": work.config.storage,
        "rows_per_group": work.identity["rows_per_group"],
        "num_quarantined": len(quarantined),
        "quarantine_file": QUARANTINE_FILE if quarantined else None,
        "num_converted": len(converted),
        "converted_file": CONVERTED_FILE if converted else None,
        "source": work.source,
        "source_files": source_files,
        "identity": work.identity,
        "made_with": {
            "patchcert": __version__,
            **{package: metadata.version(package) for package in ("numpy", "pillow", "pyarrow")},
        },
        "class_names": list(work.rows.class_names),
        "images_per_class": images_per_class_K.tolist(),
        "shards": [asdict(shard) for shard in shards],
    }
    folder.write(DATASET_FILE, sealed_bytes(record))
    folder.remove(PLAN_FILE)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
