"""Suites as data: every edition builds, every line of every table is asked by its study, misses help."""

import dataclasses

import pytest

from patchcert.errors import RecipeError
from patchcert.geometry import Patch
from patchcert.studies.paper_tables import answers_line, published_number
from patchcert.studies.questions import questions
from patchcert.suites import SUITES, find_suite, names_suite

EDITIONS = [
    (name, networks, quick)
    for name in SUITES
    for networks in ("one-pass", "published")
    for quick in (True, False)
    if name != "rc-imagenet" or (networks, quick) == ("published", False)
]


@pytest.fixture(scope="module")
def built():
    return {edition: SUITES[edition[0]].build(*edition[1:]) for edition in EDITIONS}


@pytest.mark.parametrize("edition", EDITIONS, ids=str)
def test_every_line_is_asked_by_the_study_of_its_experiment(built, edition):
    suite = built[edition]
    asked = {}
    for experiment in suite.experiments:
        recipe = experiment.build()
        warnings = []
        asked[experiment.name] = questions(
            recipe.study, recipe.voted_views, recipe.prediction.score_floor or None, on_warning=warnings.append
        )
        assert warnings == [], f"{experiment.name} asks twice or in vain"
    assert len(asked) == len(suite.experiments)
    size = suite.experiments[0].build().views.image_size
    for table in suite.tables:
        for row in table.rows:
            for text in row.patches:
                patch = Patch.parse(text, size)
                found = [question for question in asked[row.experiment] if answers_line(question, row, patch)]
                assert len(found) == 1, f"{table.number}, {row.labels} at {text}"
            assert row.experiment in {"", *asked}
    for experiment, patch, _ in suite.headline:
        assert patch in {question.patch.label for question in asked[experiment]}


@pytest.mark.parametrize("edition", EDITIONS, ids=str)
def test_published_numbers_are_found_and_none_is_ambiguous(built, edition):
    for table in built[edition].tables:
        found = {
            (row.labels, metric): published_number(table, row, metric) for row in table.rows for metric in table.metrics
        }
        for row in table.rows:
            numbers = [found[row.labels, metric] for metric in table.metrics if found[row.labels, metric]]
            # A line that nobody else measures stands there for its published number alone.
            assert row.experiment or numbers, f"{table.number}: {row.labels} is neither measured nor published"
            assert row.published is not None or not numbers


def test_known_numbers_stand_in_their_lines(built):
    """Origin: Tables 2, 4 and 5 of the randomized-cropping paper, Tables 2 and 6 of DRS."""
    tables = {table.name: table for table in built["rc-cifar10", "published", False].tables}

    def reported(table, *labels, metric="certified"):
        (row,) = [row for row in table.rows if row.labels == labels]
        return published_number(table, row, metric).value

    assert reported(tables["table_2"], "2 %", "crops, p_c, n = 128") == 0.552
    assert reported(tables["table_2"], "3 %", "DRS columns") == 0.421
    assert reported(tables["table_4"], "worst: lowest line above", "PatchGuard on DRS") == 0.182
    assert reported(tables["table_5"], "512", "without replacement", "as reported") == 0.008
    assert reported(tables["table_5"], "128", "with replacement", "as reported", metric="clean") == 0.896
    assert reported(tables["table_1"], "crops, p_c, n = 128", metric="clean") == 0.884
    smoothing = {table.name: table for table in built["drs-mnist", "published", False].tables}
    columns, structures, samples = (smoothing[name] for name in ("columns", "structures", "samples"))
    assert reported(columns, "2", "0.3") == 0.5283
    assert reported(structures, "10 random pixels, sampled", "–", metric="clean") == 0.749
    assert reported(smoothing["rows"], "2", "0.3") == 0.4535 and reported(smoothing["blocks"], "8", "0.2") == 0.44
    assert reported(smoothing["several_blocks"], "two blocks, best of its table", "–", metric="clean") == 0.9229
    assert reported(smoothing["random_pixels"], "5") == 0.0804
    assert reported(samples, "6", "sampled columns") == 0.1648 and reported(samples, "6", "all columns") == 0.2233


def test_quick_editions_are_filed_apart_and_models_are_shared_where_equal(built):
    for (_, _, quick), suite in built.items():
        names = [experiment.build().name for experiment in suite.experiments]
        assert all(name.endswith("-quick") == quick for name in names)
        models = {}
        for experiment in suite.experiments:
            recipe = experiment.build()
            model = (recipe.data, recipe.views, recipe.classifier, recipe.training)
            assert models.setdefault(recipe.name, model) == model, f"{recipe.name} names two models"


def test_changes_reach_the_recipe(built):
    suite = built["drs-mnist", "one-pass", True]
    rows = suite.experiment("rows2").build()
    assert rows.views.axis == "row" and rows.data.limit == 3000 and rows.training.epochs == 8
    bare = built["rc-cifar10", "published", False].experiment("crops8-no-position").build()
    assert bare.classifier.encoding.positional_bound == 0 and bare.classifier.encoding.mean
    with pytest.raises(TypeError):
        dataclasses.replace(suite.experiments[0], changes={"training": {"epoch": 3}}).build()


def test_misses_name_the_nearest():
    assert names_suite("rc-cifar10") and names_suite("rc-cifar") and not names_suite("crop10-cifar10")
    with pytest.raises(RecipeError, match=r"no suite 'rc-cifar'\. Did you mean rc-cifar10\?\n  Known: .*drs-mnist"):
        find_suite("rc-cifar")
    with pytest.raises(RecipeError, match=r"no quick edition.*\n.*rc-cifar10 --quick"):
        find_suite("rc-imagenet").build("published", True)
    with pytest.raises(RecipeError, match="no one-pass networks"):
        find_suite("rc-imagenet").build("one-pass", False)


def test_tables_whose_published_values_are_not_at_hand_say_so(built):
    tables = {table.name: table for table in built["drs-mnist", "published", False].tables}
    assert list(tables)[3:] == ["rows", "blocks", "several_bands", "several_blocks", "random_pixels"]
    for name in list(tables)[3:]:
        assert "at hand" in tables[name].note
        unknown = [row for row in tables[name].rows if published_number(tables[name], row, "certified") is None]
        assert all(row.experiment for row in unknown) and (unknown or name == "random_pixels")
    thresholds = {row.labels[1] for row in tables["several_bands"].rows}
    assert thresholds == {"0.2", "0.3", "0.4"}
    one_pass = built["drs-mnist", "one-pass", False]
    assert not any("several" in table.name for table in one_pass.tables) and "--networks published" in one_pass.notes[0]
