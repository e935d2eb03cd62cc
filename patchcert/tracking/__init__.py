"""Records results and trainings in MLflow; files are the truth, and no failure here fails a job."""

import base64
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import queue
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from patchcert.addresses import masked
from patchcert.data.storage import Folder
from patchcert.data.untrusted import read_json
from patchcert.errors import TrackingError
from patchcert.provenance import environment
from patchcert.tracking.metrics import answers_table, study_metrics, variance_metrics
from patchcert.tracking.pages import LOCAL_ADDRESS, page_address, serve_pages, ui_command, view_state
from patchcert.tracking.store import (
    artifact_location,
    check_address,
    check_answers,
    database_lock,
    follow_folder,
    prepare_environment,
    tracking_uri,
)
from patchcert.workspace import Workspace, canonical_settings

if TYPE_CHECKING:
    import pandas as pd

    from patchcert.studies.result_folders import Location
    from patchcert.studies.results import StudyResult
    from patchcert.studies.variance_results import VarianceResult

_CONTENT = "patchcert.content_digest"
_RESULT_ID, _TRAINING_KEY, _MODEL_DIGEST = "patchcert.result_id", "patchcert.training_key", "patchcert.model_digest"
_PARAM_LENGTH, _TAG_LENGTH, _DIGEST_LENGTH = 6000, 4900, 36
_FINISH_SECONDS, _RETRY_SECONDS = 60.0, 5.0
_VIEW_KEY, _VIEW_RUNS = "patchcert-1", 200
_REASON_START, _REASON_END = 600, 400
_NOT_IN_MODEL_NAMES = frozenset("/:.%\"'")
_TABLE = "answers_table.json"

Say = Callable[[str], object]

__all__ = [
    "PublishedRun",
    "Tracker",
    "TrackingConfig",
    "TrainingRun",
    "answering",
    "check_address",
    "publish",
    "serve_pages",
    "study_metrics",
    "tracking_uri",
    "training_run",
    "ui_command",
]


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
    check_address(config.uri)
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
            say(f"tracker: {link}" + ("  (start it with: patchcert ui)" if link.startswith(LOCAL_ADDRESS) else ""))
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
                last = read_json(made.folder, "config.json").get("provenance", {}).get("last_epoch")
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
                    check_answers(run[0].uri)
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
        prepare_environment()
        check_answers(uri)
        from mlflow import MlflowClient

        self.uri = uri
        with database_lock(uri):
            if follow_folder(uri):
                _forget_places_of_artifacts()
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
            location = artifact_location(self.uri, name)
            with database_lock(self.uri):
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
        from patchcert.studies.result_folders import local_copy

        subject, measured_on = result.subject, result.run.get("environment", {})
        experiment = self.experiment(f"patchcert/{subject.dataset}/{kind}")
        run_id = self.find_or_create_run(
            experiment,
            _RESULT_ID,
            result.result_id,
            name=f"{subject.defense}-{subject.split}-{result.result_id[:6]}",
            tags=_source_tags(measured_on, f"patchcert {command} {subject.defense}"),
        )
        self._refuse_other_content(run_id, result)
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
        with local_copy(result.folder, result.files) as folder:
            self.client.log_artifacts(run_id, str(folder))
        self.client.set_terminated(run_id, "FINISHED")
        return PublishedRun(run_id=run_id, experiment_id=experiment, link=self.save_view(experiment))

    def _refuse_other_content(self, run_id: str, result: "StudyResult | VarianceResult") -> None:
        """Keeps what a finished run shows: other numbers under the same id are not published over it.

        Raises:
            TrackingError: the run holds other tables.
        """
        from patchcert.studies.result_folders import content_digest

        run, content = self.client.get_run(run_id), content_digest(result.folder, result.files)
        there = run.data.tags.get(_CONTENT)
        if there not in (None, content) and run.info.status == "FINISHED":
            raise TrackingError(
                f"the run of result {result.result_id} holds other numbers (content {there[:12]}) than {result.folder} "
                f"(content {content[:12]}).\n  Find out which of them is right:  patchcert verify {result.folder}"
            )
        self.client.set_tag(run_id, _CONTENT, content)

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
        state = json.dumps(view_state(logged), separators=(",", ":"), sort_keys=True)
        if len(state) > _TAG_LENGTH:
            state = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
        tag = f"mlflow.sharedViewState.{_VIEW_KEY}"
        if self.client.get_experiment(experiment).tags.get(tag) != state:
            self.client.set_experiment_tag(experiment, tag, state)
        host = page_address(self.uri).rstrip("/") if self.uri.startswith(("http://", "https://")) else LOCAL_ADDRESS
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


@contextlib.contextmanager
def _forgiving(strict: bool, say: Say, what: str, command: str | None) -> Iterator[None]:
    """Turns any failure inside into one warning, or in strict mode into TrackingError."""
    try:
        yield
    except Exception as error:
        reason = masked(" ".join(str(error).split())) or type(error).__name__
        mend = f"Publish it when the tracker is back:  {command}" if command else "Everything else is complete."
        message = f"{what}: {_shortened(reason)}\n  {mend}"
        if strict:
            raise TrackingError(message) from error
        say(f"warning: {message}")


def _forget_places_of_artifacts() -> None:
    """MLflow remembers, for as long as a process lives, where each run's artifacts were."""
    from mlflow.tracking._tracking_service import utils

    # Internal to MLflow 3.17; a version that remembers nothing has nothing to forget.
    getattr(utils, "_artifact_repos_cache", {}).clear()


def _shortened(reason: str) -> str:
    """A library's message of any length: its start, and its end, where the remedy often is."""
    if len(reason) <= _REASON_START + _REASON_END:
        return reason
    return f"{reason[:_REASON_START]} ... {reason[-_REASON_END:]}"
