import dataclasses
import os
import shutil

import pytest

from patchcert.data import prepare
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.recipes import find_recipe
from patchcert.stages.resources import Resources
from patchcert.votes import VoteTable
from patchcert.workspace import Workspace


@pytest.fixture(scope="session")
def small_recipe():
    """Column smoothing on a few digits, a small network."""
    recipe = find_recipe("column4-digits")
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, limit=120, validation_size=20),
        classifier=dataclasses.replace(recipe.classifier, width=0.125),
        training=dataclasses.replace(recipe.training, epochs=3, batch_size=20, views_per_image=2, checkpoint_every=1),
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, small_recipe):
    """The recipe's prepared splits."""
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(small_recipe.data, small_recipe.views.image_size, str(folder))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, small_recipe, prepared):
    """A checkpoint with start weights."""
    workspace = Workspace(str(tmp_path_factory.mktemp("model")))
    dataset = prepared["test"]
    classifier = initial_classifier(
        small_recipe.classifier, small_recipe.views, dataset.num_channels, dataset.num_classes, 0
    )
    folder = workspace.models(small_recipe.name).folder("start")
    save_checkpoint(classifier, folder, {})
    return folder


@pytest.fixture(scope="session")
def reference(ray_cluster, small_recipe, prepared, model_folder, tmp_path_factory):
    """The table of one actor."""
    from patchcert.stages.vote import vote

    workspace = Workspace(str(tmp_path_factory.mktemp("one")))
    resources = Resources(images_per_part=20, workers=1)
    return vote(small_recipe, prepared["test"], model_folder, workspace, resources)


@pytest.fixture
def copied_table(reference, workspace):
    """A copy of the table of one actor, where voting in the work folder of this test looks for it."""
    copy = os.path.join(workspace.folder.path("votes"), os.path.basename(reference.location))
    shutil.copytree(reference.location, copy)
    return VoteTable.open(copy)


@pytest.fixture
def workspace(tmp_path):
    # A path is a path: Ray and MLflow would read some of these letters as parts of a URI.
    return Workspace(str(tmp_path / "work? #1 100%"))
