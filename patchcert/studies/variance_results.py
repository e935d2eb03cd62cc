"""Writes and opens the results of one variance study: raw repeats, figures of each image, a summary and a picture."""

import dataclasses
import io
import json
from typing import Any

import pandas as pd
import pyarrow as pa

from patchcert.data.sealed import read_sealed, sealed_bytes
from patchcert.data.storage import Folder
from patchcert.data.untrusted import read_json
from patchcert.errors import PatchcertError, StudyError
from patchcert.geometry import view_set_from_identity
from patchcert.studies.config import VarianceConfig
from patchcert.studies.drawing import save_drawing
from patchcert.studies.result_folders import (
    FIGURES,
    RUN,
    Location,
    check_result_id,
    checked_files,
    digests_of,
    read_table,
    result_id,
    whole_folder,
    write_csv,
    write_frame,
    write_json,
    write_parquet,
)
from patchcert.studies.results import PER_IMAGE, same_values
from patchcert.studies.subject import Subject
from patchcert.studies.variance import VarianceTables, draw_questions, summary_of_repeats
from patchcert.studies.variance_figure import variance_figure

SCHEMA_VERSION = 1
RECORD, REPEATS, VARIANCE_CSV = "variance.json", "repeats.parquet", "variance.csv"
_KEYS = ("schema_version", "result_id", "identity", "subject", "headline_patch", "files")
# Whole words, which a later version may choose better.
_PROSE = {"note"}
_MEND = "Draw again:  patchcert variance RECIPE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceResult:
    """A finished variance study, open for reading.

    Attributes:
        folder: where it lies, on a disk or an object store.
        subject: what was attacked.
        identity: everything that can change a number, JSON-able.
        result_id: hash of the identity, 16 hexadecimal digits.
        headline_patch: label of the patch of the figure and of headline numbers.
        summary: one row for each question, as ``VarianceAccumulator.tables`` names its columns.
        repeats: one row for each question and repeat, as ``VarianceTables`` names its columns.
        run: what was measured on the way: times, hardware, versions, commit.
        files: names of the files that it consists of.
    """

    folder: Folder
    subject: Subject
    identity: dict[str, Any]
    result_id: str
    headline_patch: str
    summary: pd.DataFrame
    repeats: pd.DataFrame
    run: dict[str, Any]
    files: tuple[str, ...]

    @classmethod
    def open(cls, location: Location) -> "VarianceResult":
        """Opens a result folder.

        Every file that the record names is compared with its digest, and the summary is made again from repeats and
        figures of images: what it says of an accuracy or a guarantee is never taken over.

        Raises:
            StudyError: missing, damaged or written by another version.
        """
        folder = Folder(location)
        if not folder.is_file(RECORD):
            raise StudyError(f"{folder} holds no variance study: {RECORD} is missing.\n  {_MEND}")
        try:
            record, is_whole = read_sealed(folder, RECORD, unsealed=_KEYS)
            version = record["schema_version"]
            if version == SCHEMA_VERSION:
                if not is_whole:
                    raise ValueError(f"{RECORD} was changed after it was written")
                files = checked_files(folder, record["files"], (REPEATS, PER_IMAGE, VARIANCE_CSV))
                check_result_id(record)
                subject, repeats = Subject.from_json(record["subject"]), read_table(folder, REPEATS).to_pandas()
                return cls(
                    folder=folder,
                    subject=subject,
                    identity=record["identity"],
                    result_id=record["result_id"],
                    headline_patch=record["headline_patch"],
                    summary=_recomputed(folder, subject, record["identity"], repeats),
                    repeats=repeats,
                    run=read_json(folder, RUN),
                    files=(*files, RECORD),
                )
        except (PatchcertError, ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            raise StudyError(f"{folder} is damaged: {type(error).__name__}: {error}.\n  {_MEND}") from None
        raise StudyError(
            f"{folder} has variance version {version}, this version reads {SCHEMA_VERSION}.\n"
            f"  Use the version of patchcert that wrote it.  {_MEND}"
        )

    def per_image(self) -> pa.Table:
        """The figures of every image over its repeats, as ``DrawnImages`` names its columns."""
        return read_table(self.folder, PER_IMAGE)


def write_variance(
    location: Location,
    *,
    subject: Subject,
    headline_patch: str,
    tables: VarianceTables,
    identity: dict[str, Any],
    run: dict[str, Any],
) -> VarianceResult:
    """Writes a variance study: raw repeats, figures of each image, summary and figure, all at once or not at all.

    Args:
        location: folder or URI; an older variance study there is replaced.
        subject: what was attacked.
        headline_patch: label of the patch of the figure.
        tables: of all parts of the vote table.
        identity: everything that can change a number, JSON-able. Its hash is the result's id.
        run: what was measured on the way, JSON-able.

    Raises:
        StudyError: the folder belongs to something else.
        ResourceError: full disk, read-only folder or storage that refuses.
    """
    identity = json.loads(json.dumps(identity, sort_keys=True))
    with whole_folder(location, RECORD) as folder:
        write_frame(folder / REPEATS, tables.repeats)
        write_parquet(folder / PER_IMAGE, tables.per_image)
        write_csv(folder / VARIANCE_CSV, tables.summary)
        (folder / FIGURES).mkdir()
        save_drawing(variance_figure(tables.repeats, headline_patch), folder / FIGURES)
        write_json(folder / RUN, run)
        record = {
            "schema_version": SCHEMA_VERSION,
            "result_id": result_id(identity),
            "identity": identity,
            "subject": dataclasses.asdict(subject),
            "headline_patch": headline_patch,
            "files": digests_of(folder),
        }
        (folder / RECORD).write_bytes(sealed_bytes(record))
    return VarianceResult.open(location)


def _recomputed(folder: Folder, subject: Subject, identity: dict[str, Any], repeats: pd.DataFrame) -> pd.DataFrame:
    """The summary, from the repeats and the figures of single images.

    Raises:
        ValueError: the stored summary is another one.
        StudyError: repeats and images do not belong together.
    """
    asked = draw_questions(VarianceConfig.from_json(identity["variance"]), view_set_from_identity(subject.views))
    per_image = read_table(folder, PER_IMAGE)
    columns = {name: per_image[name] for name in per_image.column_names}
    if per_image.num_rows != subject.num_images or len(per_image["image_id"].unique()) != subject.num_images:
        raise ValueError(f"{PER_IMAGE} holds {per_image.num_rows} images, its record says {subject.num_images}")
    summary = summary_of_repeats(asked, repeats, columns, subject)
    text = io.BytesIO(folder.read(VARIANCE_CSV))
    stored = pd.read_csv(text, keep_default_na=False, float_precision="round_trip")
    for column in set(summary) - _PROSE:
        if column not in stored or not same_values(stored[column], summary[column]):
            raise ValueError(f"column {column} of {VARIANCE_CSV} does not follow from {REPEATS} and {PER_IMAGE}")
    return summary
