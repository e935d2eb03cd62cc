"""Answers in, a result folder that is whole or absent out; and back: the folder in, its answers out."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from patchcert.data.storage import Folder, write_error, writer_mark
from patchcert.errors import StudyError
from patchcert.studies.subject import Subject

SCHEMA_VERSION = 1
ANSWERS, ANSWERS_CSV, PER_IMAGE = "answers.parquet", "answers.csv", "per_image.parquet"
PLACEMENTS = "placements.parquet"
SUMMARY, RUN, FIGURES = "summary.json", "run.json", "figures"
_UPLOADING = ".uploading"
_MEND = "Answer the study again:  patchcert study RECIPE"

Location = str | os.PathLike[str] | Folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A finished result folder, open for reading.

    Attributes:
        folder: where it lies, on a disk or an object store.
        subject: what was attacked.
        identity: everything that can change an answer, JSON-able.
        result_id: hash of the identity, 16 hexadecimal digits.
        headline_patch: label of the patch of the headline numbers.
        answers: one row for each question, columns ``answering.ANSWER_COLUMNS``.
        run: what was measured on the way: times, hardware, versions, commit.
    """

    folder: Folder
    subject: Subject
    identity: dict[str, Any]
    result_id: str
    headline_patch: str
    answers: pd.DataFrame
    run: dict[str, Any]

    @classmethod
    def open(cls, location: Location) -> "StudyResult":
        """Opens a result folder.

        Raises:
            StudyError: missing, damaged or written by another version.
        """
        folder = Folder(location)
        if not folder.is_file(SUMMARY):
            raise StudyError(f"{folder} holds no study result: {SUMMARY} is missing.\n  {_MEND}")
        try:
            summary = json.loads(folder.read(SUMMARY))
            version = summary["schema_version"]
            if version == SCHEMA_VERSION:
                for name, digest in summary["files"].items():
                    check_file(folder, name, digest)
                return cls(
                    folder=folder,
                    subject=Subject.from_json(summary["subject"]),
                    identity=summary["identity"],
                    result_id=summary["result_id"],
                    headline_patch=summary["headline_patch"],
                    answers=read_table(folder, ANSWERS).to_pandas(),
                    run=json.loads(folder.read(RUN)),
                )
        except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            raise StudyError(f"{folder} is damaged: {type(error).__name__}: {error}.\n  {_MEND}") from None
        raise StudyError(
            f"{folder} has result version {version}, this version reads {SCHEMA_VERSION}.\n"
            f"  Use the version of patchcert that wrote it.  {_MEND}"
        )

    def per_image(self) -> pa.Table:
        """The answers of every image, as ``PartAnswers`` names its columns."""
        return read_table(self.folder, PER_IMAGE)

    def placements(self) -> pd.DataFrame | None:
        """Where the headline patch breaks images, as ``placement_failures`` makes it, or None."""
        if not self.folder.is_file(PLACEMENTS):
            return None
        return read_table(self.folder, PLACEMENTS).to_pandas()

    @property
    def figures(self) -> list[str]:
        """Names of its figure files inside the folder, PNG and SVG, sorted."""
        return [f"{FIGURES}/{name}" for name in self.folder.folder(FIGURES).files()]


@contextlib.contextmanager
def local_copy(folder: Folder) -> Iterator[Path]:
    """A folder on this machine, for readers that want paths: itself, or a download that ends with the block."""
    if folder.is_local:
        yield Path(folder.path())
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in folder.files(recursive=True):
            path = Path(temporary, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(folder.read(name))
        yield Path(temporary)


def result_id(identity: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the sha256 of everything that can change an answer."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_tables(folder: Path, result: StudyResult, per_image: pa.Table, placements: pd.DataFrame | None) -> None:
    """Writes the tables of a result into an existing folder; equal input gives equal bytes (``run`` apart)."""
    names = [ANSWERS, PER_IMAGE]
    if placements is not None:
        write_frame(folder / PLACEMENTS, placements)
        names.append(PLACEMENTS)
    write_frame(folder / ANSWERS, result.answers)
    write_parquet(folder / PER_IMAGE, per_image.replace_schema_metadata(None))
    result.answers.to_csv(folder / ANSWERS_CSV, index=False, lineterminator="\n")
    summary = {
        "schema_version": SCHEMA_VERSION,
        "result_id": result.result_id,
        "identity": result.identity,
        "subject": dataclasses.asdict(result.subject),
        "headline_patch": result.headline_patch,
        "files": {name: digest_of((folder / name).read_bytes()) for name in names},
    }
    write_json(folder / SUMMARY, summary)
    write_json(folder / RUN, result.run)


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
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.{writer_mark()}.", suffix=".tmp", dir=final.parent))
    try:
        temporary.chmod(0o755)
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


def digest_of(data: bytes) -> str:
    """The sha256 of a file's bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def read_table(folder: Folder, name: str) -> pa.Table:
    """Reads a Parquet file."""
    with folder.open(name) as source:
        return pq.read_table(source)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON with sorted keys: equal values give equal bytes."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as Parquet; equal values give equal bytes."""
    # pandas writes its version into the schema; without it the bytes depend on the values alone.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    write_parquet(path, table)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a table; pyarrow would read a path with a ``?`` in it as a URI."""
    with path.open("wb") as sink:
        pq.write_table(table, sink, compression="zstd")
