"""Saves base classifiers as config.json and the weights that it names, and loads them; nothing is executed."""

import collections
import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch

from patchcert.data.sealed import sealed_bytes
from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, ModelError, PatchcertError
from patchcert.geometry import view_set_from_identity
from patchcert.models.checkpoint_config import CONFIG, FORMAT, read_checkpoint_config
from patchcert.models.classifier import BaseClassifier
from patchcert.models.config import ClassifierConfig
from patchcert.models.custom_code import custom_code_digest, is_custom
from patchcert.models.networks import ONE_PASS_NETWORKS
from patchcert.models.one_pass import reads_same_pixels

# Checkpoints that do not name their weights were written when there was one name for all.
_UNNAMED_WEIGHTS = "weights.safetensors"
_SHOWN_NAMES = 10
_NOT_COMPUTING = ("digest", "provenance", "weights")


def save_checkpoint(classifier: BaseClassifier, folder: Folder, provenance: dict[str, Any]) -> str:
    """Writes a checkpoint: the weights under a name of their own, then config.json, which names them.

    Args:
        classifier: what to save.
        folder: where to; a checkpoint that is there is replaced in one step, and stays valid up to then.
        provenance: JSON-able facts that do not change what the model computes (recipe, dataset, loss, time ...).

    Returns:
        The checkpoint's digest: sha256, hexadecimal, over weights, network, its code, encoding, views and classes.
    """
    weights = weights_of(classifier)
    config = {
        "format": FORMAT,
        "classifier": classifier.config.to_json(),
        "views": classifier.views.identity(),
        "image_channels": classifier.image_channels,
        "num_classes": classifier.num_classes,
        "network_code": custom_code_digest(classifier.config.network),
    }
    config["digest"] = _digest(config, weights)
    config["provenance"] = provenance
    config["weights"] = f"weights-{hashlib.sha256(weights).hexdigest()[:12]}.safetensors"
    folder.remove_stale_temporaries()
    folder.write(config["weights"], weights)
    folder.write(CONFIG, sealed_bytes(config))
    for name in folder.files():
        if name.startswith("weights") and name.endswith(".safetensors") and name != config["weights"]:
            # Weights of the checkpoint before, or of a save that was killed: they cost space, nothing else.
            with contextlib.suppress(OSError):
                folder.remove(name)
    return str(config["digest"])


def weights_of(classifier: BaseClassifier) -> bytes:
    """Return the weights of a classifier as the bytes of a safetensors file.

    Raises:
        ModelError: its state holds something else than dense tensors of numbers.
    """
    tensors = {}
    for name, value in classifier.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = f"{value.layout} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelError(
                f"classifier: {classifier.config.network!r} keeps {name.removeprefix('network.')!r} in its state, a "
                f"{kind.removeprefix('torch.')}; a checkpoint holds dense tensors only.\n"
                "  Keep it as a plain attribute if it never changes, else as a dense buffer (register_buffer)."
            )
        # Copies, because the format refuses tensors that share memory, as tied weights do.
        tensors[name] = value.detach().cpu().contiguous().clone()
    try:
        return bytes(safetensors.torch.save(tensors))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"classifier: the state of {classifier.config.network!r} cannot be saved as safetensors: {error}.\n"
            "  Keep parameters and buffers of plain number types."
        ) from None


def load_weights(classifier: BaseClassifier, weights: bytes) -> None:
    """Load what ``weights_of`` returned into a classifier of the same settings.

    Raises:
        Exception: what safetensors or ``load_state_dict`` raise when they do not fit.
    """
    state = collections.OrderedDict(safetensors.torch.load(weights))
    # Versions of modules, which the format leaves out and some modules refuse to load without.
    state._metadata = classifier.state_dict()._metadata  # type: ignore[attr-defined]
    classifier.load_state_dict(state)


def load_checkpoint(
    folder: Folder,
    *,
    classifier: ClassifierConfig | None = None,
    views: Any = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> BaseClassifier:
    """Loads a base classifier and refuses one that was made for something else.

    A network named ``package.module:function`` is imported only when ``classifier`` asks for that very name: what is
    written in a checkpoint alone never makes code run.

    Args:
        folder: a checkpoint folder.
        classifier: the expected network and encoding, or None to take the checkpoint's.
        views: the view set to read, or None for that of the training. It may differ from it in the starts of its
            views (stride, domain), where the network computes the same of each view.
        num_classes: the expected number of classes, or None.
        class_names: names of the classes in label order, or None; compared where the checkpoint says its own.

    Returns:
        The classifier on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, or made for another network, encoding, view set or classes.
    """
    config, raw = _read_whole(folder)
    try:
        made_with = ClassifierConfig.from_json(config["classifier"])
        made_views = view_set_from_identity(config["views"])
    except (PatchcertError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}/{CONFIG} is damaged: {error}.\n  Restore the folder, or delete it and train again."
        ) from None
    if classifier is not None and classifier.to_json() != made_with.to_json():
        found, asked = ({"members": 1} | config.to_json() for config in (made_with, classifier))
        details = "; ".join(f"{key} {found[key]!r}, asked {asked[key]!r}" for key in asked if found[key] != asked[key])
        raise CheckpointError(
            f"{folder} holds another model: {details}.\n  Train the one asked for:  patchcert train RECIPE"
        )
    if views is not None and not _fits(made_with, made_views, views):
        raise CheckpointError(
            f"{folder} was trained on {made_views.describe()}, but {views.describe()} are asked for.\n"
            "  Train a model for these views:  patchcert train RECIPE, with the same overrides"
        )
    if num_classes is not None and num_classes != config["num_classes"]:
        raise CheckpointError(
            f"{folder} tells {config['num_classes']} classes apart, the dataset has {num_classes}.\n"
            "  Train a model on this dataset, or choose the dataset it was trained on."
        )
    if class_names is not None and (problem := class_names_problem(config, class_names)):
        raise CheckpointError(
            f"{folder} was trained on {problem}.\n"
            "  Vote on the dataset that the model was trained on, or train on this one:  patchcert train RECIPE"
        )
    if classifier is None and is_custom(made_with.network):
        raise CheckpointError(
            f"{folder} names the network {made_with.network!r}, code that a checkpoint alone may not run.\n"
            f"  Ask for it by name:  --classifier.network {made_with.network}"
        )
    code = custom_code_digest(made_with.network)
    if code != config["network_code"]:
        raise CheckpointError(
            f"{folder} was trained with other code of {made_with.network!r}: sha256 "
            f"{str(config['network_code'])[:12]} then, {str(code)[:12]} now.\n"
            "  Restore that code, or train again:  patchcert train RECIPE"
        )
    model = BaseClassifier(
        made_with, made_views if views is None else views, config["image_channels"], config["num_classes"]
    )
    try:
        load_weights(model, raw)
    except Exception as error:  # modules of users raise whatever they like while they are loaded
        raise CheckpointError(
            f"{folder}: weights do not fit the network {made_with.network!r}: {error}\n"
            "  Restore the network's code or the folder, or train again:  patchcert train RECIPE"
        ) from None
    return model.eval()


def class_names_problem(config: dict[str, Any], class_names: Sequence[str]) -> str | None:
    """Say where label k of a dataset is another class than logit k of a checkpoint.

    Args:
        config: record of the checkpoint.
        class_names: of the dataset, in label order.

    Returns:
        In words, what differs; None where nothing does, or where the checkpoint says no names.
    """
    found = config.get("provenance", {}).get("class_names")
    if found is None or list(found) == list(class_names):
        return None
    same = "the same classes in another order" if sorted(found) == sorted(class_names) else "other classes"
    pairs = enumerate(zip(found, class_names, strict=False))
    first = next(((label, made, asked) for label, (made, asked) in pairs if made != asked), None)
    where = "" if first is None else ": label {} is {!r} for the model, {!r} in the images".format(*first)
    return f"{same} than the images have{where} (the model: {_listed(found)}; the images: {_listed(class_names)})"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{shown} and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else shown


def _fits(classifier: ClassifierConfig, made_views: Any, views: Any) -> bool:
    """Whether a base classifier for ``made_views`` computes the same of each of these views."""
    if views == made_views:
        return True
    if not views.differs_only_in_starts(made_views):
        return False
    if classifier.network not in ONE_PASS_NETWORKS:
        return True
    axes = ((views.row_axis, made_views.row_axis), (views.column_axis, made_views.column_axis))
    return all(reads_same_pixels(one.length, one.stride, made.stride) for one, made in axes)


def verify_checkpoint(folder: Folder) -> str:
    """Compares a checkpoint's bytes with its digest; no network is built.

    Returns:
        The checkpoint's digest.

    Raises:
        CheckpointError: missing or damaged.
    """
    config, _ = _read_whole(folder)
    return str(config["digest"])


def _read_whole(folder: Folder) -> tuple[dict[str, Any], bytes]:
    """config.json and the bytes of the weights, which have the digest that it names."""
    config = read_checkpoint_config(folder)
    weights_name = str(config.get("weights", _UNNAMED_WEIGHTS))
    try:
        raw = folder.read(weights_name)
    except (OSError, PatchcertError) as error:
        raise CheckpointError(
            f"{folder}/{weights_name} cannot be read: {error}.\n  Restore it, or delete the folder and train again."
        ) from None
    if _digest(config, raw) != config["digest"]:
        raise CheckpointError(
            f"{folder} was changed after it was written: digest {_digest(config, raw)[:12]} now, "
            f"{str(config['digest'])[:12]} in {CONFIG}.\n  Restore the folder, or delete it and train again."
        )
    return config, raw


def _digest(config: dict[str, Any], weights: bytes) -> str:
    """sha256 over all that changes what the model computes: weights, network, encoding, views, classes."""
    computes = {key: value for key, value in config.items() if key not in _NOT_COMPUTING}
    canonical = json.dumps(computes, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical + b"\0" + weights).hexdigest()


def initial_classifier(
    config: ClassifierConfig, views: Any, image_channels: int, num_classes: int, seed: int
) -> BaseClassifier:
    """A classifier with the start weights that belong to a seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BaseClassifier(config, views, image_channels, num_classes)
