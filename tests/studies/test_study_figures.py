import dataclasses
import os
import pickle
import subprocess
import sys
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from studies import simulated

from patchcert.studies import combine, summarise
from patchcert.studies.figures import (
    PALETTE,
    accuracy_bars,
    figures_of,
    num_draws_figure,
    patch_area_figure,
    save,
    vote_threshold_figure,
)


@pytest.fixture(scope="module")
def column_answers(results):
    return results[0].answers


@pytest.fixture(scope="module")
def crop_answers(results):
    return results[1].answers


def line_of(figure, **wanted):
    (line,) = [line for line in figure.lines if all(getattr(line, name) == value for name, value in wanted.items())]
    return line


def test_patch_area_curve_shows_squares_at_the_first_setting(column_answers):
    figure = patch_area_figure(column_answers)
    assert figure.x_label == "patch area (% of the image)" and "%" in figure.y_label
    assert {line.certificate for line in figure.lines} == {"counting", "placement"}
    line = line_of(figure, certificate="placement")
    assert line.label == "placement, score ≥ 0.3" and line.guarantee == "deterministic"
    rows = column_answers.query("certificate == 'placement' and vote_threshold == 0.3 and patch != '12x2'")
    np.testing.assert_allclose(line.x, rows["patch_area"] / 1024)
    np.testing.assert_array_equal(line.y, rows["certified_accuracy"])
    np.testing.assert_array_equal(line.low, rows["certified_low"])
    np.testing.assert_array_equal(line.high, rows["certified_high"])
    assert [label for _, label in figure.patches] == ["1x1", "2x2", "3x3", "5x5", "7x7"]


def test_defenses_have_lines_of_their_own(column_answers, crop_answers):
    figure = patch_area_figure(combine([column_answers, crop_answers]))
    assert len(figure.lines) == 6
    assert (
        line_of(figure, defense="crop10-cifar10", certificate="counting").label == "crop10-cifar10: counting, top class"
    )
    heuristic = line_of(figure, certificate="random_crops_reported")
    assert heuristic.guarantee == "heuristic" and "heuristic" in heuristic.label and "128 draws" in heuristic.label


def test_threshold_curve_shows_certified_and_clean_in_order_of_the_threshold(column_answers):
    at_patch = column_answers[column_answers["patch"] == "5x5"]
    figure = vote_threshold_figure(at_patch, "5x5")
    assert {line.x for line in figure.lines} == {(0.2, 0.3, 0.4)}
    assert {line.certificate for line in figure.lines} == {"counting", "placement", "clean"}
    clean = at_patch.query("certificate == 'counting' and vote_rule == 'threshold'").sort_values("vote_threshold")
    np.testing.assert_array_equal(line_of(figure, certificate="clean").y, clean["clean_accuracy"])


def test_draw_curve_shows_both_ways_of_drawing_below_the_theorem(crop_answers):
    figure = num_draws_figure(crop_answers[crop_answers["patch"] == "5x5"], "5x5")
    assert {line.x for line in figure.lines} == {(64.0, 128.0, 256.0, 512.0)} and len(figure.lines) == 3
    without = line_of(figure, label="p_c as reported (heuristic), without replacement")
    assert without.feasible == (True, True, False, False) and without.y[2:] == (0, 0)
    (level,) = figure.level
    assert level.certificate == "placement" and level.label == "placement, all 529 views"


def test_bars_pair_clean_with_certified_for_each_way_of_voting(crop_answers):
    figure = accuracy_bars(crop_answers[crop_answers["patch"] == "5x5"], "5x5")
    assert [line.certificate for line in figure.lines] == [
        "clean",
        "counting",
        "placement",
        "clean",
        "random_crops_reported",
        "clean",
        "random_crops_exact",
    ]
    for line in figure.lines:
        assert line.low[0] <= line.y[0] <= line.high[0]


def test_theorems_about_a_draw_stand_between_theorem_and_heuristic(tmp_path):
    study = simulated.fresh_study()
    answers = summarise(study.parts, study.asked, study.subject)
    at_patch = answers[answers["patch"] == "2x2"]
    figure = num_draws_figure(at_patch, "2x2")
    fresh = line_of(figure, certificate="fresh_draw")
    assert fresh.guarantee == "probabilistic" and fresh.label == "fresh draw, with replacement"
    assert max(fresh.y) <= figure.level[0].y[0], "no draw proves more than all views do"
    bars = accuracy_bars(at_patch, "2x2")
    assert [line.label for line in bars.lines] == [
        "clean, top class",
        "placement",
        "fresh draw",
        "clean, 16 with replacement",
        "p_c as reported (heuristic)",
    ]
    assert len(save(figure, tmp_path)) == 2


def test_figures_without_data_are_left_out(column_answers, crop_answers):
    assert [figure.name for figure in figures_of(column_answers, "5x5")] == [
        "patch_area",
        "clean_and_certified",
        "vote_threshold",
    ]
    assert [figure.name for figure in figures_of(crop_answers, "5x5")] == [
        "patch_area",
        "clean_and_certified",
        "num_draws",
    ]
    single = column_answers.query("patch == '5x5' and vote_rule == 'top_class'")
    assert [figure.name for figure in figures_of(single, "5x5")] == ["clean_and_certified"]


def test_files_are_valid_deterministic_and_leave_matplotlib_as_it_was(tmp_path, crop_answers):
    settings = dict(matplotlib.rcParams)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for figure in figures_of(crop_answers, "5x5"):
            files = save(figure, tmp_path / folder)
            with Image.open(files["png"]) as image:
                image.verify()
                assert image.format == "PNG" and image.size[0] == round(3.4 * 200)
            assert xml.etree.ElementTree.parse(files["svg"]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert dict(matplotlib.rcParams) == settings
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_many_defenses_and_a_single_patch_can_be_drawn(tmp_path, column_answers):
    many = combine([column_answers.assign(defense=f"defense{i}") for i in range(len(PALETTE) + 2)])
    for figure in figures_of(many, "5x5"):
        save(figure, tmp_path)
    one = figures_of(column_answers.query("patch == '5x5'"), "5x5")
    assert "patch_area" not in {figure.name for figure in one}
    for figure in one:
        save(dataclasses.replace(figure, name=f"{figure.name}_one"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * (3 + 2)


_SAVE = """
import pickle, sys
from pathlib import Path
from patchcert.studies.figures import save
save(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
"""
_SETTINGS_FILE = "font.size: 30\naxes.facecolor: red\nsavefig.bbox: tight\nbackend: module://no_such_module\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "no-such-backend", "MATPLOTLIBRC": "settings"},
        {"MATPLOTLIBRC": "settings/matplotlibrc", "PYTHONWARNINGS": "error"},
        {"HOME": "home", "XDG_CONFIG_HOME": "home/.config"},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "TMPDIR": "/no/such/folder"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_no_setting_of_the_user_changes_a_figure(tmp_path, column_answers, variables):
    for folder in ("ours", "theirs", "settings", "home/.config/matplotlib"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("", "settings", "home/.config/matplotlib"):
        (tmp_path / folder / "matplotlibrc").write_text(_SETTINGS_FILE)
    # Neither is it read where it lies in the current folder and cannot even be decoded.
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\n")
    figure = patch_area_figure(column_answers)
    save(figure, tmp_path / "ours")
    (tmp_path / "figure").write_bytes(pickle.dumps(figure))
    command = [sys.executable, "-c", _SAVE, "figure", "theirs"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPL")}
    done = subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("patch_area.png", "patch_area.svg"):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_a_style_chosen_in_the_same_process_changes_no_figure_and_stays_chosen(tmp_path, column_answers):
    figure = patch_area_figure(column_answers)
    for folder, style in (("plain", {}), ("styled", {"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 7})):
        (tmp_path / folder).mkdir()
        with matplotlib.rc_context(style):
            save(figure, tmp_path / folder)
            assert all(matplotlib.rcParams[name] == value for name, value in style.items())
    for name in ("patch_area.png", "patch_area.svg"):
        assert (tmp_path / "styled" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
