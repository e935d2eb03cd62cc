"""What a suite run decides before it computes: recipes, edition, lanes, places."""

import dataclasses

import pytest

from patchcert.console import Terminal
from patchcert.errors import RecipeError
from patchcert.pipeline import RunOptions
from patchcert.stages.resources import Resources
from patchcert.suite_run import SuiteOptions, SuiteRun, chosen_recipes, slots
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
