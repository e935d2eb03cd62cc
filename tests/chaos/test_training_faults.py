"""Training workers and the tracker die while a model is trained; a checkpoint of another run is refused."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request

import pytest
from processes import processes_named

from .held import UNLIMITED

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def ray_here(held_here):
    import ray

    from patchcert.stages.cluster import set_environment

    set_environment(embedded=True, verbose=False)
    with held_here.over_what_starts():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield ray
    ray.shutdown()


def test_killed_workers_change_no_weight(
    ray_here, held_here, fault, lost, trained_undisturbed, small_recipe, prepared, tmp_path
):
    from safetensors.torch import load

    from patchcert.stages.resources import Resources
    from patchcert.stages.train import train
    from patchcert.workspace import Workspace

    def strike(epoch, row):
        """Kills the worker in the middle of the third and of the fifth epoch, where it is held."""
        if epoch in (2, 4):
            deadline = time.monotonic() + 300
            while not held_here.times_begun(epoch + 1):
                assert time.monotonic() < deadline, "the next epoch does not begin"
                time.sleep(0.02)
            (process,) = processes_named("RayTrainWorker")
            os.kill(process, signal.SIGKILL)
            fault("train worker killed")
            held_here.allow(epochs=epoch + 2)

    held_here.allow(epochs=2)
    resources = Resources(cpus_per_worker=1, max_failures=3)
    workspace = Workspace(str(tmp_path))
    model = train(small_recipe, prepared, workspace, resources, on_epoch=strike)
    assert [int(row["epoch"]) for row in model.epochs] == [1, 2, 3, 4, 5, 6]
    lost("epochs", sum(held_here.times_begun(epoch) for epoch in range(1, 7)) - 6, 2)
    weights = load(model.folder.read(json.loads(model.folder.read("config.json"))["weights"]))
    assert weights.keys() == trained_undisturbed.keys()
    assert all((weights[name] == trained_undisturbed[name]).all() for name in weights)


def test_checkpoint_of_other_settings_is_refused(ray_here, held_here, small_recipe, prepared, tmp_path):
    import dataclasses

    from patchcert.errors import TrainingError
    from patchcert.stages.resources import Resources
    from patchcert.stages.train import train
    from patchcert.trained_models import training_key
    from patchcert.workspace import Workspace

    held_here.allow(epochs=UNLIMITED)
    resources, workspace = Resources(cpus_per_worker=1, max_failures=0), Workspace(str(tmp_path))
    short = dataclasses.replace(small_recipe, training=dataclasses.replace(small_recipe.training, epochs=1))
    train(short, prepared, workspace, resources)
    other = dataclasses.replace(short, training=dataclasses.replace(short.training, learning_rate=1e-4, epochs=2))
    names = [
        workspace.training(recipe.name, training_key(recipe, prepared["train"])).path() for recipe in (short, other)
    ]
    shutil.copytree(*names)
    with pytest.raises(TrainingError, match=r"belongs to run [0-9a-f]{8}, not to [0-9a-f]{8}"):
        train(other, prepared, workspace, resources)
    assert workspace.models(small_recipe.name).folders() == [training_key(short, prepared["train"])]


class Server:
    """An MLflow server on this machine that can be killed and started again."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            self._command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None
                time.sleep(0.2)

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_tracker_that_dies_and_comes_back_misses_nothing(fault, small_recipe, tmp_path):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from patchcert.tracking import TrackingConfig, training_run
    from patchcert.workspace import Workspace

    server, warnings = Server(tmp_path), []
    try:
        dataset = types.SimpleNamespace(name="digits", split="train", digest="ab" * 32)
        config = TrackingConfig(uri=server.uri)
        run = training_run(config, Workspace(str(tmp_path)), small_recipe, dataset, warnings.append)
        client = MlflowClient(server.uri)

        def points():
            (experiment,) = [e for e in client.search_experiments() if e.name == "patchcert/digits/train"]
            (stored,) = client.search_runs([experiment.experiment_id])
            return stored, client.get_metric_history(stored.info.run_id, "loss")

        def wait_until_stored(epoch):
            deadline = time.monotonic() + 300
            while True:
                # The experiment, the run and its first figures come one after the other.
                with contextlib.suppress(ValueError, MlflowException):
                    if epoch in [point.step for point in points()[1]]:
                        return
                assert time.monotonic() < deadline, f"epoch {epoch} does not arrive"
                time.sleep(0.1)

        for epoch in range(1, 10):
            began = time.monotonic()
            run.log_epoch(epoch, {"loss": 1 / epoch})
            # Handed over, whether the server is there or not: the training is not held up by calls to a dead one, which
            # try again for longer than that.
            assert time.monotonic() - began < 5
            if epoch in (3, 6):
                wait_until_stored(epoch)
                server.kill()
                fault("MLflow server killed")
            if epoch in (5, 7):
                server.start()
        run.finish("FINISHED")
        stored, arrived = points()
        assert sorted((point.step, point.value) for point in arrived) == [(e, 1 / e) for e in range(1, 10)]
        assert stored.info.status == "FINISHED" and warnings == []
    finally:
        server.kill()
