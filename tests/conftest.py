"""What all tests share: an environment set before anything is imported, real images, and small trained models."""

import dataclasses
import hashlib
import os
from pathlib import Path

_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
if _SHARED_DATA.is_dir():
    os.environ.setdefault("PATCHCERT_DATA", str(_SHARED_DATA))

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
    "patchcert", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patchcert")

# torch is imported where it is needed: the tests of the pure layers do without.


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real images, or a skip."""
    folder = Path(os.environ.get("PATCHCERT_DATA") or _SHARED_DATA)
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set PATCHCERT_DATA")
    return folder


@pytest.fixture(scope="session")
def s3_variables():
    """Variables with which any process finds a real S3 server on this machine and its one bucket, ``bucket``."""
    import urllib.request

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    yield {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server.stop()


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory):
    """The bundled digits at 32x32, prepared: split name -> PreparedDataset."""
    from patchcert.data import DataConfig, prepare

    return prepare(DataConfig(dataset="digits"), (32, 32), str(tmp_path_factory.mktemp("digits")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A classifier in evaluation mode, not to be changed by tests, with the settings and figures of its training."""

    classifier: object
    training: object
    epochs: list


def _train(shared_folder, views, classifier_config, dataset, **settings):
    """Trains once for all processes of a test run: the first one trains, the others read what it kept."""
    import filelock
    import torch

    from patchcert.models.checkpoint import initial_classifier
    from patchcert.training.config import TrainingConfig
    from patchcert.training.feeding import open_feed
    from patchcert.training.loop import Trainer

    torch.set_num_threads(1)
    training = TrainingConfig(
        **{
            "batch_size": 64,
            "views_per_image": 4,
            "optimizer": "adamw",
            "learning_rate": 6e-3,
            "weight_decay": 1e-2,
            **settings,
        }
    )
    classifier = initial_classifier(
        classifier_config, views, dataset.num_channels, dataset.num_classes, seed=training.seed
    )
    name = hashlib.sha256(repr((views, classifier_config, training)).encode()).hexdigest()[:16]
    kept = shared_folder / f"{name}.pt"
    with filelock.FileLock(f"{kept}.lock"):
        if kept.exists():
            # Written a moment ago by a process of this very test run.
            state, epochs = torch.load(kept, weights_only=False)
            classifier.load_state_dict(state)
        else:
            trainer = Trainer(classifier, training, open_feed(dataset, training), torch.device("cpu"))
            epochs = [trainer.run_epoch() for _ in range(training.epochs)]
            torch.save((classifier.state_dict(), epochs), kept)
    classifier.eval().requires_grad_(False)
    return TrainedModel(classifier=classifier, training=training, epochs=epochs)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """Where the processes of one test run keep what they made for each other."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def column_digits(shared_folder, prepared_digits):
    """Column smoothing of the digits: bands of width 4, the small network of DRS."""
    from patchcert.geometry import BandViews
    from patchcert.models.config import ClassifierConfig

    return _train(
        shared_folder,
        BandViews(image_size=(32, 32), width=4),
        ClassifierConfig(network="drs-mnist-cnn", width=0.25),
        prepared_digits["train"],
        epochs=6,
    )


@pytest.fixture(scope="session")
def crop_digits(shared_folder, prepared_digits):
    """Randomized cropping of the digits: every second 16x16 crop, a narrow ResNet9 and positional encoding."""
    from patchcert.geometry import CropViews
    from patchcert.models.config import ClassifierConfig
    from patchcert.views.encoding import EncodingConfig

    return _train(
        shared_folder,
        CropViews(image_size=(32, 32), crop_size=16, stride=2),
        ClassifierConfig(network="resnet9", width=0.125, encoding=EncodingConfig(removed="cut", positional_bound=0.1)),
        prepared_digits["train"],
        epochs=4,
    )


@pytest.fixture(scope="session")
def one_pass_bands_digits(shared_folder, prepared_digits):
    """Column bands of width 4 read by a narrow network that scores all of them in one pass, as it was trained."""
    from patchcert.geometry import BandViews
    from patchcert.models.config import ClassifierConfig
    from patchcert.views.encoding import EncodingConfig

    return _train(
        shared_folder,
        BandViews(image_size=(32, 32), width=4),
        ClassifierConfig(network="band-network", width=0.125, encoding=EncodingConfig(removed="cut", coordinates=True)),
        prepared_digits["train"],
        views_per_image=0,
        batch_size=32,
        epochs=3,
    )


@pytest.fixture(scope="session")
def one_pass_crops_digits(shared_folder, prepared_digits):
    """Crops of 12x12 across the seam, every second one, read by a narrow network that scores all in one pass."""
    from patchcert.geometry import CropViews
    from patchcert.models.config import ClassifierConfig
    from patchcert.views.encoding import EncodingConfig

    return _train(
        shared_folder,
        CropViews(image_size=(32, 32), crop_size=12, domain="wrap", stride=2),
        ClassifierConfig(network="crop-network", width=0.25, encoding=EncodingConfig(removed="cut", coordinates=True)),
        prepared_digits["train"],
        views_per_image=0,
        batch_size=32,
        epochs=2,
    )


@pytest.fixture(scope="session")
def empty_store(shared_folder):
    """A database file with MLflow's tables; making one takes seconds, copying it does not."""
    import filelock

    from patchcert.tracking import Tracker

    path, making = shared_folder / "mlflow.db", shared_folder / "making.db"
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            Tracker(f"sqlite:///{making}")
            making.rename(path)
    return path


@pytest.fixture(scope="session")
def ray_cluster():
    """An embedded Ray with four logical CPUs, for all tests of a process that can share one."""
    from patchcert.stages.cluster import connected, set_environment
    from patchcert.stages.resources import Resources

    set_environment(embedded=True, verbose=False)
    import ray

    # Ray gives a node 30 seconds to come up; on a machine that is far too busy another try has a better chance.
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                object_store_memory=150 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
            )
            break
        except Exception:
            ray.shutdown()
            if not tries_left:
                raise
    with connected(Resources()):
        context = ray.data.DataContext.get_current()
        context.execution_options.verbose_progress = False
        yield ray
    ray.shutdown()


# All tests of these files run in one process, with one Ray.
_SHARE_RAY = ("tests/stages/", "tests/cli/test_finished_run.py", "tests/cli/test_cost_estimate.py")
_SHARED_RAY, _OWN_RAY = {"ray_cluster", "finished"}, {"submit"}


def _group(nodeid):
    """Tests of one group run in one process: those that share a Ray, all others file by file."""
    return "ray" if nodeid.startswith(_SHARE_RAY) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config, log):
    """Groups instead of files, in the order below and not by their numbers of tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(items):
    """Marks the tests that use Ray, and puts first those that share one, because together they take longest.

    A test that starts a Ray of its own in another way than by these fixtures carries the mark itself.
    """
    for item in items:
        if (_SHARED_RAY | _OWN_RAY) & set(item.fixturenames):
            item.add_marker(pytest.mark.ray)
        shares = _SHARED_RAY & set(item.fixturenames) and not item.get_closest_marker("slow")
        if shares and _group(item.nodeid) != "ray":
            raise pytest.UsageError(f"{item.nodeid} shares a Ray: name its file in _SHARE_RAY in tests/conftest.py")
    items.sort(key=lambda item: _group(item.nodeid) != "ray")
