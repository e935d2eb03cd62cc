"""Result folders and training figures in, MLflow runs out; files are the truth, and no failure here fails a job."""

import base64
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import queue
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchcert.data.storage import Folder, masked
from patchcert.errors import TrackingError
from patchcert.provenance import environment
from patchcert.workspace import Workspace, canonical_settings

if TYPE_CHECKING:
    import pandas as pd

    from patchcert.studies.results import Location, StudyResult
    from patchcert.studies.variance_results import VarianceResult

# Set before mlflow is imported: no telemetry, no chatter, no pickles, seconds instead of minutes for a dying server.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
_RESULT_ID, _TRAINING_KEY, _MODEL_DIGEST = "patchcert.result_id", "patchcert.training_key", "patchcert.model_digest"
_PARAM_LENGTH, _TAG_LENGTH, _DIGEST_LENGTH = 6000, 4900, 36
_FINISH_SECONDS, _RETRY_SECONDS = 60.0, 5.0
_VIEW_KEY, _VIEW_RUNS = "patchcert-1", 200
_CONNECT_SECONDS, _LOCK_SECONDS, _REASON_LENGTH = 5.0, 120.0, 300
_LOCAL_HOST = "http://127.0.0.1:5000"
_NOT_IN_MODEL_NAMES = frozenset("/:.%\"'")
_TABLE = "answers_table.json"

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded."""

    mode: Literal["on", "off", "strict"] = "on"
    """on: a tracker that fails costs one warning; strict: it fails the command; off: nothing is recorded."""
    uri: str | None = None
    """Tracking server or store; unset: MLFLOW_TRACKING_URI, then mlflow.db in the work folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A study as it stands in the tracker.

    Attributes:
        run_id: MLflow's name of the run.
        experiment_id: MLflow's name of its experiment.
        link: page that compares the runs of the experiment.
    """

    run_id: str
    experiment_id: str
    link: str


def tracking_uri(uri: str | None, work_folder: Folder) -> str:
    """Chooses the store: what is given, else MLFLOW_TRACKING_URI, else a database file in the work folder.

    Raises:
        TrackingError: nothing is given, and the work folder is on an object store.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    if not work_folder.is_local:
        raise TrackingError(
            f"no tracker is named, and {work_folder} cannot hold one: a database needs a local disk.\n"
            "  Set MLFLOW_TRACKING_URI or --tracking.uri, or record nothing with --tracking.mode off."
        )
    return f"sqlite:///{work_folder.path('mlflow.db')}"


def publish(
    folders: "Iterable[Location]", config: TrackingConfig, workspace: Workspace, say: Say
) -> list[PublishedRun]:
    """Publishes result folders; repeating it changes nothing.

    Args:
        folders: finished result folders.
        config: tracker and what its failure means.
        workspace: place of the tracker's own database.
        say: takes one line for the reader: where the runs are, or one warning and the command to repeat.

    Returns:
        What was published.

    Raises:
        StudyError: a folder holds no whole result.
        TrackingError: in mode "strict", what failed.
    """
    from patchcert.studies.results import StudyResult
    from patchcert.studies.variance_results import RECORD, VarianceResult

    results = [
        VarianceResult.open(folder) if Folder(folder).is_file(RECORD) else StudyResult.open(folder)
        for folder in folders
    ]
    if config.mode == "off":
        return []
    published: list[PublishedRun] = []
    command = "patchcert publish " + " ".join(str(result.folder) for result in results)
    with _forgiving(config.mode == "strict", say, "the study was not recorded", command):
        tracker = Tracker(tracking_uri(config.uri, workspace.folder))
        for result in results:
            if isinstance(result, VarianceResult):
                published.append(tracker.publish_variance(result))
            else:
                published.append(tracker.publish_study(result))
    if len(published) == len(results):
        for link in dict.fromkeys(run.link for run in published):
            say(f"tracker: {link}" + ("  (start it with: patchcert ui)" if link.startswith(_LOCAL_HOST) else ""))
    return published


def answering(config: TrackingConfig, workspace: Workspace, say: Say) -> TrackingConfig:
    """Opens the tracker once before long work: one that fails is left alone, after a single warning.

    Args:
        config: tracker and what its failure means.
        workspace: place of the tracker's own database.
        say: takes the warning.

    Returns:
        The same settings, or mode "off" where the tracker cannot be used.

    Raises:
        TrackingError: in mode "strict", what failed.
    """
    if config.mode == "off":
        return config
    with _forgiving(config.mode == "strict", say, "the tracker cannot be used, so nothing is recorded", None):
        Tracker(tracking_uri(config.uri, workspace.folder))
        return config
    return dataclasses.replace(config, mode="off")


def training_run(config: TrackingConfig, workspace: Workspace, recipe: Any, dataset: Any, say: Say) -> "TrainingRun":
    """Starts recording a training; nothing appears in the tracker before the first epoch.

    Args:
        config: tracker and what its failure means.
        workspace: place of the tracker's own database.
        recipe: name, training settings, classifier and views.
        dataset: prepared split that is learned from.
        say: takes the one warning of a tracker that fails.
    """
    settings = {
        "training": canonical_settings(recipe.training),
        "classifier": canonical_settings(recipe.classifier),
        "views": recipe.views.identity(),
        "data": {"name": dataset.name, "split": dataset.split, "digest": dataset.digest},
    }

    name, key = f"patchcert/{dataset.name}/train", _hash(settings | {"recipe": recipe.name})

    def begin() -> "tuple[Tracker, str]":
        tracker = Tracker(tracking_uri(config.uri, workspace.folder))
        experiment = tracker.experiment(name)
        run_id = tracker.find_or_create_run(
            experiment,
            _TRAINING_KEY,
            key,
            name=f"{recipe.classifier.network}-{recipe.name}-s{recipe.training.seed}",
            tags=_source_tags(environment(), f"patchcert train {recipe.name}"),
            only_unfinished=True,
        )
        tracker.log_params(run_id, settings | {"environment": environment()})
        tracker.log_dataset(run_id, f"{dataset.name}-{dataset.split}", dataset.digest, "training")
        return tracker, run_id

    def find() -> "tuple[Tracker, str] | None":
        tracker = Tracker(tracking_uri(config.uri, workspace.folder))
        if (experiment := tracker.client.get_experiment_by_name(name)) is not None:
            if run_id := tracker.find_run(experiment.experiment_id, _TRAINING_KEY, key, only_unfinished=True):
                return tracker, run_id
            if tracker.find_run(experiment.experiment_id, _TRAINING_KEY, key):
                return None
        return begin()

    is_off = config.mode == "off"
    return TrainingRun(
        None if is_off else begin, recipe.name, config.mode == "strict", say, find=None if is_off else find
    )


class TrainingRun:
    """Records one training from a thread of its own: neither a slow nor a dead tracker holds the training up."""

    def __init__(
        self,
        begin: "Callable[[], tuple[Tracker, str]] | None",
        name: str,
        strict: bool,
        say: Say = warnings.warn,
        *,
        find: "Callable[[], tuple[Tracker, str] | None] | None" = None,
    ) -> None:
        """Prepares a record.

        Args:
            begin: makes the tracker and finds or creates the run, called with the first figures; None records nothing.
            name: of the recipe; the checkpoint is filed under it.
            strict: whether a failure ends in TrackingError (from ``finish``) instead of one warning.
            say: takes that warning.
            find: finds the unfinished run of an earlier try, or begins one where none was recorded; None: all is there.
        """
        self._begin, self._name, self._strict, self._say, self._find = begin, name, strict, say, find
        self._tasks: queue.Queue[Callable[[Tracker, str], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._ending = threading.Event()

    def log_epoch(self, epoch: int, figures: dict[str, float]) -> None:
        """Hands the figures of an epoch over and returns at once.

        Args:
            epoch: number of the epoch, counted from 1.
            figures: metric name -> value; values that are not finite are left out.
        """
        now = int(time.time() * 1000)
        self._hand_over(lambda tracker, run_id: tracker.log_metrics(run_id, figures, step=epoch, timestamp=now))

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], checkpoint: Any = None) -> None:
        """Ends the record, after what was handed over.

        Where no epoch was left to train, this ends the record of the try that trained it: one that was killed on its
        way, or that no tracker took, of which the figures of the last epoch are known.

        Args:
            status: how the training ended.
            checkpoint: object with ``folder`` and ``digest`` of the trained model, or None.

        Raises:
            TrackingError: in strict mode, what failed.
        """
        if self._thread is None:
            if checkpoint is not None and self._find is not None:
                self._finish_earlier_try(self._find, status, checkpoint)
            return
        if checkpoint is not None:
            self._hand_over(
                lambda tracker, run_id: tracker.log_checkpoint(run_id, self._name, checkpoint.folder, checkpoint.digest)
            )
        self._hand_over(lambda tracker, run_id: tracker.client.set_terminated(run_id, status))
        self._tasks.put(None)
        self._ending.set()
        self._thread.join(_FINISH_SECONDS)
        if self._failure is None and self._thread.is_alive():
            self._failure = TimeoutError(f"it did not answer within {_FINISH_SECONDS:g} s")
        if self._failure is not None:
            with _forgiving(self._strict, self._say, f"the training of {self._name} was not recorded in full", None):
                raise self._failure

    def _finish_earlier_try(
        self,
        find: "Callable[[], tuple[Tracker, str] | None]",
        status: Literal["FINISHED", "FAILED", "KILLED"],
        made: Any,
    ) -> None:
        """Ends the record of another try; where the tracker is away nothing new is lost, so nothing is said."""
        with _forgiving(self._strict, lambda _: None, f"the training of {self._name} was not recorded", None):
            if (found := find()) is not None:
                tracker, run_id = found
                run = tracker.client.get_run(run_id)
                last = json.loads(made.folder.read("config.json")).get("provenance", {}).get("last_epoch")
                if last and not run.data.metrics:
                    tracker.log_metrics(run_id, last, step=int(last["epoch"]), timestamp=run.info.start_time)
                tracker.log_checkpoint(run_id, self._name, made.folder, made.digest)
                tracker.client.set_terminated(run_id, status)

    def _hand_over(self, task: "Callable[[Tracker, str], None]") -> None:
        if self._begin is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="patchcert-tracking", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        """Runs tasks in order. A tracker that fails is asked again until it is back, at the latest at the end."""
        assert self._begin is not None
        run = None
        while (task := self._tasks.get()) is not None:
            is_last_try = False
            while not is_last_try:
                is_last_try = self._ending.is_set()
                try:
                    run = run or self._begin()
                    # A server that went away is noticed at once here; MLflow itself would wait for it.
                    _check_answers(run[0].uri)
                    task(*run)
                except Exception as error:
                    self._failure = error
                    self._ending.wait(_RETRY_SECONDS)
                else:
                    self._failure = None
                    break
            if self._failure is not None:
                return


class Tracker:
    """One MLflow store.

    Args:
        uri: tracking server or database.

    Raises:
        Exception: whatever MLflow raises; ``publish`` and ``TrainingRun`` turn it into one warning.
    """

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _check_answers(uri)
        from mlflow import MlflowClient

        self.uri = uri
        with _database_lock(uri):
            # The first use of a database file creates its tables, which only one process may do.
            self.client = MlflowClient(tracking_uri=uri)
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """Finds or creates an experiment.

        Returns:
            Its id.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None:
            database = _database_path(self.uri)
            location = None if database is None else (database.parent / "mlflow-artifacts" / name).as_uri()
            with _database_lock(self.uri):
                # Somebody else may have created it meanwhile.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    return str(self.client.create_experiment(name, artifact_location=location))
        return str(found.experiment_id)

    def find_or_create_run(
        self, experiment: str, tag: str, value: str, *, name: str, tags: dict[str, str], only_unfinished: bool = False
    ) -> str:
        """Finds the run that carries a tag, or creates it.

        Args:
            experiment: id.
            tag: name of the tag.
            value: of the tag.
            name: of a new run.
            tags: further tags of a new run.
            only_unfinished: finished runs do not count.

        Returns:
            The run's id.
        """
        found = self.find_run(experiment, tag, value, only_unfinished=only_unfinished)
        return found or str(self.client.create_run(experiment, run_name=name, tags={**tags, tag: value}).info.run_id)

    def find_run(self, experiment: str, tag: str, value: str, *, only_unfinished: bool = False) -> str | None:
        """Finds the oldest run that carries a tag: its id, or None.

        Args:
            experiment: id.
            tag: name of the tag.
            value: of the tag.
            only_unfinished: finished runs do not count.
        """
        running = " and attributes.status != 'FINISHED'" if only_unfinished else ""
        found = self.client.search_runs(
            [experiment], f"tags.`{tag}` = '{value}'{running}", order_by=["attributes.start_time ASC"], max_results=1
        )
        return str(found[0].info.run_id) if found else None

    def publish_study(self, result: "StudyResult") -> PublishedRun:
        """Publishes a result folder as one run, found again by its result id.

        Args:
            result: an open result folder.
        """
        return self._publish(
            result, "certify", "study", _description(result), study_metrics(result), answers_table(result.answers)
        )

    def publish_variance(self, result: "VarianceResult") -> PublishedRun:
        """Publishes a variance study as one run, found again by its result id; its raw repeats stay in files.

        Args:
            result: an open result folder.
        """
        from patchcert.studies.variance_figure import variance_figure

        note = variance_figure(result.repeats, result.headline_patch).caption
        return self._publish(result, "variance", "variance", note, variance_metrics(result), result.summary)

    def _publish(
        self,
        result: "StudyResult | VarianceResult",
        kind: str,
        command: str,
        description: str,
        metrics: dict[int, dict[str, float]],
        table: "pd.DataFrame",
    ) -> PublishedRun:
        from patchcert.studies.results import local_copy

        subject, measured_on = result.subject, result.run.get("environment", {})
        experiment = self.experiment(f"patchcert/{subject.dataset}/{kind}")
        run_id = self.find_or_create_run(
            experiment,
            _RESULT_ID,
            result.result_id,
            name=f"{subject.defense}-{subject.split}-{result.result_id[:6]}",
            tags=_source_tags(measured_on, f"patchcert {command} {subject.defense}"),
        )
        # Metric points are a set; the run's own start as their time makes repeating harmless.
        timestamp = self.client.get_run(run_id).info.start_time
        self.client.update_run(run_id, status="RUNNING")
        tags = {
            _MODEL_DIGEST: subject.model_digest,
            "patchcert.split_digest": subject.split_digest,
            "patchcert.version": importlib.metadata.version("patchcert"),
            "mlflow.note.content": description,
            "mlflow.loggedArtifacts": json.dumps([{"path": _TABLE, "type": "table"}]),
        }
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)
        self.log_params(run_id, {"defense": subject.defense, **result.identity, "environment": measured_on})
        for step, figures in metrics.items():
            self.log_metrics(run_id, figures, step=step, timestamp=timestamp)
        self.log_dataset(run_id, f"{subject.dataset}-{subject.split}", subject.split_digest, "certification")
        self._link_model(run_id, subject)
        # log_table() would append to the table of an earlier attempt.
        self.client.log_text(run_id, table.to_json(orient="split", index=False), _TABLE)
        with local_copy(result.folder) as folder:
            self.client.log_artifacts(run_id, str(folder))
        self.client.set_terminated(run_id, "FINISHED")
        return PublishedRun(run_id=run_id, experiment_id=experiment, link=self.save_view(experiment))

    def log_params(self, run_id: str, settings: dict[str, Any]) -> None:
        """Records settings, nested names joined by dots; a setting that is recorded already stays as it is."""
        from mlflow.entities import Param

        known = self.client.get_run(run_id).data.params
        params = [Param(name, text[:_PARAM_LENGTH]) for name, text in _flat(settings) if name not in known]
        self.client.log_batch(run_id, params=params)

    def log_metrics(self, run_id: str, figures: dict[str, float], *, step: int, timestamp: int) -> None:
        """Records finite figures at a step.

        Args:
            run_id: the run.
            figures: metric name -> value.
            step: position on the curve.
            timestamp: milliseconds since 1970.
        """
        from mlflow.entities import Metric

        finite = {name: float(value) for name, value in figures.items() if abs(float(value)) < float("inf")}
        self.client.log_batch(run_id, [Metric(name, value, timestamp, step) for name, value in finite.items()])

    def log_dataset(self, run_id: str, name: str, digest: str, context: str) -> None:
        """Records which images a run used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": name, "digest": digest})
        dataset = Dataset(name=name, digest=digest[:_DIGEST_LENGTH], source_type="patchcert", source=source)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_checkpoint(self, run_id: str, name: str, folder: Any, digest: str) -> None:
        """Records a checkpoint folder (config.json and safetensors) as the model that a run made."""
        from mlflow.entities import LoggedModelOutput

        run = self.client.get_run(run_id)
        model = self._find_model([run.info.experiment_id], digest)
        if model is None:
            created = self.client.create_logged_model(
                run.info.experiment_id,
                name="".join("_" if letter in _NOT_IN_MODEL_NAMES else letter for letter in name),
                source_run_id=run_id,
                tags={_MODEL_DIGEST: digest, "patchcert.location": str(folder)},
            )
            model = created.model_id
        # One that a killed process had begun is completed.
        if self.client.get_logged_model(model).status != "READY":
            if (local := Folder(folder)).is_local:
                self.client.log_model_artifacts(model, local.path())
            self.client.finalize_logged_model(model, "READY")
        self.client.set_tag(run_id, _MODEL_DIGEST, digest)
        self.client.log_outputs(run_id, [LoggedModelOutput(model, step=0)])

    def save_view(self, experiment: str) -> str:
        """Saves a view of an experiment: columns of headline numbers, and curves over the true patch area.

        The format is internal to MLflow's pages; where they do not know it, they show their own default.

        Args:
            experiment: id.

        Returns:
            Link that opens it; the same link for ever.
        """
        runs = self.client.search_runs([experiment], max_results=_VIEW_RUNS)
        logged = {name for run in runs for name in run.data.metrics}
        state = json.dumps(_view_state(logged), separators=(",", ":"), sort_keys=True)
        if len(state) > _TAG_LENGTH:
            state = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
        tag = f"mlflow.sharedViewState.{_VIEW_KEY}"
        if self.client.get_experiment(experiment).tags.get(tag) != state:
            self.client.set_experiment_tag(experiment, tag, state)
        host = _page_address(self.uri).rstrip("/") if self.uri.startswith(("http://", "https://")) else _LOCAL_HOST
        return (
            f"{host}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW_KEY}"
            "&compareRunsMode=CHART"
        )

    def _find_model(self, experiments: list[str], digest: str) -> str | None:
        found = self.client.search_logged_models(experiments, f"tags.`{_MODEL_DIGEST}` = '{digest}'", max_results=1)
        return str(found[0].model_id) if found else None

    def _link_model(self, run_id: str, subject: Any) -> None:
        """Names the recorded checkpoint that a study attacked, where the training was recorded here too."""
        from mlflow.entities import LoggedModelInput

        training = self.client.get_experiment_by_name(f"patchcert/{subject.dataset}/train")
        model = self._find_model([training.experiment_id], subject.model_digest) if training else None
        if model is not None:
            self.client.log_inputs(run_id, models=[LoggedModelInput(model)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class UiCommand:
    """How to start the tracker's pages.

    Attributes:
        arguments: of the process; empty when the tracker is a server that runs already.
        environment: variables it needs besides the present ones.
        address: what to open in a browser.
    """

    arguments: list[str]
    environment: dict[str, str]
    address: str


def ui_command(uri: str, port: int = 5000) -> UiCommand:
    """How to look at a store; its own pages are served on this machine only.

    Args:
        uri: tracking server or database.
        port: of the pages.
    """
    if uri.startswith(("http://", "https://")):
        return UiCommand(arguments=[], environment={}, address=_page_address(uri))
    # The URI may hold a password and arguments show in the list of processes: it goes through the environment.
    environment = _ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return UiCommand(arguments=arguments, environment=environment, address=f"http://127.0.0.1:{port}")


def study_metrics(result: "StudyResult") -> dict[int, dict[str, float]]:
    """The numbers of a study that become metrics.

    Headline numbers are scalars (step 0): tables of runs show only a metric's value at its highest step. Deterministic
    theorems are named ``cert_acc``, heuristics ``heuristic_cert_acc``, theorems about a draw
    ``probabilistic_cert_acc``. On curves the step is the position on the axis: 0.01 % of area, 0.001 of threshold,
    number of drawn views.

    Returns:
        Step -> metric name -> value; accuracies in [0, 1].
    """
    import pandas as pd

    from patchcert.studies.headline import first_settings, strongest_theorem

    answers = result.answers
    steps: dict[int, dict[str, float]] = {0: {"base_acc": float(answers["base_accuracy"].iloc[0])}}

    def add(step: int, curve: str, values: dict[str, float]) -> None:
        steps.setdefault(step, {}).update({f"{curve}/{name}": float(value) for name, value in values.items()})

    theorems = pd.concat([strongest_theorem(answers, patch) for patch in answers["patch"].unique()])
    heuristics = first_settings(answers[answers["certificate"] == "random_crops_reported"])
    sampled = first_settings(answers[answers["certificate"] == "sampled"])
    for rows, prefix in ((theorems, ""), (heuristics, "heuristic_"), (sampled, "probabilistic_")):
        for _, row in rows.sort_values("patch_area", kind="stable").iterrows():
            accuracies = {f"{prefix}cert_acc": row["certified_accuracy"]}
            accuracies |= {f"{prefix}cert_acc_ci_{end}": row[f"certified_{end}"] for end in ("low", "high")}
            is_square = row["patch_height"] ** 2 == row["patch_width"] ** 2 == row["patch_area"]
            percent = 100 * row["patch_fraction"]
            # Where two squares round to one area the larger one comes later and stays: the weaker claim.
            name = f"{percent:.1f}pct" if is_square else row["patch"].replace("@", "_")
            steps[0][f"{prefix}cert_acc_{name}"] = row["certified_accuracy"]
            steps[0][f"{prefix}clean_acc"] = row["clean_accuracy"]
            if is_square:
                add(round(100 * percent), "curve_patch_area", accuracies | {"patch_area_pct": percent})

    at_patch = answers[answers["patch"] == result.headline_patch]
    by_threshold = at_patch[at_patch["vote_rule"] == "threshold"]
    if len(theorems):
        for _, row in by_threshold[by_threshold["certificate"] == theorems["certificate"].iloc[0]].iterrows():
            values = {"cert_acc": row["certified_accuracy"], "clean_acc": row["clean_accuracy"]}
            add(round(1000 * row["vote_threshold"]), "curve_threshold", values)
    for certificate, prefix in (("random_crops_reported", "heuristic_"), ("fresh_draw", "probabilistic_")):
        drawn = at_patch[at_patch["certificate"] == certificate]
        for _, row in drawn[drawn["min_confidence"] == drawn["min_confidence"].head(1).max()].iterrows():
            name = f"{prefix}cert_acc_{row['draws'].replace(' ', '_')}"
            add(row["num_draws"], "curve_n_crops", {name: row["certified_accuracy"]})
    return steps


def variance_metrics(result: "VarianceResult") -> dict[int, dict[str, float]]:
    """The numbers of a variance study that become metrics, at its headline patch; the step is the number of draws.

    ``cert_prob_...`` is the share of images that one draw certifies by p_c as reported (a heuristic): mean, standard
    deviation, 5 % and 95 % quantile over the repeats. ``interval_mean`` is the mean over images of the interval of p_c.
    Draws without replacement have names of their own where both were made.

    Returns:
        Step -> metric name -> value; fractions.
    """
    at_patch = result.summary[result.summary["patch"] == result.headline_patch]
    rows = at_patch[at_patch["certificate"] == at_patch["certificate"].iloc[0]]
    steps: dict[int, dict[str, float]] = {}
    for _, row in rows.iterrows():
        way = "" if row["draws"] == rows["draws"].iloc[0] else f"_{row['draws'].replace(' ', '_')}"
        figures = {
            "cert_prob_mean": row["certified_accuracy"],
            "cert_prob_std": row["certified_accuracy_std"],
            "cert_prob_p05": row["certified_accuracy_p05"],
            "cert_prob_p95": row["certified_accuracy_p95"],
            "interval_mean": row["confidence_interval"],
        }
        named = {f"variance_n_crops/{name}{way}": float(value) for name, value in figures.items()}
        steps.setdefault(int(row["num_draws"]), {}).update(named)
    return steps


def answers_table(answers: "pd.DataFrame") -> "pd.DataFrame":
    """The answers with text labels, as MLflow's table view compares them between runs."""
    import pandas as pd

    from patchcert.studies.wording import certificate_words, draw_words, rule_words

    rows = [row for _, row in answers.iterrows()]
    return pd.DataFrame(
        {
            "area": [f"{100 * row['patch_fraction']:.1f}%" for row in rows],
            "patch": [row["patch"] for row in rows],
            "certificate": [certificate_words(row) for row in rows],
            "guarantee": [row["guarantee"] for row in rows],
            "votes": [rule_words(row) for row in rows],
            "views": [draw_words(row) for row in rows],
            "clean": answers["clean_accuracy"].round(4).to_list(),
            "certified": answers["certified_accuracy"].round(4).to_list(),
            "certified_low": answers["certified_low"].round(4).to_list(),
            "certified_high": answers["certified_high"].round(4).to_list(),
            "note": answers["note"].to_list(),
        }
    )


def _view_state(logged: set[str]) -> dict[str, Any]:
    """State of MLflow's run page, format of 3.17: columns, and line charts over stated axes of what was logged."""
    ways = [f"{way}_replacement" for way in ("with", "without")]
    charts = (
        ("certified accuracy against patch area (% of the image)", "curve_patch_area", ["cert_acc"], "patch_area_pct"),
        ("accuracy against vote threshold (x 1000)", "curve_threshold", ["cert_acc", "clean_acc"], ""),
        (
            "certified accuracy against drawn views",
            "curve_n_crops",
            [f"{kind}_cert_acc_{way}" for kind in ("heuristic", "probabilistic") for way in ways],
            "",
        ),
        (
            "certified accuracy of single draws against drawn views: mean, 5 % and 95 %",
            "variance_n_crops",
            [f"cert_prob_{figure}" for figure in ("mean", "p05", "p95")],
            "",
        ),
    )
    section = "patchcert-curves"
    cards = []
    for title, curve, wanted, axis in charts:
        names = [f"{curve}/{name}" for name in wanted if f"{curve}/{name}" in logged]
        card = {
            "uuid": f"{section}-{curve}",
            "type": "LINE",
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
            "displayName": title,
            "metricKey": (names or [""])[0],
            "selectedMetricKeys": names,
            "xAxisKey": "metric" if axis else "step",
            "selectedXAxisMetricKey": f"{curve}/{axis}" if axis else "",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "range": {"yMin": 0, "yMax": 1},
            "lineSmoothness": 0,
            "displayPoints": True,
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "ignoreOutliers": False,
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": False,
        }
        cards += [card] if names else []
    headline = sorted(name for name in logged if "/" not in name)
    return {
        "selectedColumns": [f"metrics.`{name}`" for name in headline] + ["attributes.`Dataset`"],
        "compareRunSections": [
            {"uuid": section, "name": "certified accuracy", "display": True, "isReordered": False}
            | {"deleted": False, "isGenerated": False}
        ],
        "compareRunCharts": cards,
    }


def _description(result: "StudyResult") -> str:
    """First screen of the study's report, as Markdown."""
    text = result.folder.read("report.md").decode()
    return text.partition("\n## ")[0][:_TAG_LENGTH]


def _source_tags(measured_on: dict[str, Any], command: str) -> dict[str, str]:
    """Where a run comes from: MLflow sets these tags for its fluent calls only."""
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    if "commit" in measured_on:
        tags |= {"mlflow.source.git.commit": measured_on["commit"]}
        tags |= {"patchcert.git_dirty": str(measured_on.get("dirty", False)).lower()}
    return tags


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("outer.inner", text)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(str(entry) for entry in value)
        else:
            yield f"{prefix}{name}", str(value)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _page_address(uri: str) -> str:
    """The address of a server as it may be printed: without user and password, for which its pages ask."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _check_answers(uri: str) -> None:
    """Raises OSError at once for a server that is not there; MLflow itself would try for long."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in urllib.request.getproxies():
        return
    try:
        socket.create_connection(
            (parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]), _CONNECT_SECONDS
        ).close()
    except OSError as error:
        raise OSError(f"{parts.scheme}://{parts.hostname}:{parts.port or ''} does not answer: {error}") from None


def _database_path(uri: str) -> Path | None:
    """File of an SQLite store; None for every other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    database = _database_path(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_LOCK_SECONDS):
        yield


@contextlib.contextmanager
def _forgiving(strict: bool, say: Say, what: str, command: str | None) -> Iterator[None]:
    """Turns any failure inside into one warning, or in strict mode into TrackingError."""
    try:
        yield
    except Exception as error:
        reason = masked(" ".join(str(error).split())) or type(error).__name__
        mend = f"Publish it when the tracker is back:  {command}" if command else "Everything else is complete."
        message = f"{what}: {reason[:_REASON_LENGTH]}\n  {mend}"
        if strict:
            raise TrackingError(message) from error
        say(f"warning: {message}")
