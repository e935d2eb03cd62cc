"""Writes the folder of a suite: its report, and the tables and figures of its paper."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from patchcert.errors import StudyError
from patchcert.studies.config import CERTIFICATES
from patchcert.studies.figures import save
from patchcert.studies.paper import PaperFigure, PaperTable
from patchcert.studies.paper_figures import paper_figures
from patchcert.studies.paper_tables import FilledTable, fill_tables
from patchcert.studies.paper_writing import METRIC_TITLES, cells, certificate_cell, columns, latex
from patchcert.studies.report import attack, headlines, provenance, template_environment
from patchcert.studies.result_folders import FIGURES, Location, whole_folder, write_csv
from patchcert.studies.results import StudyResult
from patchcert.studies.suite_networks import NetworkRun
from patchcert.studies.wording import GUARANTEES, certificate_words

SUITE = "suite.json"
TABLES, REPORT_HTML, REPORT_MARKDOWN = "tables", "report.html", "report.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """Everything a suite's folder is made of.

    Attributes:
        title: of the report.
        source: paper whose tables these are.
        headline: (experiment, patch, defense in words) of the first screen.
        tables: what the paper tabulates.
        figures: what it draws.
        results: studies by name of the experiment.
        scatters: summaries of repeated draws by name of the experiment.
        networks: who voted, with the wall times of model runs and answers.
        missing: experiments without a study, and why.
        left_out: experiments that nobody asked for.
        notes: what a reader must know before any number.
        settings: of the suite, JSON-able.
    """

    title: str
    source: str
    headline: tuple[tuple[str, str, str], ...]
    tables: tuple[PaperTable, ...]
    figures: tuple[PaperFigure, ...]
    results: Mapping[str, StudyResult]
    scatters: Mapping[str, pd.DataFrame]
    networks: Sequence[NetworkRun] = ()
    missing: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...]
    settings: Mapping[str, Any]


def write_suite(location: Location, suite: SuiteReport) -> list[FilledTable]:
    """Writes report, tables (CSV, LaTeX) and figures (PNG, SVG) of a suite, all at once or not at all.

    Args:
        location: folder or URI; an older suite there is replaced.
        suite: what is written.

    Returns:
        The tables with their numbers.

    Raises:
        StudyError: no study at all, a line that its study did not ask, or a folder that belongs to something else.
        ResourceError: full disk, read-only folder or storage that refuses.
    """
    if not suite.results:
        raise StudyError(
            f"{suite.title}: there is no study to report.\n  " + "\n  ".join(dict.fromkeys(suite.missing.values()))
        )
    missing = dict.fromkeys(suite.left_out, "left out of this run") | suite.missing
    filled = fill_tables(suite.tables, suite.results, missing, suite.scatters)
    with whole_folder(location, SUITE) as folder:
        (folder / TABLES).mkdir()
        (folder / FIGURES).mkdir()
        for table in filled:
            write_csv(folder / TABLES / f"{table.table.name}.csv", table.frame())
            (folder / TABLES / f"{table.table.name}.tex").write_text(latex(table), encoding="utf-8")
        figures = []
        for data in paper_figures(suite.figures, filled):
            files = save(data, folder / FIGURES)
            uri = "data:image/svg+xml;base64," + base64.b64encode(files["svg"].read_bytes()).decode()
            figures.append({"caption": data.caption, "file": f"{FIGURES}/{files['png'].name}", "uri": uri})
        context = _context(suite, filled) | {"figures": figures}
        for name, ending in ((REPORT_MARKDOWN, "md"), (REPORT_HTML, "html")):
            text = template_environment(ending).get_template(f"suite.{ending}.j2").render(context)
            (folder / name).write_text(text, encoding="utf-8")
        _write_summary(folder / SUITE, suite)
    return filled


def _context(suite: SuiteReport, filled: Sequence[FilledTable]) -> dict[str, Any]:
    results = list(suite.results.values())
    shown = [
        dataclasses.replace(headline, defense=f"{words} ({headline.defense})")
        for experiment, patch, words in suite.headline
        if experiment in suite.results
        for headline in headlines(suite.results[experiment], patch)
    ]
    rows = [row for table in filled for row in table.rows if row.guarantee]
    kinds = {row["certificate"]: row for result in results for _, row in result.answers.iterrows()}
    return {
        "title": suite.title,
        "source": suite.source,
        "headlines": shown,
        "attack": attack(results),
        "guarantees": {name: text for name, text in GUARANTEES.items() if name in {row.guarantee for row in rows}},
        "warnings": [*suite.notes, *_warnings(suite, filled)],
        "tables": [_table(table) for table in filled],
        "networks": suite.networks,
        "headline_networks": [
            run for run in suite.networks if {name for name, _, _ in suite.headline} & set(run.experiments)
        ],
        "certificates": {certificate_words(row): CERTIFICATES[name].meaning for name, row in kinds.items()},
        "studies": [
            {"experiment": name, "defense": result.subject.defense, "facts": provenance(result)}
            for name, result in suite.results.items()
        ],
        "costs": [_cost(name, result) for name, result in suite.results.items()],
    }


def _warnings(suite: SuiteReport, filled: Sequence[FilledTable]) -> list[str]:
    found = [f"{name} was not measured: {reason}" for name, reason in suite.missing.items()]
    if suite.left_out:
        found.append(f"Left out of this run: {', '.join(suite.left_out)}.")
    lines = [row for table in filled for row in table.rows if row.certificate]
    impossible = sum(not row.feasible for row in lines)
    if impossible:
        found.append(
            f"{impossible} of {len(lines)} measured lines are infeasible: under the formula as it is written no votes "
            "at all could be certified there. Their notes name the lead in votes that each would need."
        )
    return found


def _table(table: FilledTable) -> dict[str, Any]:
    rows, previous = [], None
    # Notes repeat from line to line: below the table each stands once.
    notes = list(dict.fromkeys(note for row in table.rows for note in _parts(row.note)))
    for row in table.rows:
        rows.append(
            {
                "labels": row.labels,
                "starts": len(row.labels) > 1 and row.labels[0] != previous,
                "certificate": row.certificate or "–",
                "words": certificate_cell(row),
                "guarantee": row.guarantee,
                "setting": row.setting,
                "patch": row.patch,
                "cells": cells(row, table),
                "note": row.note,
                "marks": [notes.index(note) + 1 for note in _parts(row.note)],
            }
        )
        previous = row.labels[0]
    return {
        "name": table.table.name,
        "number": table.table.number,
        "title": table.table.title,
        "note": table.table.note,
        "names": table.table.row_names,
        "groups": [(METRIC_TITLES[metric], titles) for metric, titles in columns(table)],
        "rows": rows,
        "notes": notes,
    }


def _cost(experiment: str, result: StudyResult) -> dict[str, str]:
    """What an experiment took: one pass of the model, and the answers that were read off its votes."""

    def seconds(values: Mapping[str, Any], name: str) -> str:
        return f"{values[name]:.1f}" if name in values else "–"

    return {
        "experiment": experiment,
        "defense": result.subject.defense,
        "images": f"{result.subject.evaluated:,}",
        "views": f"{result.answers['num_views'].iloc[0]:,}",
        "scoring": seconds(result.run.get("voting") or {}, "seconds"),
        "questions": str(len(result.answers)),
        "answering": seconds(result.run, "study_seconds"),
        "result_id": result.result_id,
    }


def _parts(note: str) -> list[str]:
    return note.split("; ") if note else []


def _write_summary(path: Path, suite: SuiteReport) -> None:
    """What the suite consists of, for machines."""
    summary = {
        "title": suite.title,
        "settings": suite.settings,
        "studies": {
            name: {"result_id": result.result_id, "folder": result.folder.uri, "defense": result.subject.defense}
            for name, result in suite.results.items()
        },
        "missing": dict(suite.missing),
        "left_out": list(suite.left_out),
        "tables": [f"{TABLES}/{table.name}.csv" for table in suite.tables],
    }
    path.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
