"""Each defense of the papers from images to a study, through the command line, on a few digits."""

import json

import pandas as pd
import pytest

from patchcert.cli import main
from patchcert.votes import VoteTable

SMALL = (
    "--data.limit", "60", "--data.validation-size", "10", "--training.epochs", "1", "--training.batch-size", "50",
    "--classifier.width", "0.125", "--resources.images-per-part", "20", "--tracking.mode", "off",
    "--study.patches", "1x1", "3x3",
)  # fmt: skip
SAMPLES = ("--prediction.num-samples", "60", "--study.num-selection", "10", "--study.num-estimation", "50", "20")
NUM_VIEWS = {
    "columns4x2-digits": 28,
    "rows4x2-digits": 28,
    "blocks16x2-digits": 6,
    "bandnetrow8-digits": 32,
    "blocknet28-digits": 1024,
}


@pytest.fixture
def run(ray_cluster, tmp_path, monkeypatch):
    """Runs a command in a work folder of its own; gives the rows of the only study and its vote table."""
    monkeypatch.setenv("PATCHCERT_WORK", str(tmp_path / "work"))

    def command(*words):
        assert main(words) == 0
        (study,) = (tmp_path / "work" / "studies").glob("*/answers.parquet")
        (table,) = (tmp_path / "work" / "votes").iterdir()
        return pd.read_parquet(study), VoteTable.open(str(table))

    return command


@pytest.mark.slow
@pytest.mark.parametrize("name", NUM_VIEWS)
def test_sound_defenses_end_in_counting_and_placement(run, name):
    answers, table = run("run", name, *SMALL)
    assert set(answers["certificate"]) == {"counting", "placement"}
    assert set(answers["vote_rule"]) == {"top_class", "threshold"}
    assert (answers["num_views"] == NUM_VIEWS[name]).all() and table.num_views == NUM_VIEWS[name]
    assert (answers["num_images"] == 60).all()
    assert (answers["certified_accuracy"] <= answers["clean_accuracy"]).all()


@pytest.mark.slow
def test_sparse_ablation_ends_in_a_sampled_study_and_resumes_to_the_same_bytes(run, tmp_path, capsys):
    answers, table = run("run", "sparse40-digits", *SMALL, *SAMPLES)
    assert set(answers["certificate"]) == {"sampled"} and set(answers["guarantee"]) == {"probabilistic"}
    assert set(answers["num_draws"]) == {50, 20} and (answers["min_confidence"] == 0.95).all()
    assert table.identity["views"] == {
        "kind": "sampled",
        "views": {"kind": "pixel", "image_size": [32, 32], "num_pixels": 40},
        "num_samples": 60,
        "seed": 0,
    }
    parts = sorted((tmp_path / "work" / "votes").glob("*/part-*"))
    before = [part.read_bytes() for part in parts]
    assert len(parts) == 3
    parts[1].unlink()
    (parts[0].parent / "_SUCCESS.json").unlink()
    assert main(["vote", "sparse40-digits", *SMALL, *SAMPLES]) == 0
    assert [part.read_bytes() for part in parts] == before
    # Another seed is another table, of the same model.
    assert main(["vote", "sparse40-digits", *SMALL, *SAMPLES, "--prediction.sample-seed", "1"]) == 0
    tables = list((tmp_path / "work" / "votes").iterdir())
    seeds = {json.loads((folder / "_SUCCESS.json").read_text())["identity"]["views"]["seed"] for folder in tables}
    assert seeds == {0, 1}
    # The report names samples as what they are.
    (report,) = (tmp_path / "work" / "studies").glob("*/report.md")
    assert "60 samples of 40 random pixels" in report.read_text() and "sampled smoothing" in report.read_text()


@pytest.mark.slow
def test_randomized_columns_are_sampled_from_the_votes_of_all_columns(run):
    samples = ("--study.certificates", "counting", "sampled", "--study.num-selection", "50")
    answers, table = run("run", "column8-digits", *SMALL, *samples, "--study.num-estimation", "500")
    assert table.num_views == 32
    sampled = answers[answers["certificate"] == "sampled"]
    assert set(sampled["patch"]) == {"1x1", "3x3"} and set(sampled["num_draws"]) == {500}
    assert set(sampled["guarantee"]) == {"probabilistic"} and set(sampled["draws"]) == {"with replacement"}


@pytest.mark.slow
def test_one_pass_bands_of_any_recipe_turn_into_rows(run):
    _, table = run("run", "bandnet8-digits", *SMALL, "--views.axis", "row")
    assert table.views.describe() == "row bands of height 8, 32 views of 32x32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparse40-digits", "--prediction.num-samples", "0"], "Set --prediction.num-samples 11000"),
        (["sparse40-digits", "--prediction.num-samples", "100"], "but 100 views of each image are sampled"),
        (["sparse40-digits", "--training.views-per-image", "0"], "views_per_image is 0 for all views"),
        (["sparse40-digits", "--study.certificates", "placement"], "placement needs the votes of all views"),
        (["sparse2000-digits"], "2000 pixels were asked for, but the image has 1024"),
        (["columns4x2-digits", "--prediction.num-samples", "9"], "Leave it at 0"),
        (["blocks1x3-mnist"], "80,007,984 views of each image, but at most 131,072 can be voted on"),
        (["blocks4-mnist"], "Did you mean block"),
    ],
)
def test_what_cannot_be_sampled_or_listed_is_refused_at_once(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err
