"""Checks before any work: what a later stage of a recipe would refuse is refused now. No images, no Ray."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

from patchcert.data.registry import dataset_spec
from patchcert.errors import ModelError, RecipeError, ResourceError
from patchcert.stages.resources import Resources
from patchcert.stages.sharing import cluster_address
from patchcert.studies.questions import headline_patch, questions
from patchcert.trained_models import finished_model, prepared_training_split
from patchcert.workspace import Workspace

Stage = Literal["train", "vote", "study"]


def check_stages(recipe: Any, stages: Collection[Stage], workspace: Workspace, resources: Resources) -> None:
    """Raise what the stages would raise about the settings, before the first one begins.

    Args:
        recipe: all settings.
        stages: those that are to run.
        workspace: where the model may be there already.
        resources: hardware asked for.

    Raises:
        RecipeError: a split that the dataset does not have.
        StudyError: questions that the votes could not answer.
        GeometryError: a patch that does not fit.
        ResourceError: a work folder that cannot be written, or waiting for GPUs that cannot come.
        ModelError: a network that cannot be built for these views, or arithmetic that the device does not have.
    """
    if "train" in stages:
        check_split(recipe, recipe.training.split, "training.split")
    if "vote" in stages or "study" in stages:
        check_split(recipe, recipe.study.split, "study.split")
    if "study" in stages:
        check_questions(recipe)
    if "vote" in stages and recipe.prediction.precision == "tf32" and resources.device == "cpu":
        raise ModelError(
            "prediction: precision tf32 is arithmetic of NVIDIA GPUs, but resources.device is cpu.\n"
            "  Use --prediction.precision float32, or bfloat16"
        )
    if resources.wait_for_gpus and cluster_address(resources) is None:
        raise ResourceError(
            f"resources: wait_for_gpus is {resources.wait_for_gpus:g}, but no cluster is joined, and this machine gets "
            "no further GPUs.\n"
            "  Leave it out, or join a cluster that starts nodes on demand: --resources.address ADDRESS"
        )
    if "train" in stages and not _is_trained(recipe, workspace):
        _check_network(recipe, workspace)
        workspace.folder.check_writable()


def check_split(recipe: Any, split: str, setting: str = "") -> None:
    """Raise RecipeError for a split that the recipe's dataset does not have."""
    available = dataset_spec(recipe.data.dataset).splits
    if split not in available:
        fix = f"Set --{setting.replace('_', '-')} to one of them" if setting else "Choose one of its splits"
        raise RecipeError(
            f"{recipe.name}: {recipe.data.dataset} has no {split} split, only {', '.join(available)}.\n"
            f"  {fix}, or choose another dataset with --data.dataset."
        )


def check_questions(recipe: Any) -> None:
    """Raise what is wrong with the questions of a recipe's study for the votes that the recipe would cast."""
    views = recipe.voted_views
    questions(recipe.study, views, recipe.prediction.score_floor or None, on_warning=lambda _: None)
    headline_patch(recipe.study, views.image_size)


def _is_trained(recipe: Any, workspace: Workspace) -> bool:
    dataset = prepared_training_split(recipe, workspace)
    return dataset is not None and finished_model(recipe, dataset, workspace) is not None


def _check_network(recipe: Any, workspace: Workspace) -> None:
    """Builds the network once, unless the number of classes is known only from the images."""
    dataset = prepared_training_split(recipe, workspace)
    spec = dataset_spec(recipe.data.dataset)
    num_classes = spec.num_classes if dataset is None else dataset.num_classes
    if num_classes is None:
        return
    from patchcert.models.checkpoint import initial_classifier
    from patchcert.models.custom_code import is_custom

    # Weights are fetched by the training itself.
    classifier = dataclasses.replace(recipe.classifier, pretrained=False)
    built = initial_classifier(classifier, recipe.views, spec.num_channels, num_classes, recipe.training.seed)
    if is_custom(classifier.network):
        from patchcert.prediction.probing import probe

        # Before the images are prepared too, which may take hours; with real ones it is probed after that.
        probe(built, trains=True)
