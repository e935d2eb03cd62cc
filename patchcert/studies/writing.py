"""Writes finished folders: tables, figures and report of one study, or one report over several."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from patchcert.data import PreparedDataset
from patchcert.data.storage import Folder
from patchcert.errors import StudyError
from patchcert.studies.answering import PartAnswers, combine, per_image_table, placement_failures, summarise
from patchcert.studies.closer_writing import CloserLook, closer_comparison, closer_look
from patchcert.studies.config import StudyConfig
from patchcert.studies.drawing import save_drawing
from patchcert.studies.figures import figures_of, save
from patchcert.studies.naming import distinctly_named, unique_studies
from patchcert.studies.questions import Question, headline_patch
from patchcert.studies.report import DrawnFigure, render
from patchcert.studies.result_folders import FIGURES, Location, digests_of, result_id, whole_folder, write_csv
from patchcert.studies.results import ANSWERS_CSV, SUMMARY, StudyResult, write_summary, write_tables
from patchcert.studies.subject import Subject

REPORT_HTML, REPORT_MARKDOWN, COMPARISON_CSV = "report.html", "report.md", "comparison.csv"


def write_study(
    location: Location,
    *,
    subject: Subject,
    config: StudyConfig,
    questions: Sequence[Question],
    parts: Sequence[PartAnswers],
    identity: dict[str, Any],
    run: dict[str, Any],
    dataset: PreparedDataset | None = None,
) -> StudyResult:
    """Writes one study: answers, per-image answers, figures and report, all at once or not at all.

    Args:
        location: folder or URI; an older study there is replaced.
        subject: what was attacked.
        config: settings of the study.
        questions: what was asked.
        parts: the answers of all parts of the vote table.
        identity: everything that can change an answer, JSON-able: settings, vote table, code version. Its hash is the
            result's id.
        run: what was measured on the way, JSON-able: times, hardware, versions, commit, command.
        dataset: the images, for examples in the report; None: without.

    Raises:
        StudyError: answers are missing, or the folder belongs to something else.
        ResourceError: full disk, read-only folder or storage that refuses.
    """
    per_image = per_image_table(parts)
    # As they will be read again, so that a report does not depend on when it is written.
    identity, run = (json.loads(json.dumps(values, sort_keys=True)) for values in (identity, run))
    result = StudyResult(
        folder=Folder(location),
        subject=subject,
        identity=identity,
        result_id=result_id(identity),
        headline_patch=headline_patch(config, subject.image_size),
        answers=summarise(per_image, questions, subject),
        run=run,
    )
    with whole_folder(location, SUMMARY) as folder:
        placements = placement_failures(parts, questions, subject.image_size)
        write_tables(folder, result, per_image, placements)
        closer = closer_look(result, per_image, placements, dataset)
        _write_report(folder, [result], result.answers, closer)
        write_summary(folder, result)
        files = tuple(digests_of(folder))
    return dataclasses.replace(result, files=files)


def write_report(location: Location, results: Sequence[StudyResult]) -> str:
    """Write one report over several studies, with their answers in one table.

    Args:
        location: folder or URI; an older report there is replaced.
        results: the studies; those of one name are told apart by what differs between them.

    Returns:
        Path or URI of the HTML file.

    Raises:
        StudyError: no study, patches that act on different tensors, one study twice, or a folder that belongs to
            something else.
        ResourceError: full disk, read-only folder or storage that refuses.
    """
    kept, same = unique_studies(results)
    if same:
        raise StudyError(f"{same[0]}.\n  Name each study once.")
    results = distinctly_named(kept)
    answers = combine([result.answers for result in results])
    with whole_folder(location, REPORT_HTML) as folder:
        write_csv(folder / ANSWERS_CSV, answers)
        if len(results) == 1:
            closer = closer_look(results[0], results[0].per_image(), results[0].placements(), None)
        else:
            closer = closer_comparison(results, results[0].headline_patch)
            write_csv(folder / COMPARISON_CSV, closer.pairs)
        _write_report(folder, results, answers, closer)
    return Folder(location).folder(REPORT_HTML).uri


def _write_report(folder: Path, results: Sequence[StudyResult], answers: pd.DataFrame, closer: CloserLook) -> None:
    (folder / FIGURES).mkdir()
    figures = []
    for data in figures_of(answers, results[0].headline_patch):
        files = save(data, folder / FIGURES)
        figures.append(DrawnFigure(data=data, png=files["png"], svg=files["svg"]))
    for drawing in closer.drawings:
        files = save_drawing(drawing, folder / FIGURES)
        figures.append(DrawnFigure(data=drawing, png=files["png"], svg=files["svg"]))
    markdown, html = render(results, figures, closer)
    (folder / REPORT_MARKDOWN).write_text(markdown, encoding="utf-8")
    (folder / REPORT_HTML).write_text(html, encoding="utf-8")
