"""Tables of a paper filled from the simulated studies of a whole suite, and written."""

import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from studies import simulated
from studies.pages import assert_closed

from patchcert.certificates import wilson_interval
from patchcert.errors import StudyError
from patchcert.studies import StudyConfig, StudyResult
from patchcert.studies.figures import _colours, _draw_lines, _style
from patchcert.studies.paper import PaperFigure, PaperRow, PaperTable
from patchcert.studies.paper_figures import paper_figures
from patchcert.studies.paper_tables import Comparison, fill_tables, number_words, read_filled
from patchcert.studies.paper_writing import cells, console_tables, latex, latex_text
from patchcert.studies.suite_networks import network_runs, networks_table
from patchcert.studies.suite_writing import SuiteReport, write_suite
from patchcert.suites import SUITES

RC = "Randomized cropping (ICLR 2021 submission)"
LOST = "no space left on the device"


@pytest.fixture(scope="module")
def suite():
    return SUITES["rc-cifar10"].build("one-pass", True)


@pytest.fixture(scope="module")
def results(suite, tmp_path_factory):
    """A study for each experiment of the suite but one, as if it had run on CIFAR-10."""
    folder = tmp_path_factory.mktemp("studies")
    found = {}
    for number, experiment in enumerate(suite.experiments[:4] + suite.experiments[-1:]):
        recipe = experiment.build()
        part = simulated.simulated_part(
            recipe.views, 40, seed=number, score_floor=recipe.prediction.score_floor or None
        )
        study = simulated.make_study(recipe.views, part, recipe.study, recipe.name)
        voting = {"images": 40, "seconds": 9.0, "worker_seconds": 6.0, "one_pass": experiment.name != "draws"}
        found[experiment.name] = simulated.write(study, folder / experiment.name, run={"voting": voting})
    return found


@pytest.fixture(scope="module")
def filled(suite, results):
    missing = {experiment.name: LOST for experiment in suite.experiments if experiment.name not in results}
    return {table.table.name: table for table in fill_tables(suite.tables, results, missing)}


def line(table, *labels):
    (row,) = [row for row in table.rows if row.labels == labels]
    return row


def answer(results, experiment, **where):
    rows = results[experiment].answers
    for name, value in where.items():
        rows = rows[rows[name] == value]
    (row,) = [row for _, row in rows.iterrows()]
    return row


def test_lines_state_the_answers_and_what_was_published(filled, results):
    row = line(filled["table_2"], "1 %", "crops, all of them")
    own = answer(results, "crops", patch="3x3", certificate="placement")
    (number,) = row.numbers
    assert (number.measured, number.low, number.high) == (
        own["certified_accuracy"],
        own["certified_low"],
        own["certified_high"],
    )
    assert number.reported is None and number.difference is None and row.guarantee == "deterministic"
    drs = line(filled["table_2"], "1 %", "DRS columns")
    (number,) = drs.numbers
    assert number.reported == 0.627 and drs.defense == "bandnet4-digits-quick"
    assert number.difference == pytest.approx(
        (number.measured - 0.627, number.low - 0.627, number.high - 0.627), abs=1e-12
    )
    assert line(filled["table_2"], "1 %", "PatchGuard on DRS").note == (
        "published only; pixels by our rounding rule; the paper gives the fraction only"
    )


def test_infeasible_lines_name_the_lead_and_unreachable_numbers_are_marked(filled):
    row = line(filled["table_4"], "6:1", "crops, p_c, n = 128")
    assert not row.feasible and "infeasible: needs a lead of" in row.note and "128 are drawn" in row.note
    assert "not reachable with the paper's literal formula" in row.note
    assert cells(row, filled["table_4"])[1].startswith("infeasible")


def test_worst_case_is_the_lowest_line_and_the_union_image_by_image(filled, results):
    """Oracle: a loop over images and shapes."""
    shapes = ("5x5", "8x3", "12x2", "3x8", "2x12", "7x7")
    lowest = line(filled["table_4"], "worst: lowest line above", "crops, all of them").numbers[0]
    assert lowest.measured == min(
        answer(results, "crops", patch=patch, certificate="placement")["certified_accuracy"] for patch in shapes
    )
    images = results["crops"].per_image().to_pylist()
    survivors = 0
    for image in images:
        right = image["prediction/top_class/all"] == image["label"]
        survivors += right and all(image[f"certified/placement/{patch}/top_class/all"] for patch in shapes)
    union = line(filled["table_4"], "worst: image by image", "crops, all of them").numbers[0]
    assert union.measured == survivors / 40 and (union.low, union.high) == pytest.approx(wilson_interval(survivors, 40))
    columns = line(filled["table_4"], "worst: image by image", "DRS columns").numbers[0]
    least = line(filled["table_4"], "worst: lowest line above", "DRS columns").numbers[0]
    assert columns.measured <= least.measured and least.reported == 0.175


def test_times_are_those_of_the_views_that_vote(filled):
    every = line(filled["table_1"], "crops, p_c, n = 128").numbers[2]
    assert every.measured == pytest.approx(1000 * 6.0 / 40)
    # The simulated voting of "draws" was one of a network that scores each view for itself.
    drawn = line(filled["figure_3"], "128", "p_c").numbers[1]
    assert drawn.measured == pytest.approx(1000 * 6.0 / 40 * 128 / 529)
    assert line(filled["figure_3"], "all crops", "placement").numbers[1].measured == pytest.approx(150)


def test_scatter_is_that_of_the_same_draw(suite, results):
    summary = pd.DataFrame(
        {
            "certificate": "random_crops_reported",
            "patch": "5x5",
            "draws": ["with replacement", "without replacement"],
            "num_draws": 128,
            "min_confidence": 0.95,
            "flip_votes_interval": [0.0081, 0.5],
            "flip_votes_variance": [0.004, 0.5],
            "confidence_interval": [0.0079, 0.5],
            "confidence_variance": [0.0062, 0.5],
        }
    )
    (table,) = fill_tables(
        [table for table in suite.tables if table.name == "table_6"], results, {}, {"draws": summary}
    )
    row = line(table, "128", "with replacement")
    assert [number.measured for number in row.numbers] == [0.0081, 0.004, 0.0079, 0.0062]
    assert [number.reported for number in row.numbers] == [0.008, 0.004, 0.008, 0.005]
    assert cells(row, table) == ["0.8", "0.81", "0.4", "0.4", "0.8", "0.79", "0.5", "0.62"]
    assert all(number.measured is None for number in line(table, "64", "with replacement").numbers)


def test_what_was_not_measured_says_why(filled):
    row = line(filled["figure_2"], "10", "without position", "placement")
    assert row.note == f"not measured: {LOST}" and cells(row, filled["figure_2"]) == ["–", "–"]


def test_other_images_than_the_papers_form_no_difference(suite, results, tmp_path):
    recipe = suite.experiment("columns").build()
    part = simulated.simulated_part(recipe.views, 20, score_floor=0.1)
    study = simulated.make_study(recipe.views, part, recipe.study, recipe.name, dataset="digits")
    digits = results | {"columns": simulated.write(study, tmp_path / "columns")}
    table = next(table for table in fill_tables(suite.tables, digits, {}) if table.table.name == "table_2")
    (number,) = line(table, "1 %", "DRS columns").numbers
    assert number.reported == 0.627 and number.measured is not None and number.difference is None
    assert number_words(number)[2] == "–"


def test_percent_and_milliseconds_as_words():
    number = Comparison(metric="clean", reported=0.884, measured=0.9, low=0.85, high=0.93, comparable=True)
    assert number_words(number) == ("88.4", "90.0 [85.0, 93.0]", "+1.6 [-3.4, +4.6]")
    assert number_words(dataclasses.replace(number, reported=0.5283))[0] == "52.83"
    assert number_words(dataclasses.replace(number, reported=0.51))[0] == "51.0"
    assert number_words(Comparison(metric="milliseconds", reported=17.5)) == ("17.5", "–", "–")
    assert number_words(Comparison(metric="certified", measured=0.0, low=0.0, high=0.1)) == (
        "–",
        "0.0 [0.0, 10.0]",
        "–",
    )


def test_latex_is_whole_and_escaped(filled):
    for table in filled.values():
        text = latex(table)
        for environment in ("table", "tabular"):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
        depth = 0
        for character in re.sub(r"\\[{}\\]", "", text):
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        assert text.count("$") % 2 == text.count(r"\$") % 2
        plain = re.sub(r"\$[^$]*\$|\\label{.*}", "", text)
        assert not re.search(r"(?<!\\)[%#_^~]", plain)
        layout = re.search(r"\\begin{tabular}{([lr]+)}", text)[1]
        body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        lines = [row for row in body.split("\\\\\n") if row.strip()]
        assert len(lines) == len(table.rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in lines} == {len(layout) - 1}
        assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule"))


def test_latex_compiles_and_fits_on_its_page(filled, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex: install texlive-latex-base and texlive-latex-recommended")
    found = subprocess.run(["kpsewhich", "booktabs.sty", "graphicx.sty"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("pdflatex without booktabs or graphicx: install texlive-latex-recommended")
    packages = r"\usepackage[utf8]{inputenc}\usepackage{booktabs}\usepackage{graphicx}"
    text = "".join(latex(table) for table in filled.values())
    (tmp_path / "all.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}", encoding="utf-8"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "too large for page" not in done.stdout
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


def test_latex_text_escapes_every_special_character():
    assert latex_text(r"50 % of a_b & c#1 ~ {x} \ ^ $") == (
        r"50 \% of a\_b \& c\#1 \textasciitilde{} \{x\} \textbackslash{} \textasciicircum{} \$"
    )
    assert latex_text("p_c ≥ 0.95, 45°, –") == r"$p_c$ $\geq$ 0.95, 45$^\circ$, --"


@pytest.fixture(scope="module")
def report(suite, results, tmp_path_factory):
    missing = {experiment.name: LOST for experiment in suite.experiments if experiment.name not in results}
    return SuiteReport(
        title=suite.title,
        source=suite.source,
        headline=suite.headline,
        tables=suite.tables,
        figures=suite.figures,
        results=results,
        scatters={},
        networks=network_runs(results, {}, {}),
        missing=missing,
        notes=suite.notes,
        settings={"edition": "quick"},
    )


def test_folder_holds_report_tables_and_figures_and_repeats_to_the_same_bytes(report, suite, tmp_path):
    written = write_suite(tmp_path / "rc", report)
    folder = tmp_path / "rc"
    names = {table.name for table in suite.tables}
    assert {path.stem for path in (folder / "tables").glob("*.csv")} == names
    assert {path.stem for path in (folder / "tables").glob("*.tex")} == names
    assert {"figure_3_certified.png", "figure_3_certified.svg", "figure_3_time.png"} <= {
        path.name for path in (folder / "figures").iterdir()
    }
    frame = pd.read_csv(folder / "tables" / "table_5.csv")
    assert len(frame) == 12 and set(frame["drawn crops"]) == {64, 128, 256, 512}
    assert frame["certified_reported"].dropna().between(0, 1).all()
    np.testing.assert_allclose(
        frame["certified_difference"], frame["certified_measured"] - frame["certified_reported"], atol=1e-12
    )
    html = (folder / "report.html").read_text()
    assert re.findall(r"url\(|@import|https?://", re.sub(r"data:[^\"]*", "", html)) == []
    assert_closed(html)
    first_screen = html.partition("<nav>")[0]
    assert "of 40 images" in first_screen and "Attacked" in first_screen and LOST in first_screen
    assert "Quick edition" in first_screen and "one-pass networks" in first_screen
    markdown = (folder / "report.md").read_text()
    for table in written:
        assert table.table.title in html.replace("&#39;", "'") and table.table.title in markdown
    rows = [
        text for text in markdown.partition("## Table 1")[2].partition("## Table 2")[0].splitlines() if text[:1] == "|"
    ]
    assert len(rows) == 2 + len(written[0].rows) and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    summary = json.loads((folder / "suite.json").read_text())
    assert summary["studies"]["crops"]["result_id"] == report.results["crops"].result_id
    assert set(summary["missing"]) == set(report.missing)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    write_suite(folder, report)
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_nothing_measured_is_refused_before_anything_is_written(report, tmp_path):
    with pytest.raises(StudyError, match=LOST):
        write_suite(tmp_path / "rc", dataclasses.replace(report, results={}))
    assert not (tmp_path / "rc").exists()


CHECKPOINT = {
    "classifier": {"network": "crop-network", "width": 0.5},
    "provenance": {
        "training": {"epochs": 20, "views_per_image": 0},
        "dataset": {"name": "cifar10-jpeg", "split": "train"},
    },
}


def test_networks_and_both_wall_times_stand_beside_the_tables(report, results, tmp_path):
    runs = network_runs(results, {"draws": CHECKPOINT}, {})
    (crops,) = [run for run in runs if "crops" in run.experiments]
    assert crops.experiments == ("crops", "draws") and crops.network == "crop-network, width 0.5"
    assert crops.training == "20 epochs on cifar10-jpeg (train), all views an image and step"
    asked = len(results["crops"].answers) + len(results["draws"].answers)
    assert crops.model_words == "9.0 s for 40 images × 529 views" and f" for {asked} questions" in crops.answer_words
    write_suite(tmp_path / "rc", dataclasses.replace(report, networks=runs))
    for name in ("report.html", "report.md"):
        first_screen = (tmp_path / "rc" / name).read_text().partition("Table 1")[0]
        assert "crop-network, width 0.5, trained 20 epochs on cifar10-jpeg" in first_screen
        assert crops.model_words in first_screen and crops.answer_words in first_screen
    assert networks_table(runs).row_count == len(runs) == len({name for run in runs for name in run.experiments}) - 1


def test_terminal_shows_every_line(filled):
    tables = console_tables(list(filled.values()))
    assert [table.row_count for table in tables] == [len(table.rows) for table in filled.values()]


def test_figures_draw_measured_beside_reported(filled, suite):
    drawn = {figure.name: figure for figure in paper_figures(suite.figures, list(filled.values()))}
    draws = drawn["figure_3_certified"]
    measured, reported = draws.lines
    assert measured.x == reported.x == (64.0, 128.0, 256.0, 512.0) and reported.y == (0.51, 0.523, 0.542, 0.55)
    assert measured.guarantee == "heuristic" and [level.guarantee for level in draws.level] == ["deterministic"]
    assert not drawn["figure_3_time"].percent and drawn["figure_3_time"].lines[0].y[0] < 150


def test_clean_and_certified_measured_and_reported_look_different(suite, results):
    """Colour tells measured from reported, the marker's face clean from certified, the stroke both at once."""
    figure = PaperFigure(
        name="f", number="Table 5", table="table_5", caption="c", x="drawn crops", x_label="crops",
        metrics=("certified", "clean"), where={"draw": ("with replacement",), "p_c": ("as reported",)},
    )  # fmt: skip
    (data,) = paper_figures([figure], fill_tables(suite.tables, results, {}))
    assert [line.label for line in data.lines] == [
        f"{which}, {metric}" for which in ("measured", "reported") for metric in ("certified", "clean")
    ]
    styles = [_style(line, colour) for line, colour in zip(data.lines, _colours(data.lines), strict=True)]
    looks = {(style["color"], style["linestyle"], style["marker"], style["markerfacecolor"]) for style in styles}
    assert len(looks) == 4 and all(style["marker"] for style in styles)
    # Without colours, as print and the colour blind see it.
    assert len({(str(look[1]), look[2], look[3] == "white") for look in looks}) == 4
    drawing = _draw_lines(data)
    bands = drawing.axes[0].collections
    assert len(bands) == 2 and all(band.get_edgecolor().size for band in bands)
    assert "(% of images)" in drawing.axes[0].get_ylabel()


def test_figures_are_drawn_again_from_stored_tables(filled, suite):
    again = []
    for table in filled.values():
        text = io.StringIO(table.frame().to_csv(index=False))
        frame = pd.read_csv(text, dtype=dict.fromkeys(table.table.row_names, str), float_precision="round_trip")
        again.append(read_filled(table.table, frame))
        pd.testing.assert_frame_equal(again[-1].frame(), table.frame())
    assert paper_figures(suite.figures, again) == paper_figures(suite.figures, list(filled.values()))
    with pytest.raises(StudyError, match="the file lacks side, input"):
        read_filled(filled["figure_2"].table, filled["table_3"].frame())


def table_of(*rows):
    return PaperTable(
        name="t", number="Table 2", title="t", source=RC, dataset="cifar10", row_names=("a",), metrics=("certified",),
        rows=rows,
    )  # fmt: skip


def test_lines_that_make_no_sense_are_refused(results):
    question = {"experiment": "crops", "certificate": "placement", "patches": ("5x5",)}
    with pytest.raises(StudyError, match="asks nothing"):
        PaperRow(labels=("a",))
    with pytest.raises(StudyError, match="without a certificate"):
        PaperRow(labels=("a",), experiment="crops")
    with pytest.raises(StudyError, match="2 patches, but worst is None"):
        PaperRow(labels=("a",), **question | {"patches": ("5x5", "2x2")})
    with pytest.raises(StudyError, match="num_draws, replacement and min_confidence together"):
        PaperRow(labels=("a",), **question, num_draws=3)
    with pytest.raises(StudyError, match="has 2 labels"):
        table_of(PaperRow(labels=("a", "b"), **question))
    with pytest.raises(StudyError, match="did not ask what the line a needs: placement at 4x9"):
        fill_tables([table_of(PaperRow(labels=("a",), **question | {"patches": ("4x9",)}))], results, {})
    with pytest.raises(StudyError, match="different published numbers fit"):
        fill_tables([table_of(PaperRow(labels=("a",), published={"defense": "crop"}))], results, {})


def test_a_figure_without_two_measured_points_is_not_drawn(results):
    table = fill_tables(
        [table_of(PaperRow(labels=("1",), experiment="crops", certificate="placement", patches=("5x5",)))], results, {}
    )
    figure = PaperFigure(name="f", number="Figure", table="t", caption="c", x="a", x_label="x", metrics=("certified",))
    assert paper_figures([figure], table) == []


def test_a_study_of_other_settings_is_named(suite, results):
    broken = dataclasses.replace(
        results["crops"], identity=results["crops"].identity | {"study": {"patches": ["5x5"], "colour": "red"}}
    )
    with pytest.raises(StudyError, match="of another version"):
        fill_tables(suite.tables, results | {"crops": broken}, {})
    assert isinstance(results["crops"], StudyResult) and StudyConfig()
