"""Which trained model the settings of a recipe mean, without Ray and without training."""

import dataclasses
import sys

import pytest

from patchcert.console import Terminal
from patchcert.errors import CheckpointError
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.pipeline import Pipeline, RunOptions
from patchcert.recipes import find_recipe
from patchcert.stages.resources import Resources
from patchcert.tracking import TrackingConfig
from patchcert.trained_models import find_model, may_be_trained, training_key
from patchcert.workspace import Workspace, canonical_settings, settings_key

NETWORK = """
import {imported}
from torch import nn

def make(num_input_channels, view_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(num_input_channels * view_size[0] * view_size[1], num_classes))
"""


def options(work):
    return RunOptions(work=str(work), tracking=TrackingConfig(mode="off"))


@pytest.fixture
def recipe():
    recipe = find_recipe("column4-digits")
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, limit=60, validation_size=20),
        classifier=dataclasses.replace(recipe.classifier, width=0.125),
    )


@pytest.fixture
def pipeline(recipe, tmp_path):
    """A pipeline whose images are prepared, in a work folder without models."""
    pipeline = Pipeline(recipe, options(tmp_path / "work"), Terminal())
    pipeline.images = pipeline.prepare(["train", "test"])
    return pipeline


def with_training(recipe, **settings):
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **settings))


def other(pipeline, recipe, **options):
    """The same work folder, asked with another recipe."""
    return Pipeline(recipe, dataclasses.replace(pipeline.options, **options), Terminal())


def finish(pipeline, recipe, *, workers=1, name=None):
    """Leaves what a finished training of a recipe leaves: start weights of its seed in place of trained ones."""
    images = pipeline.images["train"]
    folder = pipeline.workspace.models(recipe.name).folder(name or training_key(recipe, images))
    classifier = initial_classifier(recipe.classifier, recipe.views, 1, 10, recipe.training.seed)
    provenance = {
        "recipe": recipe.name,
        "training": canonical_settings(recipe.training),
        "dataset": {"name": images.name, "split": images.split, "digest": images.digest},
        "class_names": list(images.class_names),
        "workers": workers,
    }
    save_checkpoint(classifier, folder, provenance)
    return folder


def test_each_setting_of_the_training_finds_its_own_model(pipeline, recipe):
    seeds = [with_training(recipe, seed=seed) for seed in (0, 1)]
    folders = [finish(pipeline, seed) for seed in seeds]
    assert [other(pipeline, seed).trained_model().uri for seed in seeds] == [folder.uri for folder in folders]


def test_settings_that_nobody_trained_are_refused_with_both_values_and_the_command(pipeline, recipe):
    folder = finish(pipeline, with_training(recipe, epochs=5, seed=1))
    finish(pipeline, with_training(recipe, epochs=7, seed=2, learning_rate=0.5))
    with pytest.raises(CheckpointError) as caught:
        other(pipeline, with_training(recipe, epochs=50)).trained_model()
    message = str(caught.value)
    differences = "training.epochs 5, training.seed 1; asked for: 50, 0 (1 others differ more)"
    assert f"the nearest, {folder}, has {differences}.\n" in message
    assert "\n  Train it first:  patchcert train RECIPE" in message
    assert f"\n  Or take the one that is there:  patchcert vote RECIPE --checkpoint {folder}" in message


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("classifier", {"width": 0.25}, "classifier.width 0.125; asked for: 0.25"),
        ("views", {"width": 5}, "views.width 4; asked for: 5"),
        ("views", {"stride": 2}, "views.stride 1; asked for: 2"),
        ("data", {"limit": 40}, "training images digits/train "),
        ("training", {"optimizer": "sgd"}, "training.optimizer adamw; asked for: sgd"),
    ],
)
def test_whatever_decides_about_the_weights_is_compared(pipeline, recipe, section, settings, words):
    finish(pipeline, recipe)
    changed = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **settings)})
    asked = other(pipeline, changed)
    if section == "data":
        asked.prepare(["train"])
    with pytest.raises(CheckpointError) as caught:
        asked.trained_model()
    assert words in str(caught.value)
    # Only what can vote on these views is offered.
    assert ("--checkpoint" in str(caught.value)) == (section in ("data", "training") or "stride" in settings)


def test_what_only_voting_and_asking_need_changes_no_model(pipeline, recipe):
    folder = finish(pipeline, recipe)
    changed = dataclasses.replace(
        recipe,
        prediction=dataclasses.replace(recipe.prediction, score_floor=0.2),
        study=dataclasses.replace(recipe.study, patches=("1x1",), seed=5),
    )
    assert other(pipeline, changed).trained_model().uri == folder.uri


def test_number_of_workers_is_no_setting_of_the_model(pipeline, recipe, capsys):
    folder = finish(pipeline, recipe, workers=2)
    asked = other(pipeline, recipe, resources=Resources(workers=1))
    assert asked.trained_model().uri == folder.uri
    assert asked.train().uri == folder.uri
    said = capsys.readouterr().err
    assert "2 workers trained the model that is there, 1 are asked for: taken as it is" in said
    assert "was trained already" in said and "(digest " in said


def test_model_that_was_named_by_its_number_of_workers_is_found(pipeline, recipe):
    folder = finish(pipeline, recipe, workers=2, name="0123abcd")
    assert find_model(recipe, pipeline.images["train"], pipeline.workspace).uri == folder.uri
    assert find_model(with_training(recipe, seed=1), pipeline.images["train"], pipeline.workspace) is None


def test_key_of_a_training_by_one_worker_is_that_of_versions_that_named_the_number(pipeline, recipe):
    former = settings_key(
        recipe.views.identity(),
        recipe.classifier.to_json() | {"pretrained": False},
        canonical_settings(recipe.training),
        pipeline.images["train"].digest,
        1,
    )
    assert training_key(recipe, pipeline.images["train"]) == former


def test_finished_model_is_taken_without_starting_ray(pipeline, recipe, monkeypatch):
    folder = finish(pipeline, recipe)
    monkeypatch.setattr("patchcert.stages.cluster.connected", lambda *_, **__: pytest.fail("Ray was asked for"))
    assert pipeline.train().uri == folder.uri


def test_start_weights_are_found_by_nobody_who_does_not_name_them(pipeline, recipe, capsys):
    folder = other(pipeline, recipe).start_untrained()
    assert folder.uri.rpartition("/")[2].startswith("untrained-")
    assert str(folder) in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="has no trained model"):
        pipeline.trained_model()
    assert other(pipeline, with_training(recipe, seed=3)).start_untrained().uri != folder.uri


def test_images_are_not_prepared_to_say_that_no_model_is_there(recipe, tmp_path):
    pipeline = Pipeline(recipe, options(tmp_path / "work"), Terminal())
    assert not may_be_trained(recipe, pipeline.workspace)
    with pytest.raises(CheckpointError, match="column4-digits has no trained model in"):
        pipeline.trained_model()
    assert not (tmp_path / "work").exists()


def test_model_is_found_where_its_images_have_to_be_prepared_again(pipeline, recipe, tmp_path):
    elsewhere = Workspace(str(tmp_path / "elsewhere"))
    folder = finish(pipeline, recipe)
    for name in folder.files():
        elsewhere.models(recipe.name).folder(folder.uri.rpartition("/")[2]).write(name, folder.read(name))
    moved = Pipeline(recipe, options(tmp_path / "elsewhere"), Terminal())
    assert moved.trained_model().uri.startswith(elsewhere.folder.uri)


def test_damaged_model_beside_it_hides_no_model(pipeline, recipe):
    folder = finish(pipeline, recipe, name="0123abcd")
    broken = finish(pipeline, with_training(recipe, seed=4))
    broken.write("config.json", b"{")
    assert pipeline.trained_model().uri == folder.uri


def test_edited_network_means_another_model(pipeline, recipe, tmp_path, monkeypatch, capsys):
    """Also where the edited file is one that the network's file imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_network.py").write_text(NETWORK.format(imported="own_parts"))
    (tmp_path / "own_parts.py").write_text("DEPTH = 1\n")
    custom = dataclasses.replace(
        recipe, classifier=dataclasses.replace(recipe.classifier, network="own_network:make", width=1.0, dropout=0.0)
    )
    folder = finish(pipeline, custom)
    asked = other(pipeline, custom)
    assert asked.trained_model().uri == folder.uri
    (tmp_path / "own_parts.py").write_text("DEPTH = 2\n")
    with pytest.raises(CheckpointError, match=r"has code of own_network:make \w{12}; asked for: \w{12}\."):
        asked.trained_model()

    trained = []
    monkeypatch.setattr(Pipeline, "_train", lambda self, *_, **__: trained.append(self) or self_finished(self, custom))

    def self_finished(_, recipe):
        from patchcert.trained_models import TrainedModel

        return TrainedModel(folder=finish(pipeline, recipe), digest="", epochs=[], reused=False, workers=1)

    again = asked.train()
    assert trained and again.uri != folder.uri
    assert f"the code of own_network:make changed since {folder} was trained" in capsys.readouterr().err
    assert asked.trained_model().uri == again.uri
    assert sys.modules.pop("own_network", None) is not None
