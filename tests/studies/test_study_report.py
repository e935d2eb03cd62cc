import dataclasses
import re

import pytest
from studies import simulated
from studies.pages import Page, assert_closed

from patchcert.geometry import CropViews
from patchcert.studies import StudyConfig, StudyResult, first_settings, write_report
from patchcert.studies.closer_writing import CloserLook
from patchcert.studies.headline import strongest_theorem
from patchcert.studies.report import render
from patchcert.studies.wording import patch_words


@pytest.fixture(scope="module")
def report(tmp_path_factory, results):
    folder = tmp_path_factory.mktemp("report") / "both"
    write_report(folder, results)
    return folder


def test_first_screen_says_what_was_attacked_what_is_guaranteed_and_how_many_survive(report, results):
    text = Page((report / "report.html").read_text(encoding="utf-8")).text
    first_screen = text[: text.index("Certified accuracy by patch")]
    for result in results:
        (row,) = strongest_theorem(result.answers, "5x5").itertuples()
        assert row.certificate == "placement"
        assert f"{round(row.certified_accuracy * 300)} of 300 images survive Proved: no 5x5 patch" in first_screen
    assert "300 test images of cifar10, 32×32 native pixels" in first_screen
    assert "deterministic" in first_screen and "A theorem: no patch of this shape" in first_screen
    assert "heuristic" in first_screen.lower() and "formula without proof" in first_screen
    assert "questions are infeasible" in first_screen


def test_html_is_self_contained_and_has_no_script(report):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 5 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    text = (report / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert re.findall(r"url\(|@import|https?://", text) == []


def test_browsers_are_told_to_load_and_run_nothing(report, results):
    assert_closed((report / "report.html").read_text(encoding="utf-8"))
    assert_closed(results[0].folder.read("report.html").decode())


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)<script>",
        "<style>*{}<style>",
        '" onload="alert(1)',
        "<img src=https:example.com onerror=alert(1)>",
        "{{ 7 * 7 }}",
    ],
)
def test_a_name_adds_nothing_to_what_the_page_may_do(name, results):
    subject = dataclasses.replace(results[0].subject, defense=name)
    named = dataclasses.replace(results[0], subject=subject, answers=results[0].answers.assign(defense=name))
    _, html = render([named], [], CloserLook())
    assert_closed(html)
    assert name in Page(html).text


def test_heuristics_are_labelled_wherever_they_are_printed(report):
    markdown = (report / "report.md").read_text(encoding="utf-8")
    for line in markdown.splitlines():
        if line.startswith("|") and "p_c" in line and "---" not in line:
            assert "heuristic" in line, line
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("p_c as reported") <= page.text.count("heuristic")


def test_markdown_shows_every_row_and_existing_figures(report, results):
    markdown = (report / "report.md").read_text(encoding="utf-8")
    tables = markdown[markdown.index("## All questions") : markdown.index("## Words")]
    assert sum(line.startswith("| ") for line in tables.splitlines()) == sum(len(r.answers) + 2 for r in results)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables.splitlines() if line.startswith("|")}
    assert widths == {9}
    images = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(images) == 5 and all((report / name).is_file() for name in images)
    assert "model digest | " + "cd" * 32 in markdown and "environment › commit | 0123abc" in markdown


def test_published_numbers_stand_beside_ours(report):
    markdown = (report / "report.md").read_text(encoding="utf-8")
    (column,) = re.findall(r"^\| column4-cifar10 \| 5x5 \| counting .*$", markdown, re.MULTILINE)
    assert "| 57.8 |" in column and "| 83.9 |" in column and "Levine & Feizi 2020, Table 4" in column
    assert "5,000 of the 10,000 test images" in column
    crops = re.findall(r"^\| crop10-cifar10 \| 5x5 \| p_c as reported \(heuristic\) .*$", markdown, re.MULTILINE)
    assert any("128 with replacement, p_c ≥ 0.95" in row and "| 52.3 |" in row for row in crops)
    assert any(
        "512 without replacement, p_c ≥ 0.95" in row and "infeasible" in row and "| 0.8 |" in row for row in crops
    )


def test_names_are_escaped(tmp_path, column_study):
    subject = dataclasses.replace(column_study.subject, defense="<b>a|b<i>")
    result = simulated.write(column_study, tmp_path / "study", subject=subject)
    page = Page(result.folder.read("report.html").decode())
    assert "b" not in page.tags and "i" not in page.tags and "<b>a|b<i>" in page.text


@pytest.mark.usefixtures("blank_figures")
def test_other_images_and_quarantine_are_warned_of(tmp_path, column_study, results):
    subject = dataclasses.replace(
        column_study.subject, defense="other", split="validation", split_digest="ef" * 32, num_quarantined=4
    )
    other = simulated.write(column_study, tmp_path / "other", subject=subject)
    write_report(tmp_path / "both", [results[0], other])
    text = Page((tmp_path / "both" / "report.html").read_text(encoding="utf-8")).text
    assert "several sets of images" in text
    assert "other — not comparable: other images than cifar10 test (300 images, abababababab)" in text
    assert "other: 4 images could not be read; they count as wrong in every accuracy" in text
    assert "of 304 images" in text


def test_a_study_without_theorems_promises_none(tmp_path):
    views = CropViews(image_size=(12, 12), crop_size=4)
    config = StudyConfig(patches=("1x1", "2x2"), certificates=("random_crops_reported",), num_draws=(32,))
    study = simulated.make_study(views, simulated.simulated_part(views, 40), config, "crop4")
    result = simulated.write(study, tmp_path / "study")
    text = Page(result.folder.read("report.html").decode()).text
    assert "are called certified against a 2x2 patch (2.8 % of the image) by a formula without proof" in text
    assert "can change the prediction, and the prediction is right" not in text and "survive" not in text


def test_headlines_take_the_first_setting_not_the_best(results):
    answers = results[0].answers
    kept = first_settings(answers)
    assert set(kept["vote_threshold"]) == {0.3} and len(kept) == 2 * 6
    (headline,) = strongest_theorem(answers, "5x5").to_dict("records")
    assert headline["vote_threshold"] == 0.3
    best = answers.query("patch == '5x5'")["certified_accuracy"].max()
    assert best > headline["certified_accuracy"], "the simulated votes have a better threshold, which is not taken"


def test_report_opens_from_stored_results_alone(tmp_path, results, report):
    stored = [StudyResult.open(result.folder) for result in results]
    write_report(tmp_path / "again", stored)
    for name in ("report.html", "report.md", "answers.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_patches_are_named_in_words():
    assert patch_words("12x2") == "12×2"
    assert patch_words("5x5@45deg-exact") == "5×5 turned by 45°, exact footprint"
    assert patch_words("box-12px-ab12cd") == "box-12px-ab12cd"
