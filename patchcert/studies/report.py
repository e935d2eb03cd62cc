"""Writes one report over studies and their figures, as Markdown and as a single HTML file."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from patchcert.geometry import view_set_from_identity
from patchcert.studies.answering import combine
from patchcert.studies.closer_writing import CloserLook
from patchcert.studies.config import CERTIFICATES
from patchcert.studies.drawing import Drawing
from patchcert.studies.figures import FigureData
from patchcert.studies.headline import DEFENSE_COLUMNS, first_settings, strongest_theorem
from patchcert.studies.published import Published, reported
from patchcert.studies.results import StudyResult
from patchcert.studies.wording import (
    GUARANTEES,
    certificate_words,
    draw_words,
    interval_words,
    patch_words,
    percent,
    rule_words,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure and its files.

    Attributes:
        data: what it shows.
        png: file, for Markdown.
        svg: file, embedded into HTML.
    """

    data: FigureData | Drawing
    png: Path
    svg: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """What a reader learns first about one defense."""

    defense: str
    views: str
    patch: str
    area: str
    certified: int
    total: int
    clean: int
    certificate: str
    guarantee: str
    setting: str
    interval: str


def render(results: Sequence[StudyResult], figures: Sequence[DrawnFigure], closer: CloserLook) -> tuple[str, str]:
    """Renders a report over one or several studies.

    Args:
        results: the studies; the first one's headline patch is used wherever it was asked.
        figures: figures over all of them.
        closer: images at the edge, and how the studies differ.

    Returns:
        (Markdown, HTML). The HTML holds figures and style in itself and needs neither network nor script. Equal studies
        give equal text.

    Raises:
        StudyError: no study, or patches that act on different tensors.
    """
    answers = combine([result.answers for result in results])
    context = {
        "headlines": [headline for result in results for headline in headlines(result, results[0].headline_patch)],
        "attack": attack(results),
        "warnings": _warnings(answers, results),
        "overview": _overview(answers),
        "published": _published(results),
        "studies": [_study(result) for result in results],
        "figures": [
            {
                "name": figure.data.name,
                "caption": figure.data.caption,
                "file": f"{figure.png.parent.name}/{figure.png.name}",
                "uri": "data:image/svg+xml;base64," + base64.b64encode(figure.svg.read_bytes()).decode(),
            }
            for figure in figures
        ],
        "edges": _edges(closer),
        "pairs": _pairs(closer),
        "pairs_patch": results[0].headline_patch,
        "agreement": _agreement(closer),
        "guarantees": {name: text for name, text in GUARANTEES.items() if name in set(answers["guarantee"])},
        "certificates": {
            certificate_words(row): CERTIFICATES[row["certificate"]].meaning
            for _, row in answers.drop_duplicates("certificate").iterrows()
        },
    }
    return (
        template_environment("md").get_template("report.md.j2").render(context),
        template_environment("html").get_template("report.html.j2").render(context),
    )


def _edges(closer: CloserLook) -> list[dict[str, Any]]:
    """Images closest to losing and to gaining their certificate."""
    titles = ("closest to losing their certificate", "closest to gaining it")
    return [
        {"title": title, "rows": frame.to_dict("records")}
        for title, frame in zip(titles, closer.edges, strict=False)
        if len(frame)
    ]


def _pairs(closer: CloserLook) -> list[dict[str, str]]:
    points = ("difference", "low", "high")
    return [
        {name: str(value) for name, value in row.items()}
        | {name: f"{100 * row[name]:+.1f}" for name in points}
        | {"agreement": percent(row["agreement"]), "p_value": f"{row['p_value']:.2g}"}
        for row in closer.pairs.to_dict("records")
    ]


def _agreement(closer: CloserLook) -> dict[str, Any]:
    """Square matrix of the share of images on which two defenses agree; a dash for pairs on other images."""
    pairs = closer.pairs.to_dict("records")
    shares = {(row["first"], row["second"]): percent(row["agreement"]) for row in pairs}
    names = list(dict.fromkeys(name for row in pairs for name in (row["first"], row["second"])))
    rows = [
        [percent(1.0) if a == b else shares.get((a, b), shares.get((b, a), "\u2013")) for b in names] for a in names
    ]
    return {"names": names, "rows": list(zip(names, rows, strict=True))}


def template_environment(ending: str) -> jinja2.Environment:
    """Finds the templates of reports; those for "html" escape what they are given, those for "md" do not."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("patchcert.studies"),
        autoescape=ending == "html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["content_policy"] = _content_policy
    return environment


def _content_policy(style: object) -> str:
    """The Content-Security-Policy of a page that needs this one style element and pictures inside the page: no more."""
    digest = base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _cell(text: object) -> str:
    """A text with names from files in Markdown: neither cells, links, code, formulas nor HTML begin in it."""
    visible = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return re.sub(r"([\\`*<>\[\]|$])", r"\\\1", visible)


def headlines(result: StudyResult, wanted_patch: str) -> list[Headline]:
    """What a reader learns first about a study: the sharpest theorem at a patch that it asked, else its own."""
    answers = result.answers
    patch = wanted_patch if wanted_patch in set(answers["patch"]) else result.headline_patch
    rows = strongest_theorem(answers, patch)
    if rows.empty:
        rows = first_settings(answers[answers["patch"] == patch]).iloc[:1]
    return [
        Headline(
            defense=row["defense"],
            views=view_set_from_identity(result.subject.views).describe(),
            patch=row["patch"],
            area=percent(row["patch_fraction"]),
            certified=round(row["certified_accuracy"] * row["num_images"]),
            total=row["num_images"],
            clean=round(row["clean_accuracy"] * row["num_images"]),
            certificate=certificate_words(row).removesuffix(" (heuristic)"),
            guarantee=row["guarantee"],
            setting=f"votes: {rule_words(row)}; views: {draw_words(row)}",
            interval=interval_words(row, "certified"),
        )
        for _, row in rows.iterrows()
    ]


def attack(results: Sequence[StudyResult]) -> dict[str, Any]:
    """What was attacked: images in words, labels of the patches."""
    subjects = [result.subject for result in results]
    first = subjects[0]
    patches = list(dict.fromkeys(patch_words(label) for result in results for label in result.answers["patch"]))
    height, width = first.image_size
    tensor = "native pixels"
    if first.resize != "none":
        tensor = f"pixels of the network input (resized: {first.resize}, {first.interpolation})"
    images = "several sets of images"
    if len({(subject.dataset, subject.split, subject.split_digest) for subject in subjects}) == 1:
        is_named = first.variant == "original" or first.variant in first.dataset
        edition = "" if is_named else f" ({first.variant})"
        images = f"{first.evaluated} {first.split} images of {first.dataset}{edition}, {height}\u00d7{width} {tensor}"
    return {"images": images, "patches": patches}


def _warnings(answers: pd.DataFrame, results: Sequence[StudyResult]) -> list[str]:
    found = []
    for _, rows in answers[answers["note"].str.contains("not comparable")].groupby(DEFENSE_COLUMNS, sort=False):
        note = next(text for text in rows["note"].iloc[0].split("; ") if text.startswith("not comparable"))
        found.append(f"{rows['defense'].iloc[0]} \u2014 {note}.")
    for result in results:
        if result.subject.num_quarantined:
            found.append(
                f"{result.subject.defense}: {result.subject.num_quarantined} images could not be read; they count as "
                "wrong in every accuracy."
            )
        if result.subject.num_unvoted:
            found.append(
                f"{result.subject.defense}: {result.subject.num_unvoted} images belong to parts of the vote table that "
                "failed wherever they were tried; they count as wrong in every accuracy."
            )
    impossible = answers[~answers["feasible"]]
    if len(impossible):
        found.append(
            f"{len(impossible)} of {len(answers)} questions are infeasible: no votes at all could be certified there. "
            "Each such row names the lead that it would need."
        )
    return found


def _overview(answers: pd.DataFrame) -> dict[str, Any]:
    """Certified accuracy by patch, one column for each defense and certificate at its first setting."""
    rows = first_settings(answers)
    several = len(rows[DEFENSE_COLUMNS].drop_duplicates()) > 1
    columns: list[dict[str, Any]] = []
    cells: dict[tuple[int, str], str] = {}
    for _, group in rows.groupby([*DEFENSE_COLUMNS, "certificate"], sort=False):
        first = group.iloc[0]
        columns.append(
            {
                "defense": first["defense"] if several else "",
                "certificate": certificate_words(first),
                "setting": rule_words(first) if first["draws"] == "all" else draw_words(first),
                "clean": percent(first["clean_accuracy"]),
            }
        )
        for _, row in group.iterrows():
            text = percent(row["certified_accuracy"]) if row["feasible"] else "infeasible"
            cells[len(columns) - 1, row["patch"]] = text
    patches = rows.drop_duplicates("patch").sort_values(["patch_area", "patch_height"], kind="stable")
    return {
        "columns": columns,
        "rows": [
            {
                "patch": patch["patch"],
                "area": percent(patch["patch_fraction"]),
                "cells": [cells.get((i, patch["patch"]), "\u2013") for i in range(len(columns))],
            }
            for _, patch in patches.iterrows()
        ],
    }


def _study(result: StudyResult) -> dict[str, Any]:
    """One study: every row of its answers, and where it comes from."""
    return {
        "defense": result.subject.defense,
        "rows": [_row(row) for _, row in result.answers.iterrows()],
        "base": percent(result.answers["base_accuracy"].iloc[0]),
        "provenance": provenance(result),
    }


def _row(row: pd.Series) -> dict[str, str]:
    return {
        "patch": row["patch"],
        "area": percent(row["patch_fraction"]),
        "certificate": certificate_words(row).removesuffix(" (heuristic)"),
        "guarantee": row["guarantee"],
        "rule": rule_words(row),
        "views": draw_words(row),
        "clean": interval_words(row, "clean"),
        "certified": interval_words(row, "certified") if row["feasible"] else "infeasible",
        "note": row["note"],
    }


def _published(results: Sequence[StudyResult]) -> list[dict[str, str]]:
    """Rows that papers published numbers for, ours and theirs."""
    rows = []
    for result in results:
        edition = "ours on the JPEG edition" if result.subject.dataset.endswith("-jpeg") else ""
        for _, row in result.answers.iterrows():
            found = {metric: reported(result.subject, row, metric) for metric in ("certified", "clean")}
            numbers = [number for metric in found.values() for number in metric]
            if numbers:
                notes = dict.fromkeys([edition, *(number.note for number in numbers)])
                rows.append(
                    _row(row)
                    | {"defense": row["defense"], "note": "; ".join(note for note in notes if note)}
                    | {"source": _citations(numbers)}
                    | {
                        f"reported_{metric}": " / ".join(dict.fromkeys(percent(number.value) for number in published))
                        for metric, published in found.items()
                    }
                )
    return rows


def _citations(numbers: Sequence[Published]) -> str:
    tables: dict[str, dict[str, None]] = {}
    for number in numbers:
        tables.setdefault(number.source, {})[number.table] = None
    return "; ".join(f"{source}, {', '.join(found)}" for source, found in tables.items())


def provenance(result: StudyResult) -> dict[str, str]:
    """Where a study comes from, fact by fact: views, model, images, times, hardware."""
    subject = result.subject
    facts = {
        "views": view_set_from_identity(subject.views).describe(),
        "model digest": subject.model_digest,
        "dataset": f"{subject.dataset} ({subject.variant}), {subject.num_classes} classes",
        "split": f"{subject.split}, {subject.num_images} images",
        "split digest": subject.split_digest,
        "tensor under attack": f"{subject.tensor}, {subject.image_size[0]}\u00d7{subject.image_size[1]}",
        "resizing": "none" if subject.resize == "none" else f"{subject.resize}, {subject.interpolation}",
        "result id": result.result_id,
    }
    # Stages that ran in the same environment need not say so again.
    environment = result.run.get("environment")
    run = dict(result.run)
    for name, stage in result.run.items():
        if isinstance(stage, dict) and stage.get("environment") == environment:
            run[name] = {inner: value for inner, value in stage.items() if inner != "environment"}
    return facts | _flat(run)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as "outer inner" -> text, empty ones left out."""
    facts: dict[str, str] = {}
    for name, value in values.items():
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            facts |= _flat(value, f"{title} \u203a ")
        elif isinstance(value, list | tuple):
            if value:
                facts[title] = ", ".join(str(entry) for entry in value)
        elif value is not None and value != "":
            facts[title] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return facts
