"""Faults for real: processes, nodes, disks and servers that die while a stage works. Run with ``make test-chaos``."""

import collections
import dataclasses
import os

import numpy as np
import pytest

from .held import IMAGES_PER_PART, NETWORK, Hold

NUM_IMAGES = 300
_FAULTS, _AGAIN = collections.Counter(), collections.Counter()

if os.environ.get("PATCHCERT_CHAOS") == "1":
    # Read when a cluster starts: a dead node is noticed after seconds instead of half a minute.
    os.environ.setdefault("RAY_health_check_initial_delay_ms", "1000")
    os.environ.setdefault("RAY_health_check_period_ms", "1000")
    os.environ.setdefault("RAY_health_check_timeout_ms", "4000")
    os.environ.setdefault("RAY_health_check_failure_threshold", "3")


def pytest_collection_modifyitems(items):
    for item in items:
        if os.sep + "chaos" + os.sep in str(item.path):
            item.add_marker(pytest.mark.ray)
            if os.environ.get("PATCHCERT_CHAOS") != "1":
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-chaos (PATCHCERT_CHAOS=1)"))


def pytest_sessionfinish(session):
    """Passes the counts to the process that reports, if that is another one (pytest-xdist)."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["chaos"] = [dict(_FAULTS), dict(_AGAIN)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    faults, again = getattr(node, "workeroutput", {}).get("chaos", ({}, {}))
    _FAULTS.update(faults)
    _AGAIN.update(again)


def pytest_terminal_summary(terminalreporter):
    if _FAULTS:
        words = ", ".join(f"{count} x {kind}" for kind, count in _FAULTS.items())
        terminalreporter.write_line(f"faults injected: {sum(_FAULTS.values())} ({words})")
        words = ", ".join(f"{count} {unit}" for unit, count in _AGAIN.items())
        terminalreporter.write_line(f"work begun more than once: {words}")


@pytest.fixture
def fault():
    """Counts a fault that has just been injected."""

    def count(kind):
        _FAULTS[kind] += 1

    return count


@pytest.fixture
def lost():
    """Counts work that was begun more than once, and checks that no fault cost more than one piece of it."""

    def count(unit, num_pieces, num_faults):
        _AGAIN[unit] += num_pieces
        assert 0 <= num_pieces <= num_faults, f"{num_faults} faults cost {num_pieces} {unit}"

    return count


@pytest.fixture
def hold(tmp_path):
    """Holds the work of one command line."""
    return Hold(tmp_path / "held")


@pytest.fixture(scope="module")
def held_here(tmp_path_factory):
    """Holds the work of the cluster that a module of tests starts."""
    return Hold(tmp_path_factory.mktemp("held") / "marks")


@pytest.fixture(scope="session")
def small_recipe():
    """Column smoothing of digits with a small network, which can be held, and a short training."""
    from patchcert.recipes import find_recipe

    recipe = find_recipe("column4-digits")
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, limit=NUM_IMAGES, validation_size=20),
        classifier=dataclasses.replace(recipe.classifier, network=NETWORK, width=1.0, dropout=0.0),
        training=dataclasses.replace(recipe.training, epochs=6, batch_size=20, views_per_image=8, checkpoint_every=1),
        study=dataclasses.replace(recipe.study, patches=("1x1", "5x5")),
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, small_recipe):
    from patchcert.data import prepare

    return prepare(small_recipe.data, small_recipe.views.image_size, str(tmp_path_factory.mktemp("prepared")))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, small_recipe, prepared):
    """A checkpoint with start weights, in a work folder of its own."""
    from patchcert.models.checkpoint import initial_classifier, save_checkpoint
    from patchcert.workspace import Workspace

    dataset = prepared["test"]
    classifier = initial_classifier(
        small_recipe.classifier, small_recipe.views, dataset.num_channels, dataset.num_classes, 0
    )
    folder = Workspace(str(tmp_path_factory.mktemp("model"))).models(small_recipe.name).folder("start")
    save_checkpoint(classifier, folder, {})
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, small_recipe, prepared, model_folder):
    """Bytes of every file of the vote table as one process writes it that nothing happens to; no Ray."""
    from patchcert.models.checkpoint import read_checkpoint_config
    from patchcert.stages.vote_worker import VoteJob, VoteWorker
    from patchcert.votes.identity import vote_identity
    from patchcert.votes.table import finish_table

    dataset, folder = prepared["test"], tmp_path_factory.mktemp("undisturbed")
    digest = read_checkpoint_config(model_folder)["digest"]
    prediction = small_recipe.prediction
    identity = vote_identity(
        small_recipe.voted_views,
        dataset,
        model_digest=digest,
        score_floor=prediction.score_floor,
        precision=prediction.precision,
    )
    rows_of_parts = dataset.parts(IMAGES_PER_PART)
    job = VoteJob(
        identity=identity,
        table_folder=str(folder),
        dataset_folder=str(dataset.folder),
        model_folder=str(model_folder),
        model_digest=digest,
        classifier=small_recipe.classifier,
        views=small_recipe.views,
        prediction=prediction,
        num_parts=len(rows_of_parts),
        num_threads=1,
        device="cpu",
    )
    worker = VoteWorker(job)
    for part, (start, stop) in enumerate(rows_of_parts):
        assert not worker.compute({"part": part, "start": start, "stop": stop}).error
    from patchcert.data.storage import Folder

    table = finish_table(Folder(str(folder)), identity, rows_of_parts)
    image_ids = np.concatenate([table.read_part(part).image_ids for part in range(table.num_parts)])
    assert sorted(image_ids) == sorted(dataset.read_all().image_ids) and len(set(image_ids)) == NUM_IMAGES
    return table_bytes(folder)


def stamps(folder):
    """When each part of a table was written; a part that is written again has another stamp."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}


def table_bytes(folder):
    """Contents of the files that are the vote table."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("part-", "_SUCCESS"))}


@pytest.fixture
def same_table(undisturbed):
    """Checks that a table is the undisturbed one: the same bytes, so no image lost and none doubled."""

    def check(folder):
        found = table_bytes(folder)
        assert found.keys() == undisturbed.keys()
        assert found == undisturbed

    return check


@pytest.fixture(scope="session")
def trained_undisturbed(small_recipe, prepared):
    """Weights of a training in one process that nothing happens to; no Ray."""
    import torch

    from patchcert.models.checkpoint import initial_classifier
    from patchcert.training.feeding import open_feed
    from patchcert.training.loop import Trainer

    torch.set_num_threads(1)
    dataset, training = prepared["train"], small_recipe.training
    classifier = initial_classifier(
        small_recipe.classifier, small_recipe.views, dataset.num_channels, dataset.num_classes, training.seed
    )
    trainer = Trainer(classifier, training, open_feed(dataset, training), torch.device("cpu"))
    for _ in range(training.epochs):
        trainer.run_epoch()
    return classifier.state_dict()
