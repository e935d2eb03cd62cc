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

from patchcert.data.storage import Folder, write_error
from patchcert.errors import StudyError
from patchcert.studies.subject import Subject

SCHEMA_VERSION = 1
ANSWERS, ANSWERS_CSV, PER_IMAGE = "answers.parquet", "answers.csv", "per_image.parquet"
SUMMARY, RUN, FIGURES = "summary.json", "run.json", "figures"
_MEND = "Answer the study again:  patchcert study RECIPE"

Location = str | os.PathLike[str] | Folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A finished result folder, open for reading.

    Attributes:
        folder: where it lies.
        subject: what was attacked.
        identity: everything that can change an answer, JSON-able.
        result_id: hash of the identity, 16 hexadecimal digits.
        headline_patch: label of the patch of the headline numbers.
        answers: one row for each question, columns ``answering.ANSWER_COLUMNS``.
        run: what was measured on the way: times, hardware, versions, commit.
    """

    folder: Path
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
        folder = local_path(location)
        if not (folder / SUMMARY).is_file():
            raise StudyError(f"{folder} holds no study result: {SUMMARY} is missing.\n  {_MEND}")
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            version = summary["schema_version"]
            if version == SCHEMA_VERSION:
                for name, digest in summary["files"].items():
                    _check_file(folder, name, digest)
                return cls(
                    folder=folder,
                    subject=Subject.from_json(summary["subject"]),
                    identity=summary["identity"],
                    result_id=summary["result_id"],
                    headline_patch=summary["headline_patch"],
                    answers=pq.read_table(folder / ANSWERS).to_pandas(),
                    run=json.loads((folder / RUN).read_text(encoding="utf-8")),
                )
        except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            raise StudyError(f"{folder} is damaged: {type(error).__name__}: {error}.\n  {_MEND}") from None
        raise StudyError(
            f"{folder} has result version {version}, this version reads {SCHEMA_VERSION}.\n"
            f"  Use the version of patchcert that wrote it.  {_MEND}"
        )

    def per_image(self) -> pa.Table:
        """The answers of every image, as ``PartAnswers`` names its columns."""
        return pq.read_table(self.folder / PER_IMAGE)

    @property
    def figures(self) -> list[Path]:
        """Its figure files, PNG and SVG, sorted."""
        return sorted((self.folder / FIGURES).glob("*.*"))


def result_id(identity: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the sha256 of everything that can change an answer."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_tables(folder: Path, result: StudyResult, per_image: pa.Table) -> None:
    """Writes the tables of a result into an existing folder; equal input gives equal bytes (``run`` apart)."""
    # pandas writes its version into the schema; without it the bytes depend on the values alone.
    table = pa.Table.from_pandas(result.answers, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, folder / ANSWERS, compression="zstd")
    pq.write_table(per_image.replace_schema_metadata(None), folder / PER_IMAGE, compression="zstd")
    result.answers.to_csv(folder / ANSWERS_CSV, index=False, lineterminator="\n")
    summary = {
        "schema_version": SCHEMA_VERSION,
        "result_id": result.result_id,
        "identity": result.identity,
        "subject": dataclasses.asdict(result.subject),
        "headline_patch": result.headline_patch,
        "files": {name: _digest(folder / name) for name in (ANSWERS, PER_IMAGE)},
    }
    _write_json(folder / SUMMARY, summary)
    _write_json(folder / RUN, result.run)


@contextlib.contextmanager
def whole_folder(location: Location, marker: str) -> Iterator[Path]:
    """A folder to write into; it takes its name when the block ends well, and vanishes when it does not.

    Args:
        location: final name; an older folder there is replaced if it holds the marker or nothing.
        marker: file that every such folder holds.

    Raises:
        StudyError: the name belongs to something else, or is no local path.
        ResourceError: full disk, read-only folder or any other refusal; nothing is left behind.
    """
    final = local_path(location)
    if final.exists() and not (final / marker).exists() and (not final.is_dir() or any(final.iterdir())):
        raise StudyError(
            f"{final} exists and was not written by patchcert (no {marker} in it); it is left as it is.\n"
            "  Name another folder, or move this one away."
        )
    temporary = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        temporary.chmod(0o755)
        yield temporary
        # Renaming over a folder that is not empty is not possible: the old one steps aside first.
        aside = temporary.with_suffix(".old")
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
    except OSError as error:
        raise write_error(str(final), error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def local_path(location: Location) -> Path:
    """The local path of a folder.

    Raises:
        StudyError: it lies on an object store.
    """
    folder = location if isinstance(location, Folder) else Folder(location)
    if not folder.is_local:
        raise StudyError(
            f"results are written to a local folder, {folder} is on an object store.\n"
            "  Name a local folder; copy it, or publish it, afterwards."
        )
    return Path(folder.path())


def _check_file(folder: Path, name: str, digest: str) -> None:
    found = _digest(folder / name)
    if found != digest:
        raise ValueError(f"{name} has digest {found[:12]}, written was {digest[:12]}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
