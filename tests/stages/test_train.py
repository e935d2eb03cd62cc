import dataclasses
import errno
import functools
import pickle
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from patchcert.errors import CheckpointError, TrainingError
from patchcert.models.checkpoint import initial_classifier, load_checkpoint, read_checkpoint_config
from patchcert.stages.resources import Resources
from patchcert.trained_models import find_model
from patchcert.training.feeding import open_feed
from patchcert.training.loop import Trainer
from patchcert.workspace import Workspace

ONE_CPU = Resources(cpus_per_worker=1)


def weights(folder):
    return safetensors.torch.load(folder.read(read_checkpoint_config(folder)["weights"]))


def same_weights(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


@pytest.fixture(scope="module")
def trained(ray_cluster, small_recipe, prepared, tmp_path_factory):
    """A training whose worker died after two epochs, and which the same call then finished.

    Its work folder, the model, the epochs that were reported, and the error of the first call.
    """
    from patchcert.stages import train as stage

    train_worker = stage._train_worker

    def dies_after_two_epochs(config):
        run_epoch = Trainer.run_epoch

        def run(self):
            if self.next_epoch == 2:
                raise RuntimeError("the power went out")
            return run_epoch(self)

        Trainer.run_epoch = run
        train_worker(config)

    # A path is a path: Ray would read some of these letters as parts of a URI.
    workspace = Workspace(str(tmp_path_factory.mktemp("trained") / "work? #1 100%"))
    once, rows = dataclasses.replace(ONE_CPU, max_failures=0), []
    train = functools.partial(
        stage.train, small_recipe, prepared, workspace, once, on_epoch=lambda epoch, row: rows.append((epoch, row))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_train_worker", dies_after_two_epochs)
        with pytest.raises(TrainingError) as failure:
            train()
    return workspace, train(), rows, str(failure.value)


def test_training_reports_every_epoch_to_the_driver_and_leaves_a_checkpoint(trained, small_recipe, prepared):
    workspace, model, rows, _ = trained
    assert [epoch for epoch, _ in rows] == [1, 2, 3]
    assert all(row["images_per_second"] > 0 and 0 <= row["validation_view_accuracy"] <= 1 for _, row in rows)
    classifier = load_checkpoint(model.folder, classifier=small_recipe.classifier, views=small_recipe.views)
    assert classifier.num_classes == 10
    assert find_model(small_recipe, prepared["train"], workspace).uri == model.folder.uri


def test_second_call_takes_the_finished_model(trained, small_recipe, prepared):
    from patchcert.stages.train import train

    workspace, model, *_ = trained
    again = train(small_recipe, prepared, workspace, ONE_CPU)
    assert again.reused and again.digest == model.digest


@pytest.mark.parametrize("what", ["weights", "config.json"])
def test_damaged_model_is_noticed_and_written_again_once_deleted(trained, small_recipe, prepared, workspace, what):
    from patchcert.stages.train import train

    finished, model, *_ = trained
    shutil.copytree(finished.folder.path(), workspace.folder.path())
    folder = workspace.models(small_recipe.name).folder(model.folder.path().rpartition("/")[2])
    name = read_checkpoint_config(folder)["weights"] if what == "weights" else what
    whole = folder.read(name)
    folder.write(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"\n  Restore the folder, or delete it and repeat the same command"):
        train(small_recipe, prepared, workspace, ONE_CPU)
    shutil.rmtree(folder.path())
    again = train(small_recipe, prepared, workspace, ONE_CPU)
    assert again.digest == model.digest and again.epochs == [] and not again.reused


@pytest.mark.parametrize("epochs_left", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_run_whose_list_of_checkpoints_was_cut_off_goes_on(trained, small_recipe, prepared, workspace, epochs_left):
    """Ray writes the list in place, so a driver may die in the middle of it."""
    from patchcert.stages.train import train

    finished, model, *_ = trained
    shutil.copytree(finished.folder.path("training"), workspace.folder.path("training"))
    (run,) = Path(workspace.folder.path("training")).iterdir()
    index = run / "checkpoint_manager_snapshot.json"
    index.write_bytes(index.read_bytes()[:50])
    newest = sorted(run.glob("checkpoint_*/state.pt"))[-1]
    if epochs_left:
        newest.write_bytes(newest.read_bytes()[:1000])
    again = train(small_recipe, prepared, workspace, ONE_CPU)
    assert again.digest == model.digest and len(again.epochs) == epochs_left


class Harmful:
    """What a pickle may hold: a call that is made while it is read."""

    def __reduce__(self):
        return (pytest.fail, ("code of a saved state was run",))


def _pickle(state, path):
    path.write_bytes(pickle.dumps(Harmful()))


def _cut(state, path):
    path.write_bytes(path.read_bytes()[:-100])


def _other_content(state, path):
    torch.save(list(state), path)


def _of_another_run(state, path):
    torch.save(state | {"key": "0123abcd"}, path)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_pickle, r"state.pt cannot be read: it is damaged, or holds more than tensors and numbers"),
        (_cut, r"state.pt cannot be read: RuntimeError: "),
        (_other_content, r"state.pt cannot be read: TypeError: "),
        (lambda state, path: path.unlink(), r"state.pt cannot be read: FileNotFoundError: "),
        (_of_another_run, r"belongs to run 0123abcd, not to fedc4567"),
    ],
)
def test_saved_state_that_cannot_be_used_is_refused_with_the_way_out(tmp_path, damage, problem):
    from ray.train import Checkpoint

    from patchcert.stages.train import _load_state

    state = {"classifier": {"weight": torch.ones(40)}, "next_epoch": 2, "key": "fedc4567"}
    torch.save(state, tmp_path / "state.pt")
    assert _load_state(Checkpoint(str(tmp_path)), "fedc4567")["next_epoch"] == 2
    damage(state, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match=f"{problem}.*\n  .*--no-resume"):
        _load_state(Checkpoint(str(tmp_path)), "fedc4567")


def test_run_that_dies_after_an_epoch_continues_to_the_same_weights(trained, small_recipe, prepared):
    """As one process trains them that nothing happens to; no Ray."""
    _, model, _, error = trained
    assert re.search(r"(?s)failed: .*Repeat the same command", error)
    assert [row["epoch"] for row in model.epochs] == [3]
    torch.set_num_threads(1)
    dataset, training = prepared["train"], small_recipe.training
    classifier = initial_classifier(
        small_recipe.classifier, small_recipe.views, dataset.num_channels, dataset.num_classes, training.seed
    )
    trainer = Trainer(classifier, training, open_feed(dataset, training), torch.device("cpu"))
    for _ in range(training.epochs):
        trainer.run_epoch()
    assert same_weights(weights(model.folder), classifier.state_dict())


def test_two_workers_train_one_model(ray_cluster, small_recipe, prepared, workspace):
    from patchcert.stages.train import train

    recipe = dataclasses.replace(small_recipe, training=dataclasses.replace(small_recipe.training, epochs=1))
    model = train(recipe, prepared, workspace, Resources(workers=2, cpus_per_worker=1))
    assert len(model.epochs) == 1 and model.epochs[0]["loss"] > 0


@pytest.mark.slow
def test_diverged_loss_names_epoch_and_step_without_a_traceback(ray_cluster, small_recipe, prepared, workspace):
    from patchcert.stages.train import train

    wild = dataclasses.replace(small_recipe.training, optimizer="sgd", learning_rate=1e12, epochs=2)
    recipe = dataclasses.replace(small_recipe, training=wild)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ of epoch \d"):
        train(recipe, prepared, workspace, dataclasses.replace(ONE_CPU, max_failures=0))


def test_full_disk_is_named_with_what_to_do():
    import ray.train

    from patchcert.errors import ResourceError
    from patchcert.stages.train import _user_error

    failure = OSError(errno.ENOSPC, "No space left on device")
    error = _user_error(ray.train.WorkerGroupError("a worker failed", worker_failures={0: failure}), "small-1234")
    assert isinstance(error, ResourceError)
    assert "cannot write the training states of small-1234: No space left on device" in str(error)
    assert "free some space" in str(error)
