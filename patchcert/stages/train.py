"""Trains the base classifier of a recipe: Ray Train around the training loop."""

import contextlib
import dataclasses
import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Empty, Queue

from patchcert.data import PreparedDataset
from patchcert.data.storage import Folder, write_error
from patchcert.data.untrusted import read_json
from patchcert.errors import ModelError, PatchcertError, TrainingError
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.models.config import ClassifierConfig
from patchcert.models.custom_code import custom_code_digest
from patchcert.stages.cluster import WorkerShare, thread_variables, worker_share
from patchcert.stages.resources import Resources
from patchcert.stages.retries import is_lasting
from patchcert.trained_models import TrainedModel, finished_model, training_key
from patchcert.training.config import TrainingConfig
from patchcert.training.feeding import MemoryFeed, open_feed
from patchcert.training.loop import Trainer, view_accuracy, workers_of_epochs
from patchcert.workspace import Workspace, canonical_settings

_STATE = "state.pt"
# Ray's list of the checkpoints of a run, and how it names them.
_INDEX, _CHECKPOINTS = "checkpoint_manager_snapshot.json", "checkpoint_"
_VALIDATION_IMAGES = 1000
_VALIDATION_VIEWS = 4

EpochRow = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a training worker needs, picklable.

    Attributes:
        key: fingerprint of all settings; a checkpoint of another key is refused.
        code: digest of the code of a user's own network; a worker that finds other code refuses to train.
        views: the view set.
        classifier: network and encoding.
        training: the loop's settings.
        train_folder: prepared split to learn from.
        validation_folder: prepared split whose view accuracy is reported each epoch, or None.
        num_cpus: torch threads of a worker on CPUs.
        unlisted: a saved state that Ray's list of checkpoints lacks, to continue from where the list is empty; or None.
    """

    key: str
    code: str | None
    views: Any
    classifier: ClassifierConfig
    training: TrainingConfig
    train_folder: str
    validation_folder: str | None
    num_cpus: int
    unlisted: ray.train.Checkpoint | None


def train(
    recipe: Any,
    datasets: dict[str, PreparedDataset],
    workspace: Workspace,
    resources: Resources,
    *,
    resume: bool = True,
    on_epoch: Callable[[int, EpochRow], None] | None = None,
    say: Callable[[str], object] | None = None,
) -> TrainedModel:
    """Train a recipe's base classifier on the connected Ray cluster.

    A run is named by the fingerprint of its settings and of its data: the same call again continues after the last
    saved epoch, also with another number of workers, or returns the finished model.

    Args:
        recipe: views, classifier and training settings.
        datasets: prepared splits by name; ``recipe.training.split`` must be among them.
        workspace: where checkpoints and models go.
        resources: workers and devices.
        resume: False starts over.
        on_epoch: called in this process with (epoch number, figures) after each epoch.
        say: takes lines for the reader.

    Raises:
        CheckpointError: the finished model is damaged.
        ModelError: a worker cannot import the network's code, or finds another.
        TrainingError: the loss diverged, a saved state cannot be read, or workers failed more often than allowed.
        ResourceError: the hardware asked for is not there.
    """
    dataset = datasets[recipe.training.split]
    validation = datasets.get("validation") if recipe.training.split == "train" else None
    if resume and (finished := finished_model(recipe, dataset, workspace)) is not None:
        return finished
    share = worker_share(ray, resources, training=True)
    key = training_key(recipe, dataset)
    run_name = f"{recipe.name}-{key}" + ("" if resume else f"-{int(time.time())}")
    run_folder = workspace.folder.folder(f"training/{run_name}")
    epochs: list[EpochRow] = []
    # The driver may have died after the last epoch, before the model was written; or the model is gone.
    _, state = next(_saved_states(run_folder, key), (None, {"next_epoch": 0}))
    if state["next_epoch"] < recipe.training.epochs:
        if say is not None and state["next_epoch"] and (before := workers_of_epochs(state)[-1][0]) != share.num_workers:
            say(
                f"{recipe.name}: was begun by {before} workers, goes on after epoch {state['next_epoch']} "
                f"with {share.num_workers}"
            )
        job = TrainJob(
            key=key,
            code=custom_code_digest(recipe.classifier.network),
            views=recipe.views,
            classifier=recipe.classifier,
            training=recipe.training,
            train_folder=str(dataset.folder),
            validation_folder=str(validation.folder) if validation is not None and validation.num_rows else None,
            num_cpus=share.num_cpus,
            unlisted=_unlisted_state(run_folder, key),
        )
        with _reports(epochs, on_epoch) as board:
            state = _fit(job, run_name, workspace, share, resources.max_failures, board)
    classifier = initial_classifier(
        recipe.classifier, recipe.views, dataset.num_channels, dataset.num_classes, recipe.training.seed
    )
    classifier.load_state_dict(state["classifier"])
    provenance = {
        "recipe": recipe.name,
        "key": key,
        "pretrained": recipe.classifier.pretrained,
        "training": canonical_settings(recipe.training),
        "dataset": {"name": dataset.name, "split": dataset.split, "digest": dataset.digest},
        "class_names": list(dataset.class_names),
        "workers": workers_of_epochs(state)[-1][0],
        "workers_of_epochs": workers_of_epochs(state),
        "cpus_per_worker": share.num_cpus,
        "device": "cuda" if share.num_gpus else "cpu",
        "last_epoch": epochs[-1] if epochs else None,
    }
    folder = workspace.models(recipe.name).folder(key)
    digest = save_checkpoint(classifier, folder, provenance)
    return TrainedModel(folder=folder, digest=digest, epochs=epochs, reused=False, workers=provenance["workers"])


def _fit(
    job: TrainJob, run_name: str, workspace: Workspace, share: WorkerShare, max_failures: int, board: Queue
) -> dict[str, Any]:
    """Runs Ray Train, from the last saved state on where there is one; returns the last state."""
    trainer = _InterruptibleTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=share.num_workers,
            use_gpu=share.num_gpus > 0,
            resources_per_worker={"CPU": share.num_cpus} | ({"GPU": 1} if share.num_gpus else {}),
            accelerator_type=share.accelerator,
        ),
        run_config=ray.train.RunConfig(
            name=run_name,
            # With the file system beside it, Ray takes the path as it is and reads no URI into its letters.
            storage_path=workspace.folder.path("training"),
            storage_filesystem=workspace.folder.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[_PostReports(board)],
            worker_runtime_env={"env_vars": thread_variables(share)},
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _user_error(error, run_name) from error
    checkpoint = result.checkpoint or job.unlisted
    if checkpoint is None:
        raise TrainingError(f"training {run_name} ended without a checkpoint.\n  Repeat the same command.")
    return _load_state(checkpoint, job.key)


class _InterruptibleTrainer(ray.train.torch.TorchTrainer):
    """A trainer that leaves Ctrl-C to this process: Ray Train would exit on it with code 1 and without a message."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Registers nothing."""


def _train_worker(config: dict[str, Any]) -> None:
    """Runs in each Ray Train worker."""
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.num_cpus)
    _check_code(job)
    dataset = PreparedDataset.open(job.train_folder)
    classifier = initial_classifier(
        job.classifier, job.views, dataset.num_channels, dataset.num_classes, job.training.seed
    ).to(device)
    parallel = ray.train.torch.prepare_model(classifier) if world_size > 1 else None
    feed = open_feed(dataset, job.training, rank=rank, world_size=world_size)
    trainer = Trainer(classifier, job.training, feed, device, rank=rank, num_workers=world_size, parallel=parallel)
    checkpoint = ray.train.get_checkpoint() or job.unlisted
    if checkpoint is not None:
        trainer.load_state(_load_state(checkpoint, job.key))
    validation = _validation_batches(job) if rank == 0 else []
    while trainer.next_epoch < job.training.epochs:
        figures = trainer.run_epoch()
        row: EpochRow = {
            "epoch": trainer.next_epoch,
            "loss": figures.loss,
            "view_accuracy": figures.view_accuracy,
            "images_per_second": figures.images_per_second,
            "learning_rate": figures.learning_rate,
        }
        if validation:
            row["validation_view_accuracy"] = view_accuracy(
                classifier, validation, device, views_per_image=_VALIDATION_VIEWS, seed=job.training.seed
            )
        last = trainer.next_epoch == job.training.epochs
        if rank == 0 and (last or trainer.next_epoch % job.training.checkpoint_every == 0):
            with tempfile.TemporaryDirectory() as directory:
                torch.save(trainer.state() | {"key": job.key}, os.path.join(directory, _STATE))
                ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(directory))
        else:
            ray.train.report(row)


def _check_code(job: TrainJob) -> None:
    """Raises ModelError where this worker would build another network than the driver."""
    found = custom_code_digest(job.classifier.network)
    if found != job.code:
        raise ModelError(
            f"classifier: a worker on {socket.gethostname()} finds other code of {job.classifier.network!r} than this "
            f"machine: sha256 {str(found)[:12]} there, {str(job.code)[:12]} here.\n"
            "  Give all machines the same files, for example with the py_modules of a runtime environment."
        )


def _validation_batches(job: TrainJob) -> list[Any]:
    if job.validation_folder is None:
        return []
    dataset = PreparedDataset.open(job.validation_folder)
    rows = min(dataset.num_rows, _VALIDATION_IMAGES)
    batch = min(rows, job.training.batch_size)
    settings = dataclasses.replace(job.training, batch_size=batch)
    batches = list(MemoryFeed(dataset, settings, rank=0, world_size=1).epoch(0))
    return batches[: max(1, rows // batch)]


def _unlisted_state(folder: Folder, key: str) -> ray.train.Checkpoint | None:
    """The newest whole state of a run without a list of its checkpoints; None where there is a list, or no state.

    Ray writes that list in place. A driver that is killed meanwhile leaves it cut off, and Ray refuses to start with
    it; one that is killed before it leaves a state that Ray does not know.
    """
    if folder.exists(_INDEX):
        try:
            read_json(folder, _INDEX)
            return None
        except ValueError:
            folder.remove(_INDEX)
    return next((checkpoint for checkpoint, _ in _saved_states(folder, key)), None)


def _saved_states(folder: Folder, key: str) -> Iterator[tuple[ray.train.Checkpoint, dict[str, Any]]]:
    """Whole states of a run, the newest first."""
    for name in reversed(folder.folders()):
        if name.startswith(_CHECKPOINTS):
            checkpoint = ray.train.Checkpoint(folder.path(name), folder.filesystem)
            # One that was still being written is no loss: the one before it is whole.
            with contextlib.suppress(TrainingError):
                yield checkpoint, _load_state(checkpoint, key)


def _load_state(checkpoint: ray.train.Checkpoint, key: str) -> dict[str, Any]:
    with checkpoint.as_directory() as directory:
        try:
            state: dict[str, Any] = torch.load(os.path.join(directory, _STATE), map_location="cpu", weights_only=True)
            found = state["key"]
        except Exception as error:  # torch raises whatever its parts do, and advises to load what is not trusted
            problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if isinstance(error, pickle.UnpicklingError):
                problem = "it is damaged, or holds more than tensors and numbers, of which nothing was run"
            raise TrainingError(
                f"the saved training state {checkpoint.path}/{_STATE} cannot be read: {problem}.\n"
                "  Restore the file, or start over:  --no-resume"
            ) from None
    if found != key:
        raise TrainingError(
            f"the saved training state belongs to run {found}, not to {key}.\n  Start over:  --no-resume"
        )
    return state


class _PostReports(ray.train.UserCallback):
    """Hands each epoch's figures from the training controller to the driver; never fails, never waits."""

    def __init__(self, board: Queue) -> None:
        self._board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by the controller after all workers have reported an epoch."""
        try:
            row = dict(metrics[0])
            row["images_per_second"] = sum(worker["images_per_second"] for worker in metrics)
            row["loss"] = sum(worker["loss"] for worker in metrics) / len(metrics)
            row["view_accuracy"] = sum(worker["view_accuracy"] for worker in metrics) / len(metrics)
            self._board.actor.put_nowait.remote(row)
        except Exception:
            # A lost progress line must not end a training run.
            return


class _reports:
    """Context with a board for epoch rows, from which a thread passes them to the caller."""

    def __init__(self, epochs: list[EpochRow], on_epoch: Callable[[int, EpochRow], None] | None) -> None:
        self._board, self._epochs, self._on_epoch = Queue(actor_options={"num_cpus": 0}), epochs, on_epoch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Queue:
        self._thread.start()
        return self._board

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take_all()
        self._board.shutdown()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            self._take_all()

    def _take_all(self) -> None:
        try:
            while True:
                row = self._board.get_nowait()
                self._epochs.append(row)
                if self._on_epoch is not None:
                    self._on_epoch(int(row["epoch"]), row)
        except (Empty, ray.exceptions.RayError):
            return


def _user_error(error: ray.train.TrainingFailedError, run_name: str) -> PatchcertError:
    """The error that a worker raised, as the user should read it."""
    seen: list[BaseException | None] = [*getattr(error, "worker_failures", {}).values()]
    while seen:
        failure = seen.pop()
        if isinstance(failure, PatchcertError):
            return failure
        if isinstance(failure, OSError) and is_lasting(failure):
            return write_error(f"the training states of {run_name}", failure)
        if failure is not None:
            seen += [failure.__cause__, getattr(failure, "_base_exc", None), getattr(failure, "cause", None)]
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return TrainingError(
        f"training {run_name} failed: {lines[-1] if lines else type(error).__name__}\n"
        "  Repeat the same command to continue after the last saved epoch; --verbose shows the workers' output."
    )
