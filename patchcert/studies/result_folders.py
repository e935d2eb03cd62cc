"""Result folders: written whole or not at all, read only as they were written, published file by file."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from patchcert.data.listings import is_plain_name
from patchcert.data.sealed import digest_of
from patchcert.data.storage import Folder, write_error, writer_mark
from patchcert.data.untrusted import opened_parquet
from patchcert.errors import StudyError

FIGURES, RUN = "figures", "run.json"
_UPLOADING = ".uploading"

Location = str | os.PathLike[str] | Folder


@contextlib.contextmanager
def whole_folder(location: Location, marker: str) -> Iterator[Path]:
    """A local folder to write into; when the block ends well it takes its place, else it vanishes.

    On a disk it takes its name in one step. To an object store it is copied file by file, the marker last: a folder
    that holds its marker is whole, and one whose copying was cut off is replaced by the next.

    Args:
        location: final place; an older folder there is replaced if it holds the marker or nothing.
        marker: file that every such folder holds.

    Raises:
        StudyError: the place belongs to something else.
        ResourceError: full disk, read-only folder, storage that cannot be reached or any other refusal; no half is
            left that could be taken for a whole.
    """
    final = Folder(location)
    try:
        if final.exists() and not final.exists(marker) and not final.exists(_UPLOADING):
            if final.is_file() or (os.listdir(final.path()) if final.is_local else final.files(recursive=True)):
                raise StudyError(
                    f"{final} exists and was not written by patchcert (no {marker} in it); it is left as it is.\n"
                    "  Name another folder, or move this one away."
                )
        if final.is_local:
            with _renamed_folder(Path(final.path())) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory() as name:
                yield Path(name)
                _upload(Path(name), final, marker)
    except OSError as error:
        raise write_error(str(final), error) from error


@contextlib.contextmanager
def _renamed_folder(final: Path) -> Iterator[Path]:
    """A new folder beside its final place, renamed when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    Folder(final.parent).remove_stale_temporaries()
    temporary = final.parent / f".{final.name}.{writer_mark()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        # Who may read it is for the user's umask to say.
        temporary.mkdir()
        yield temporary
        # Renaming over a folder that is not empty is not possible: the old one steps aside first.
        aside = temporary.with_name(f"{temporary.stem}-old.tmp")
        is_there = final.exists()
        if is_there:
            final.rename(aside)
        try:
            temporary.rename(final)
        except OSError:
            if is_there:
                aside.rename(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload(source: Path, final: Folder, marker: str) -> None:
    """Replaces what an object store holds, so that the marker is never beside files of another result."""
    paths = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    final.write(_UPLOADING, b"")
    final.remove(marker)
    for stale in final.files(recursive=True).keys() - paths.keys():
        final.remove(stale)
    for name in sorted(paths, key=lambda name: (name == marker, name)):
        final.write(name, paths[name].read_bytes())
    final.remove(_UPLOADING)


def check_file(folder: Folder, name: str, digest: str) -> None:
    """Raises ValueError unless a file has the digest it was written with."""
    found = digest_of(folder.read(name))
    if found != digest:
        raise ValueError(f"{name} has digest {found[:12]}, written was {digest[:12]}")


@contextlib.contextmanager
def local_copy(folder: Folder, names: Sequence[str]) -> Iterator[Path]:
    """Some files of a folder, copied to a folder on this machine that ends with the block and holds nothing else."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            path = Path(temporary, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(folder.read(name))
        yield Path(temporary)


def digests_of(folder: Path) -> dict[str, str]:
    """The digest of every file in a folder, by its name inside it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_of(path.read_bytes()) for path in paths}


def content_digest(folder: Folder, names: Sequence[str]) -> str:
    """The sha256 over the tables among the files of a result, hex: what its numbers are, whatever its pictures show."""
    digests = {name: digest_of(folder.read(name)) for name in names if name.endswith(".parquet")}
    return digest_of(json.dumps(digests, sort_keys=True).encode())


def checked_files(
    folder: Folder, digests: Any, needed: Sequence[str], *, optional: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the files of a result, each of them compared with its digest.

    Args:
        folder: of the result.
        digests: digest by name, as the record says.
        needed: tables that the record has to name.
        optional: tables that it has to name if they are there.

    Raises:
        ValueError: a table is not named, a name leads out of the folder, or a file is not what was written.
        OSError: a file is missing.
    """
    needed = [*needed, *(name for name in optional if folder.exists(name))]
    if unnamed := [name for name in needed if name not in digests]:
        raise ValueError(f"its record does not name {unnamed[0]}")
    for name, digest in digests.items():
        if not all(map(is_plain_name, name.split("/"))) or _is_link(folder, name):
            raise ValueError(f"its record names {name!r}, which is no plain file of this folder")
        check_file(folder, name, digest)
    return tuple(sorted(digests))


def _is_link(folder: Folder, name: str) -> bool:
    """Whether a file, or a folder on the way to it, is a symbolic link, which may lead anywhere."""
    if not folder.is_local:
        return False
    path = Path(folder.path(name))
    return any(one.is_symlink() for one in (path, *path.parents[: name.count("/")]))


def check_result_id(record: dict[str, Any]) -> None:
    """Raises ValueError unless a record has the id of what it says it was made from."""
    if record["result_id"] != (expected := result_id(record["identity"])):
        raise ValueError(f"its result_id is {record['result_id']!r}, but its identity gives {expected}")


def result_id(identity: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the sha256 of everything that can change an answer."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_of(canonical.encode())[:16]


def read_table(folder: Folder, name: str) -> pa.Table:
    """Reads a Parquet file of a result: plain columns only."""
    with opened_parquet(folder, name) as reader:
        return reader.read()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON with sorted keys: equal values give equal bytes."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as Parquet; equal values give equal bytes."""
    # pandas writes its version into the schema; without it the bytes depend on the values alone.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    write_parquet(path, table)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as CSV; a text that a spreadsheet would run as a formula begins with a quotation mark there."""
    texts = [name for name in frame if frame[name].dtype == object or pd.api.types.is_string_dtype(frame[name])]
    frame.assign(**{name: frame[name].map(_no_formula) for name in texts}).to_csv(
        path, index=False, lineterminator="\n"
    )


def _no_formula(value: object) -> object:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a table; pyarrow would read a path with a ``?`` in it as a URI."""
    with path.open("wb") as sink:
        pq.write_table(table, sink, compression="zstd")
