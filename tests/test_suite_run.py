"""What a suite run decides before it computes: recipes, edition, lanes, places."""

import dataclasses

import pytest

from patchcert.console import Terminal
from patchcert.errors import CheckpointError, RecipeError
from patchcert.pipeline import RunOptions
from patchcert.stages.resources import Resources
from patchcert.suite_run import SuiteOptions, SuiteRun, chosen_recipes, named_models, slots
from patchcert.suites import SUITES


def suite(name="rc-cifar10"):
    return SUITES[name].build("one-pass", True)


def shorter(recipe):
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=1))


def test_overrides_reach_every_experiment_and_only_chooses_some():
    recipes = chosen_recipes(suite(), (), shorter)
    assert list(recipes) == [experiment.name for experiment in suite().experiments]
    assert {recipe.training.epochs for recipe in recipes.values()} == {1}
    assert list(chosen_recipes(suite(), ("columns", "draws"), shorter)) == ["columns", "draws"]
    with pytest.raises(RecipeError, match=r"rc-cifar10 has no experiment 'rows'\.\n  This edition has: crops, draws"):
        chosen_recipes(suite(), ("rows",), shorter)


def test_networks_follow_the_device_unless_named():
    assert SuiteOptions().chosen_networks("cuda") == "published"
    assert SuiteOptions().chosen_networks("cpu") == "one-pass"
    assert SuiteOptions(networks="published").chosen_networks("cpu") == "published"


@pytest.mark.parametrize(
    ("cluster", "resources", "expected"),
    [
        ({"CPU": 2.0}, Resources(), 2),
        ({"CPU": 16.0}, Resources(cpus_per_worker=4), 4),
        ({"CPU": 16.0}, Resources(workers=2, cpus_per_worker=3), 2),
        ({"CPU": 1.0}, Resources(workers=4), 1),
        ({"CPU": 64.0, "GPU": 4.0}, Resources(), 4),
        ({"CPU": 64.0, "GPU": 4.0}, Resources(workers=2), 2),
        ({"CPU": 64.0, "GPU": 4.0}, Resources(device="cpu"), 64),
    ],
)
def test_no_more_trainings_at_a_time_than_the_cluster_holds(cluster, resources, expected):
    assert slots(cluster, resources) == expected


def test_folder_is_named_by_what_is_asked_and_not_by_where_images_come_from(tmp_path):
    def folder(change):
        recipes = {name: change(recipe) for name, recipe in chosen_recipes(suite(), (), lambda same: same).items()}
        return str(SuiteRun(suite(), recipes, RunOptions(work=str(tmp_path)), Terminal()).folder())

    plain = folder(lambda recipe: recipe)
    assert plain.startswith(f"{tmp_path}/suites/rc-cifar10-")
    moved = folder(lambda recipe: dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source="/images")))
    assert moved == plain and folder(shorter) != plain


def test_plan_says_that_nothing_is_there_without_making_a_folder(tmp_path):
    run = SuiteRun(suite(), chosen_recipes(suite(), (), shorter), RunOptions(work=str(tmp_path / "w")), Terminal())
    assert {there for _, _, there in run.plan()} == {"–"}
    assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A checkpoint of the crops of rc-cifar10 --quick, of another width than the suite's."""
    from patchcert.data.storage import Folder
    from patchcert.models.checkpoint import initial_classifier, save_checkpoint

    recipe = suite().experiment("crops").build()
    classifier = initial_classifier(dataclasses.replace(recipe.classifier, width=0.1), recipe.views, 1, 10, seed=0)
    folder = tmp_path_factory.mktemp("narrow")
    save_checkpoint(classifier, Folder(folder), {})
    return str(folder)


def test_named_checkpoint_stands_for_every_experiment_of_its_model(tmp_path, narrow):
    recipes = chosen_recipes(suite(), (), lambda same: same)
    options = RunOptions(work=str(tmp_path / "w"))
    plain = SuiteRun(suite(), recipes, options, Terminal())
    run = SuiteRun(suite(), recipes, options, Terminal(), named_models(suite(), (f"crops={narrow}",)))
    widths = {name: recipe.classifier.width for name, recipe in run.recipes.items()}
    assert widths["crops"] == widths["draws"] == 0.1 and widths["columns"] == widths["crops8"] == 0.25
    assert str(run.folder()) != str(plain.folder())
    there = {name: what for name, _, what in run.plan()}
    assert there["crops"] == there["draws"] == "model" and there["columns"] == "–"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("crop=here",),
            r"--models: rc-cifar10 has no experiment 'crop'\.\n  Write EXPERIMENT=FOLDER; .* crops, draws",
        ),
        (("here",), "--models: 'here' names no checkpoint"),
        (("crops=",), "--models: 'crops=' names no checkpoint"),
    ],
)
def test_checkpoints_that_are_not_named_well_are_refused(words, message):
    with pytest.raises(RecipeError, match=message):
        named_models(suite(), words)


def test_checkpoints_that_cannot_serve_are_refused_before_any_work(tmp_path, narrow):
    recipes, options = chosen_recipes(suite(), (), lambda same: same), RunOptions(work=str(tmp_path / "w"))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        SuiteRun(suite(), recipes, options, Terminal(), {"crops": str(tmp_path)})
    with pytest.raises(RecipeError, match="two checkpoints are named for the one model of draws"):
        SuiteRun(suite(), recipes, options, Terminal(), {"crops": narrow, "draws": str(tmp_path)})
    assert not (tmp_path / "w").exists()
