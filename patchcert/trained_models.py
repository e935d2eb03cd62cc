"""Finds the trained model of exactly a recipe's settings, or says what the nearest one differs in. No torch, no ray."""

import contextlib
import dataclasses
from typing import Any

from patchcert.data import PreparedDataset
from patchcert.data.prepared import DATASET_FILE
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError
from patchcert.geometry import view_set_from_identity
from patchcert.models.checkpoint_config import CONFIG, read_checkpoint_config
from patchcert.models.custom_code import custom_code_digest
from patchcert.training.config import TrainingConfig
from patchcert.workspace import Workspace, canonical_settings, settings_key

_MOST_DIFFERENCES = 6
# A digest is quoted by its first digits.
_DIGITS = 12
_IMAGES, _CODE, _PRETRAINED = "training images", "code of ", "classifier.pretrained"

Settings = dict[str, Any]
Differences = dict[str, tuple[Any, Any]]


def training_key(recipe: Any, dataset: PreparedDataset) -> str:
    """Return the fingerprint of everything that decides which model a training makes.

    The hardware is no part of it: device, number of workers and CPUs of a worker move the last digits of the weights
    (sums are split among them) and stand in the checkpoint's provenance. A run that is resumed with the same hardware
    gives the same weights, bit by bit.
    """
    code = custom_code_digest(recipe.classifier.network)
    return settings_key(
        recipe.views.identity(),
        recipe.classifier.to_json() | {"pretrained": recipe.classifier.pretrained},
        canonical_settings(recipe.training),
        dataset.digest,
        # Once the number of workers: the models of one worker keep their names.
        1,
        # Only where there is some: the models of the package's own networks keep their names.
        *([] if code is None else [code]),
    )


def untrained_key(recipe: Any, dataset: PreparedDataset) -> str:
    """Return the fingerprint of everything that decides about start weights; ``dataset`` gives channels and classes."""
    return settings_key(
        recipe.views.identity(),
        recipe.classifier.to_json() | {"pretrained": recipe.classifier.pretrained},
        recipe.training.seed,
        dataset.num_channels,
        dataset.class_names,
        custom_code_digest(recipe.classifier.network),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A finished training run.

    Attributes:
        folder: the checkpoint.
        digest: of the checkpoint.
        epochs: one row of figures per epoch that this call trained; empty when the model was there already.
        reused: whether the model was there already.
        workers: processes that trained its last epoch; 0: not known.
    """

    folder: Folder
    digest: str
    epochs: list[dict[str, float]]
    reused: bool
    workers: int


def finished_model(recipe: Any, dataset: PreparedDataset, workspace: Workspace) -> TrainedModel | None:
    """Return the finished model of a recipe's settings and training images, its bytes checked, or None.

    Raises:
        CheckpointError: it is damaged.
    """
    from patchcert.models.checkpoint import verify_checkpoint

    folder = find_model(recipe, dataset, workspace)
    if folder is None:
        return None
    try:
        digest = verify_checkpoint(folder)
    except CheckpointError as error:
        problem = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{problem}\n  Restore the folder, or delete it and repeat the same command: the model is written again "
            "from the last saved training state, or trained again where that is gone."
        ) from None
    workers = int(read_checkpoint_config(folder).get("provenance", {}).get("workers", 0))
    return TrainedModel(folder=folder, digest=digest, epochs=[], reused=True, workers=workers)


def find_model(recipe: Any, dataset: PreparedDataset, workspace: Workspace) -> Folder | None:
    """Return the finished model of a recipe's settings and training images, or None.

    Args:
        recipe: views, classifier and training settings.
        dataset: prepared split that is learned from.
        workspace: where models are.

    Raises:
        CheckpointError: a model of the recipe is damaged.
        ModelError: the code of the recipe's network cannot be found.
    """
    folder = workspace.models(recipe.name).folder(training_key(recipe, dataset))
    if folder.exists(CONFIG):
        return folder
    # Versions that named models by the number of workers, too, have left models under other names.
    found = [model for model, differences in _nearest(recipe, dataset, workspace) if not differences]
    return found[0] if found else None


def may_be_trained(recipe: Any, workspace: Workspace) -> bool:
    """Return whether a model of a recipe's settings is there, without preparing the images that it learned from."""
    dataset = prepared_training_split(recipe, workspace)
    return any(not differences for _, differences in _nearest(recipe, dataset, workspace))


def prepared_training_split(recipe: Any, workspace: Workspace) -> PreparedDataset | None:
    """Return the images that a recipe's model learns from, if they are prepared already."""
    folder = workspace.data(recipe.data, recipe.views.image_size).folder(recipe.training.split)
    return PreparedDataset.open(folder) if folder.exists(DATASET_FILE) else None


def no_such_model(recipe: Any, dataset: PreparedDataset | None, workspace: Workspace) -> CheckpointError:
    """Return the error of a recipe without a model of its settings; it names the nearest and both values.

    Args:
        recipe: what was asked for.
        dataset: prepared split that the model would have learned from; None: not prepared.
        workspace: where models are.
    """
    nearest = _nearest(recipe, dataset, workspace)
    train = "Train it first:  patchcert train RECIPE"
    if not nearest:
        return CheckpointError(f"{recipe.name} has no trained model in {workspace.folder}.\n  {train}")
    folder, differences = nearest[0]
    others = f" ({len(nearest) - 1} others differ more)" if len(nearest) > 1 else ""
    hint = f"\n  Or take the one that is there:  patchcert vote RECIPE --checkpoint {folder}"
    return CheckpointError(
        f"{recipe.name} has no model trained with these settings in {workspace.folder}; the nearest, {folder}, "
        f"has {described(differences)}{others}.\n  {train}{hint if _can_read(folder, recipe, differences) else ''}"
    )


def code_changed(recipe: Any, dataset: PreparedDataset, workspace: Workspace) -> Folder | None:
    """Return a model that differs from a recipe's in nothing but the code of its network, or None."""
    name = _code_name(recipe.classifier.network)
    return next(
        (folder for folder, differences in _nearest(recipe, dataset, workspace) if differences.keys() == {name}), None
    )


def described(differences: Differences) -> str:
    """Return differences as words: what a model has, and what was asked for."""
    shown = list(differences.items())[:_MOST_DIFFERENCES]
    more = f" and {len(differences) - len(shown)} more" if len(differences) > len(shown) else ""
    found = ", ".join(f"{name} {value[0]}" for name, value in shown)
    return f"{found}{more}; asked for: {', '.join(str(value[1]) for _, value in shown)}"


def _nearest(recipe: Any, dataset: PreparedDataset | None, workspace: Workspace) -> list[tuple[Folder, Differences]]:
    """Trained models of a recipe with what they differ in, the fewest differences first."""
    models = workspace.models(recipe.name)
    found = []
    asked: Settings | None = None
    for name in models.folders():
        folder = models.folder(name)
        # One that is damaged is nobody's nearest; whoever asks for it by its settings or folder is told.
        with contextlib.suppress(CheckpointError):
            config = read_checkpoint_config(folder)
            if "training" in config.get("provenance", {}):
                asked = asked or _asked(recipe, dataset)
                found.append((folder, _differences(_recorded(config), asked)))
    return sorted(found, key=lambda entry: len(entry[1]))


def _differences(found: Settings, asked: Settings) -> Differences:
    return {
        name: (found.get(name), asked.get(name))
        for name in dict.fromkeys((*asked, *found))
        # Another network has other code, and images that are not prepared have no digest yet.
        if (name in asked or name != _IMAGES)
        and (not name.startswith(_CODE) or (name in found and name in asked))
        and found.get(name) != asked.get(name)
    }


def _can_read(folder: Folder, recipe: Any, differences: Differences) -> bool:
    """Whether a model can vote on a recipe's views: its network is the same, and its views differ in starts at most."""
    made_views = view_set_from_identity(read_checkpoint_config(folder)["views"])
    others = [name for name in differences if name.startswith(("classifier.", _CODE)) and name != _PRETRAINED]
    return not others and bool(recipe.views.differs_only_in_starts(made_views))


def _asked(recipe: Any, dataset: PreparedDataset | None) -> Settings:
    settings = _flat("training", canonical_settings(recipe.training))
    classifier = {"members": 1} | recipe.classifier.to_json() | {"pretrained": recipe.classifier.pretrained}
    settings |= _flat("classifier", classifier)
    settings |= _flat("views", recipe.views.identity())
    settings[_code_name(recipe.classifier.network)] = _short(custom_code_digest(recipe.classifier.network))
    if dataset is not None:
        settings[_IMAGES] = f"{dataset.name}/{dataset.split} {_short(dataset.digest)}"
    return settings


def _recorded(config: Settings) -> Settings:
    """Settings that a checkpoint was trained with, under the names of ``_asked``."""
    provenance = config["provenance"]
    # Settings that came after the checkpoint was written did not exist for it.
    settings = _flat("training", canonical_settings(TrainingConfig()) | provenance["training"])
    classifier = {"members": 1, "pretrained": provenance.get("pretrained", False)} | config["classifier"]
    settings |= _flat("classifier", classifier)
    settings |= _flat("views", config["views"])
    settings[_code_name(config["classifier"]["network"])] = _short(config["network_code"])
    data = provenance.get("dataset", {})
    settings[_IMAGES] = f"{data.get('name')}/{data.get('split')} {_short(data.get('digest'))}"
    return settings


def _code_name(network: str) -> str:
    return _CODE + network


def _short(digest: str | None) -> str:
    return digest[:_DIGITS] if digest else "none"


def _flat(section: str, values: Settings) -> Settings:
    flat: Settings = {}
    for name, value in values.items():
        path = f"{section}.{name}"
        flat |= _flat(path, value) if isinstance(value, dict) else {path: value}
    return flat
