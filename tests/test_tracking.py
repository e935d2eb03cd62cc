import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from studies import simulated

from patchcert.data.storage import Folder
from patchcert.errors import StudyError, TrackingError
from patchcert.geometry import BandViews
from patchcert.tracking import (
    Tracker,
    TrackingConfig,
    TrainingRun,
    publish,
    study_metrics,
    tracking_uri,
    training_run,
    ui_command,
)
from patchcert.training.config import TrainingConfig
from patchcert.workspace import Workspace

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def workspace(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    shutil.copy(empty_store, tmp_path / "work" / "mlflow.db")
    return Workspace(str(tmp_path / "work"))


@pytest.fixture
def client(workspace):
    return Tracker(tracking_uri(None, workspace.folder)).client


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    studies = {"column": simulated.column_study(), "crop": simulated.crop_study()}
    return [simulated.write(study, folder / name) for name, study in studies.items()]


def publish_strictly(results, workspace):
    said = []
    runs = publish([result.folder for result in results], TrackingConfig(mode="strict"), workspace, said.append)
    return runs, said


def history(client, run_id, name):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def logged_table(client, run_id):
    assert {"path": "answers_table.json", "type": "table"} in json.loads(
        client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    )
    return json.loads(Path(client.download_artifacts(run_id, "answers_table.json")).read_text())


def test_a_study_becomes_one_run_with_headline_numbers_and_curves(workspace, client, results):
    (run, _), said = publish_strictly(results, workspace)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert client.get_experiment(run.experiment_id).name == "patchcert/cifar10/certify"
    answers = results[0].answers.query("certificate == 'placement' and vote_threshold == 0.3").set_index("patch")
    metrics = stored.data.metrics
    assert metrics["clean_acc"] == answers["clean_accuracy"].iloc[0]
    for name, patch in (("0.1pct", "1x1"), ("0.4pct", "2x2"), ("2.4pct", "5x5"), ("12x2", "12x2")):
        assert metrics[f"cert_acc_{name}"] == answers.loc[patch, "certified_accuracy"]
    squares = answers.loc[["1x1", "2x2", "3x3", "5x5", "7x7"]]
    steps = [round(10_000 * fraction) for fraction in squares["patch_fraction"]]
    for metric, column in (("cert_acc", "certified_accuracy"), ("cert_acc_ci_low", "certified_low")):
        assert history(client, run.run_id, f"curve_patch_area/{metric}") == list(
            zip(steps, squares[column], strict=True)
        )
    areas = [value for _, value in history(client, run.run_id, "curve_patch_area/patch_area_pct")]
    assert areas == pytest.approx(100 * squares["patch_fraction"].to_numpy())
    assert [step for step, _ in history(client, run.run_id, "curve_threshold/cert_acc")] == [200, 300, 400]
    assert said == [f"tracker: {run.link}  (start it with: patchcert ui)"]


def test_heuristics_have_names_of_their_own(results):
    steps = study_metrics(results[1])
    answers = results[1].answers.query("patch == '5x5'").set_index(["certificate", "draws", "num_draws"])
    drawn = answers.query("min_confidence == 0.95").loc["random_crops_reported"]["certified_accuracy"]
    placement = answers.loc["placement"]["certified_accuracy"].iloc[0]
    assert steps[0]["cert_acc_2.4pct"] == placement
    assert steps[0]["heuristic_cert_acc_2.4pct"] == drawn["with replacement", 128] != placement
    assert steps[512]["curve_n_crops/heuristic_cert_acc_with_replacement"] == drawn["with replacement", 512]
    assert steps[512]["curve_n_crops/heuristic_cert_acc_without_replacement"] == 0
    for figures in steps.values():
        assert all(0 <= value <= 100 and not set(name) & set("%@") for name, value in figures.items())


def test_run_carries_table_files_dataset_settings_and_source(workspace, client, results, tmp_path):
    (run, _), _ = publish_strictly(results, workspace)
    stored = client.get_run(run.run_id)
    names = {artifact.path for artifact in client.list_artifacts(run.run_id)}
    assert names >= {"answers.parquet", "report.html", "summary.json", "run.json", "figures", "answers_table.json"}
    assert {artifact.path for artifact in client.list_artifacts(run.run_id, "figures")} >= {"figures/patch_area.png"}
    assert (tmp_path / "work" / "mlflow-artifacts").is_dir()
    table = logged_table(client, run.run_id)
    assert len(table["data"]) == len(results[0].answers)
    assert {row[table["columns"].index("area")] for row in table["data"]} >= {"0.4%", "2.4%"}
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("cifar10-test", ("ab" * 32)[:36])
    assert stored.data.params["study.vote_thresholds"] == "0.3, 0.2, 0.4"
    tags = stored.data.tags
    assert tags["patchcert.result_id"] == results[0].result_id
    assert (tags["mlflow.source.git.commit"], tags["patchcert.git_dirty"]) == ("0123abc", "true")
    assert "no 5x5 patch anywhere can change the prediction" in tags["mlflow.note.content"]


def test_publishing_again_changes_nothing(workspace, client, results):
    def state():
        (run, _), _ = publish_strictly(results, workspace)
        stored = client.get_run(run.run_id)
        metrics = {name: client.get_metric_history(run.run_id, name) for name in stored.data.metrics}
        points = {name: [(p.step, p.value, p.timestamp) for p in series] for name, series in metrics.items()}
        inputs = [used.dataset.digest for used in stored.inputs.dataset_inputs]
        runs = len(client.search_runs([run.experiment_id]))
        return run.run_id, stored.data.params, stored.data.tags, points, logged_table(client, run.run_id), inputs, runs

    assert state() == state()


def test_a_run_cut_off_in_the_middle_is_completed(workspace, client, results, monkeypatch):
    def cut_off(*_):
        raise OSError("the network went away")

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_dataset", cut_off)
        with pytest.raises(TrackingError, match="the network went away"):
            publish_strictly(results[:1], workspace)
    (run,), _ = publish_strictly(results[:1], workspace)
    (only,) = client.search_runs([run.experiment_id])
    assert (only.info.run_id, only.info.status) == (run.run_id, "FINISHED")
    assert only.inputs.dataset_inputs


def test_saved_view_names_existing_metrics_and_its_link_stays(workspace, client, results):
    (first, second), _ = publish_strictly(results, workspace)
    assert first.link == second.link
    assert first.link.endswith("workflowType=machine_learning&viewStateShareKey=patchcert-1&compareRunsMode=CHART")
    (tag,) = [
        value
        for name, value in client.get_experiment(first.experiment_id).tags.items()
        if name == "mlflow.sharedViewState.patchcert-1"
    ]
    assert len(tag) < 5000
    state = json.loads(tag)
    logged = {name for run in client.search_runs([first.experiment_id]) for name in run.data.metrics}
    for chart in state["compareRunCharts"]:
        assert set(chart["selectedMetricKeys"]) <= logged
        assert chart["selectedXAxisMetricKey"] in (*logged, "")
    columns = {column.split("`")[1] for column in state["selectedColumns"] if column.startswith("metrics.")}
    assert columns == {name for name in logged if "/" not in name}


def test_dead_server_costs_one_warning_and_little_time(workspace, results):
    said = []
    started = time.perf_counter()
    runs = publish([result.folder for result in results], TrackingConfig(uri=DEAD), workspace, said.append)
    assert time.perf_counter() - started < 15 and runs == []
    (warning,) = said
    assert warning.startswith(f"warning: the study was not recorded: {DEAD} does not answer")
    assert f"\n  Publish it when the tracker is back:  patchcert publish {results[0].folder}" in warning


def test_dead_server_fails_in_strict_mode_and_off_asks_nothing(workspace, results):
    with pytest.raises(TrackingError, match=r"does not answer.*\n  Publish it when the tracker is back"):
        publish([results[0].folder], TrackingConfig(uri=DEAD, mode="strict"), workspace, print)
    said = []
    assert publish([results[0].folder], TrackingConfig(uri=DEAD, mode="off"), workspace, said.append) == [] == said


def test_a_folder_without_result_is_an_error_whatever_the_mode(workspace, tmp_path):
    with pytest.raises(StudyError, match="holds no study result"):
        publish([tmp_path], TrackingConfig(), workspace, print)


def test_the_store_is_the_flag_then_the_variable_then_the_work_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable:5000")
    assert tracking_uri("http://flag:5000", Folder(tmp_path)) == "http://flag:5000"
    assert tracking_uri(None, Folder(tmp_path)) == "http://variable:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(None, Folder(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(TrackingError, match="a database needs a local disk"):
        tracking_uri(None, Folder("s3://bucket/work?region=eu-west-1"))


@dataclasses.dataclass(frozen=True)
class Classifier:
    network: str = "resnet9"


RECIPE = types.SimpleNamespace(
    name="column2-digits",
    training=TrainingConfig(epochs=2),
    classifier=Classifier(),
    views=BandViews(image_size=(8, 8), width=2),
)
DATASET = types.SimpleNamespace(name="digits", split="train", digest="12" * 32)


def checkpoint_in(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"weights")
    return types.SimpleNamespace(folder=Folder(folder), digest="cd" * 32)


def test_training_is_recorded_with_its_checkpoint(workspace, client, tmp_path):
    run = training_run(TrackingConfig(mode="strict"), workspace, RECIPE, DATASET, print)
    run.log_epoch(1, {"loss": 2.5, "view_accuracy": 0.25})
    run.log_epoch(2, {"loss": 1.5, "view_accuracy": float("nan")})
    run.finish("FINISHED", checkpoint=checkpoint_in(tmp_path / "model"))
    experiment = client.get_experiment_by_name("patchcert/digits/train")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert (stored.info.run_name, stored.info.status) == ("resnet9-column2-digits-s0", "FINISHED")
    assert history(client, stored.info.run_id, "loss") == [(1, 2.5), (2, 1.5)]
    assert history(client, stored.info.run_id, "view_accuracy") == [(1, 0.25)]
    assert stored.data.params["training.epochs"] == "2" and stored.data.params["data.digest"] == DATASET.digest
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.name == "column2-digits" and model.source_run_id == stored.info.run_id and model.status == "READY"
    names = {artifact.path for artifact in client.list_logged_model_artifacts(model.model_id)}
    assert names == {"config.json", "weights.safetensors"}
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]


def test_a_study_names_the_recorded_model_it_attacked(workspace, client, tmp_path, results):
    dataset = types.SimpleNamespace(name="cifar10", split="train", digest="12" * 32)
    training = training_run(TrackingConfig(mode="strict"), workspace, RECIPE, dataset, print)
    training.log_epoch(1, {"loss": 2.5})
    training.finish("FINISHED", checkpoint=checkpoint_in(tmp_path / "model"))
    (run,), _ = publish_strictly(results[:1], workspace)
    (model,) = client.search_logged_models([client.get_experiment_by_name("patchcert/cifar10/train").experiment_id])
    assert [used.model_id for used in client.get_run(run.run_id).inputs.model_inputs] == [model.model_id]


def test_a_resumed_training_continues_its_run_and_a_finished_one_makes_none(workspace, client):
    def train(epochs, status):
        run = training_run(TrackingConfig(mode="strict"), workspace, RECIPE, DATASET, print)
        for epoch in epochs:
            run.log_epoch(epoch, {"loss": 1.0 / epoch})
        run.finish(status)

    train([1], "FAILED")
    train([2, 3], "FINISHED")
    train([], "FINISHED")
    (stored,) = client.search_runs([client.get_experiment_by_name("patchcert/digits/train").experiment_id])
    assert stored.info.status == "FINISHED"
    assert history(client, stored.info.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_the_record_of_a_try_killed_after_its_last_epoch_is_finished_by_the_next(workspace, client, tmp_path):
    model = checkpoint_in(tmp_path / "model")
    killed = training_run(TrackingConfig(mode="strict"), workspace, RECIPE, DATASET, print)
    killed.log_epoch(1, {"loss": 1.0})
    deadline = time.monotonic() + 60
    while not (experiment := client.get_experiment_by_name("patchcert/digits/train")) or not (
        found := client.search_runs([experiment.experiment_id], "metrics.loss > 0")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The kill came while the checkpoint was being logged.
    begun = client.create_logged_model(
        experiment.experiment_id,
        name="column2-digits",
        source_run_id=found[0].info.run_id,
        tags={"patchcert.model_digest": model.digest},
    )
    for _ in range(2):
        training_run(TrackingConfig(mode="strict"), workspace, RECIPE, DATASET, print).finish("FINISHED", model)
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED"
    (logged,) = client.search_logged_models([experiment.experiment_id])
    assert (logged.model_id, logged.status) == (begun.model_id, "READY")
    assert len(client.list_logged_model_artifacts(logged.model_id)) == 2


def test_a_model_that_no_tracker_took_is_recorded_once_when_it_is_there_again(workspace, client, tmp_path):
    model, said = checkpoint_in(tmp_path / "model"), []
    last = {"epoch": 2, "loss": 0.5}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"provenance": {"last_epoch": last}}))
    training_run(TrackingConfig(uri=DEAD), workspace, RECIPE, DATASET, said.append).finish("FINISHED", model)
    assert said == []
    with pytest.raises(TrackingError, match="does not answer"):
        strict = TrackingConfig(uri=DEAD, mode="strict")
        training_run(strict, workspace, RECIPE, DATASET, print).finish("FINISHED", model)
    for _ in range(2):
        training_run(TrackingConfig(mode="strict"), workspace, RECIPE, DATASET, print).finish("FINISHED", model)
    experiment = client.get_experiment_by_name("patchcert/digits/train").experiment_id
    (stored,) = client.search_runs([experiment])
    assert stored.info.status == "FINISHED" and history(client, stored.info.run_id, "loss") == [(2, 0.5)]
    assert len(client.search_logged_models([experiment])) == 1


def test_training_without_a_tracker_warns_once_and_goes_on(workspace):
    said = []
    run = training_run(TrackingConfig(uri=DEAD), workspace, RECIPE, DATASET, said.append)
    for epoch in range(1, 6):
        started = time.perf_counter()
        run.log_epoch(epoch, {"loss": 1.0})
        assert time.perf_counter() - started < 0.5
    run.finish("FINISHED")
    (warning,) = said
    assert "the training of column2-digits was not recorded in full" in warning and "does not answer" in warning
    strict = training_run(TrackingConfig(uri=DEAD, mode="strict"), workspace, RECIPE, DATASET, print)
    strict.log_epoch(1, {"loss": 1.0})
    with pytest.raises(TrackingError, match="does not answer"):
        strict.finish("FINISHED")


def test_a_tracker_that_hangs_never_holds_the_training_up(monkeypatch):
    monkeypatch.setattr("patchcert.tracking._FINISH_SECONDS", 0.2)
    release, said = threading.Event(), []
    run = TrainingRun(release.wait, "column2-digits", False, said.append)
    started = time.perf_counter()
    run.log_epoch(1, {"loss": 1.0})
    run.finish("FINISHED")
    assert time.perf_counter() - started < 2 and "did not answer within 0.2 s" in said[0]
    release.set()


def test_tracking_off_records_nothing(workspace, client):
    run = training_run(TrackingConfig(mode="off"), workspace, RECIPE, DATASET, print)
    run.log_epoch(1, {"loss": 1.0})
    run.finish("FINISHED")
    assert client.get_experiment_by_name("patchcert/digits/train") is None


def test_pages_are_served_on_this_machine_only_and_hide_the_store():
    command = ui_command("postgresql+psycopg://user:secret@host/db", port=5123)
    assert command.arguments[1:4] == ["-m", "mlflow", "ui"] and "127.0.0.1" in command.arguments
    assert not any("secret" in word for word in command.arguments)
    assert command.environment["MLFLOW_BACKEND_STORE_URI"].endswith("secret@host/db")
    assert command.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert command.address == "http://127.0.0.1:5123"
    assert ui_command("http://server:5000").arguments == []


def test_import_does_not_load_mlflow():
    code = "import sys, patchcert.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
