"""Writes and opens the results of one study: a folder of answers, figures and a report under one record."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from patchcert.data.sealed import read_sealed, sealed_bytes
from patchcert.data.storage import Folder
from patchcert.data.untrusted import read_json
from patchcert.errors import PatchcertError, StudyError
from patchcert.geometry import view_set_from_identity
from patchcert.studies.config import StudyConfig
from patchcert.studies.result_folders import (
    FIGURES,
    RUN,
    Location,
    check_result_id,
    checked_files,
    digests_of,
    read_table,
    write_csv,
    write_frame,
    write_json,
    write_parquet,
)
from patchcert.studies.subject import Subject

SCHEMA_VERSION = 1
ANSWERS, ANSWERS_CSV, PER_IMAGE = "answers.parquet", "answers.csv", "per_image.parquet"
PLACEMENTS = "placements.parquet"
SUMMARY = "summary.json"
_KEYS = ("schema_version", "result_id", "identity", "subject", "headline_patch", "files")
# Whole words, which a later version may choose better.
_PROSE = {"note"}
_MEND = "Answer the study again:  patchcert study RECIPE"


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
        files: names of the files that it consists of; empty while it is being written.
    """

    folder: Folder
    subject: Subject
    identity: dict[str, Any]
    result_id: str
    headline_patch: str
    answers: pd.DataFrame
    run: dict[str, Any]
    files: tuple[str, ...] = ()

    @classmethod
    def open(cls, location: Location) -> "StudyResult":
        """Opens a result folder.

        Every file that the record names is compared with its digest, and the answers are made again from those of the
        single images: what a file says about a certificate's guarantee or an accuracy is never taken over.

        Raises:
            StudyError: missing, damaged or written by another version.
        """
        folder = Folder(location)
        if not folder.is_file(SUMMARY):
            raise StudyError(f"{folder} holds no study result: {SUMMARY} is missing.\n  {_MEND}")
        try:
            summary, is_whole = read_sealed(folder, SUMMARY, unsealed=_KEYS)
            version = summary["schema_version"]
            if version == SCHEMA_VERSION:
                if not is_whole:
                    raise ValueError(f"{SUMMARY} was changed after it was written")
                files = checked_files(folder, summary["files"], (ANSWERS, PER_IMAGE), optional=(PLACEMENTS,))
                check_result_id(summary)
                subject = Subject.from_json(summary["subject"])
                return cls(
                    folder=folder,
                    subject=subject,
                    identity=summary["identity"],
                    result_id=summary["result_id"],
                    headline_patch=summary["headline_patch"],
                    answers=_recomputed(folder, subject, summary["identity"]),
                    run=read_json(folder, RUN),
                    files=(*files, SUMMARY),
                )
        except (PatchcertError, ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
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
        return [name for name in self.files if name.startswith(f"{FIGURES}/")]


def write_tables(folder: Path, result: StudyResult, per_image: pa.Table, placements: pd.DataFrame | None) -> None:
    """Writes the tables of a result into an existing folder; equal input gives equal bytes (``run`` apart)."""
    if placements is not None:
        write_frame(folder / PLACEMENTS, placements)
    write_frame(folder / ANSWERS, result.answers)
    write_parquet(folder / PER_IMAGE, per_image.replace_schema_metadata(None))
    write_csv(folder / ANSWERS_CSV, result.answers)
    write_json(folder / RUN, result.run)


def write_summary(folder: Path, result: StudyResult) -> None:
    """Writes the record of a result, which names all other files of its folder, into that folder."""
    summary = {
        "schema_version": SCHEMA_VERSION,
        "result_id": result.result_id,
        "identity": result.identity,
        "subject": dataclasses.asdict(result.subject),
        "headline_patch": result.headline_patch,
        "files": digests_of(folder),
    }
    (folder / SUMMARY).write_bytes(sealed_bytes(summary))


def _recomputed(folder: Folder, subject: Subject, identity: dict[str, Any]) -> pd.DataFrame:
    """One row of answers for each question, from the answers of the single images.

    Raises:
        ValueError: the stored rows are other ones.
    """
    # Questions are asked of answers here, whose tables they do not open.
    from patchcert.studies.answering import summarise
    from patchcert.studies.questions import questions

    config = StudyConfig.from_json(identity["study"])
    asked = questions(config, view_set_from_identity(subject.views), 0.0, on_warning=lambda text: None)
    answers = summarise(read_table(folder, PER_IMAGE), asked, subject)
    stored = read_table(folder, ANSWERS).to_pandas()
    for column in set(answers) - _PROSE:
        if column not in stored or not same_values(stored[column], answers[column]):
            raise ValueError(f"column {column} of {ANSWERS} does not follow from {PER_IMAGE}")
    return answers


def same_values(stored: pd.Series, expected: pd.Series) -> bool:
    """Return whether a stored column is the expected one; the last digits of floats may follow a library's version."""
    if len(stored) != len(expected):
        return False
    if pd.api.types.is_float_dtype(expected):
        return bool(np.allclose(stored.to_numpy(float), expected.to_numpy(), rtol=1e-9, atol=1e-12, equal_nan=True))
    return stored.tolist() == expected.tolist()
