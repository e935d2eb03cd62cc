"""Names of defenses, data sets and classes are letters to every writer of results: no formula, no markup."""

import dataclasses
import logging
import re
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from studies import simulated
from studies.pages import Page, assert_closed

from patchcert.studies import write_report
from patchcert.studies.answering import combine
from patchcert.studies.closer_figures import Example, class_figure, example_figure, square_curve
from patchcert.studies.closer_look import ImageOutcomes
from patchcert.studies.drawing import Drawing, Figure, save_drawing, shortened, typeset
from patchcert.studies.figures import figures_of, save
from patchcert.studies.paper_writing import latex_text
from patchcert.studies.report import template_environment

NAMES = {
    "unknown command": r"$\frac",
    "formula": "$x$",
    "unfinished formula": r"$\frac{1$ and $\mathrm{",
    "one dollar": "US$",
    "two dollars": "5 $ or 6 $",
    "escaped dollar": r"a\$b$c\\$",
    "only dollars": "$" * 10_000,
    "beside a formula": r"$ p_c \$p_c p_c$ \p_c p_c \p_c p_c",
    "letters of a formula": "map_class",
    "underscore": "_hidden",
    "percent and braces": "%s {0} {x!r} ^2_3",
    "controls": "line\nbreak\x1b[2J\x00tab\t",
    "right to left": "\u202eabc \u05d0\u05d1\u05d2 \u0645\u0631\u062d",
    "not in the font": "\u4e2d\u6587 \U0001f600 \ue000 \U000f0000",
    "endless": "x" * 10_000,
    "endless words": "x $y " * 2_000,
}


@pytest.fixture(autouse=True)
def quietly(caplog):
    """Neither a warning nor a line of a library's log for any name, and no endless time."""
    caplog.set_level(logging.WARNING)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert caplog.records == [] and time.perf_counter() - start < 60


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_drawn_letter_by_letter(name, tmp_path):
    figure = Figure(figsize=(2, 1))
    text = figure.text(0, 0, typeset(shortened(name)))
    save_drawing(Drawing(name="one", caption="", draw=lambda: figure), tmp_path)
    if "p_c" not in name or name == "map_class":
        shown, is_formula = text._preprocess_math(text.get_text())
        visible = "".join(letter if letter.isprintable() else " " for letter in shortened(name))
        assert shown.removeprefix(" ") == visible.removeprefix(" ") and not is_formula
    assert len(text.get_text()) < 120


def test_p_c_stays_a_formula_beside_any_name():
    assert typeset("p_c as reported") == r"$p_\mathrm{c}$ as reported"
    assert typeset("$5: p_c") == r"\$5: $p_\mathrm{c}$" and typeset("map_class, p_c2") == "map_class, p_c2"
    assert shortened("a" * 30 + "b" * 30) == "a" * 30 + "b\u2026" + "b" * 16 and shortened("a" * 48) == "a" * 48


def test_names_of_defenses_in_curves_and_bars(tmp_path):
    answers = simulated.write(simulated.fresh_study(), tmp_path / "study").answers
    chosen = ("unknown command", "formula", "underscore", "endless words")
    named = combine([answers.assign(defense=NAMES[name]) for name in chosen])
    figures = {figure.name: figure for figure in figures_of(named, "2x2")}
    assert set(figures) == {"patch_area", "clean_and_certified", "num_draws"}
    for figure in figures.values():
        assert all(len(line.label) < 150 for line in figure.lines)
        save(figure, tmp_path)


def test_names_of_classes_and_defenses_in_the_closer_look(tmp_path):
    names = list(NAMES.values())
    by_class = pd.DataFrame({"label": range(len(names)), "num_images": 9})
    for metric, value in (("clean", 0.8), ("certified", 0.5)):
        by_class = by_class.assign(
            **{f"{metric}_accuracy": value, f"{metric}_low": value - 0.1, f"{metric}_high": value + 0.1}
        )
    save_drawing(class_figure(by_class, r"$\frac", "2x2", names), tmp_path)
    squares = dict.fromkeys(("labels_N", "predictions_N"), np.zeros(4, np.int64))
    fields = {field.name: None for field in dataclasses.fields(ImageOutcomes)}
    outcomes = [
        ImageOutcomes(**fields | squares | {"defense": name, "words": "placement", "largest_square_N": np.arange(4)})
        for name in names
    ]
    save_drawing(square_curve(outcomes, (8, 8)), tmp_path)
    examples = [
        Example(
            image_id="1",
            pixels_HWC=np.zeros((8, 8, 1), np.uint8),
            label=name,
            votes_to_spare=1,
            box=(0, 0, 2, 2),
            covered=np.ones((2, 2), bool),
            affected=np.eye(8, dtype=bool),
        )
        for name in names
    ]
    save_drawing(example_figure(examples, r"$\frac", "2x2"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_report_over_studies_with_such_names(tmp_path):
    study = simulated.fresh_study()
    chosen = ("$^", "$x$ | [a](b) <b>", "_" + "x" * 5_000)
    results = []
    for number, name in enumerate(chosen):
        # Reading the names back and drawing them is the same for every study: one is written, the others are renamed.
        subject = dataclasses.replace(study.subject, defense=name, dataset="$y$")
        if not results:
            results.append(simulated.write(study, tmp_path / "study", subject=subject))
        else:
            answers = results[0].answers.assign(defense=name)
            results.append(
                dataclasses.replace(results[0], subject=subject, answers=answers, result_id=f"{number}" * 16)
            )
    write_report(tmp_path / "all", results)
    html = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert_closed(html)
    text = Page(html).text
    markdown = (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    for name in chosen:
        assert name in text
    assert r"**\$^: " in markdown and r"\$x\$ \| \[a\](b) \<b\>" in markdown
    assert re.findall(r"(?<!\\)\$", markdown) == []
    tables = markdown[markdown.index("## All questions") : markdown.index("## Words")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables.splitlines() if line.startswith("|")} == {9}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_in_latex_and_markdown(name):
    latex = latex_text(name)
    without_formula = latex.replace("$p_c$", "")
    assert re.findall(r"(?<!\\)[$%&#_^](?!\w*\{\})", without_formula.replace(r"\^", "")) == []
    assert "\n" not in latex and latex.isprintable() and ("p_c" in name) >= ("$p_c$" in latex)
    cell = template_environment("md").filters["cell"](name)
    assert cell.isprintable() and re.findall(r"(?<!\\)(?:\\\\)*[$`*<>|\[\]]", cell) == []
