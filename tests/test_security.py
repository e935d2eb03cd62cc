"""What must hold everywhere: nothing read from storage runs, leaves its folder or listens; no secret is written."""

import ast
import io
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedded_ray import embedded_ray
from jobs.small_jobs import is_loopback, listening
from records import reseal

import patchcert
from patchcert.addresses import masked
from patchcert.data import PreparedDataset
from patchcert.data.sealed import sealed_bytes
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError, PatchcertError, ResourceError
from patchcert.models.checkpoint import load_checkpoint, save_checkpoint
from patchcert.provenance import environment
from patchcert.stages.cluster import is_on_loopback
from patchcert.tracking import TrackingConfig, publish, ui_command
from patchcert.votes import VoteTable
from patchcert.workspace import Workspace

PACKAGE = Path(patchcert.__file__).parent
SECRET = "hunter2-not-to-be-seen"

# Loading any of these can run code that somebody else wrote.
UNSAFE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "shelve.open", "marshal.loads", "marshal.load", "pandas.read_pickle",
    "pd.read_pickle", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "pa.deserialize",
}  # fmt: skip
# Bytes that a task of the same job returned a moment ago, over Ray's own (authenticated) connection.
FROM_OUR_OWN_TASKS = {("stages/tasks.py", "pickle.loads")}


def unsafe_calls(source):
    """Names of the calls in a source text that may run what they read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in UNSAFE or settings.get("allow_pickle", "False") != "False":
                yield name
            if name == "torch.load" and settings.get("weights_only") != "True":
                yield name


class TestNothingFromStorageIsRun:
    @pytest.fixture
    def payload(self, tmp_path):
        """A pickle that leaves a mark when it is loaded, and the mark."""
        mark = tmp_path / "mark"
        yield pickle.dumps(_Payload(str(mark)))
        assert not mark.exists(), "a pickle from storage was loaded"

    def test_the_package_calls_nothing_that_runs_what_it_reads(self):
        found = {
            (path.relative_to(PACKAGE).as_posix(), name)
            for path in PACKAGE.rglob("*.py")
            for name in unsafe_calls(path.read_text())
        }
        assert found <= FROM_OUR_OWN_TASKS

    @pytest.mark.parametrize(
        "source", ["pickle.load(f)", "torch.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f, weights_only=x)"]
    )
    def test_the_search_finds_such_calls(self, source):
        assert list(unsafe_calls(source))

    def test_a_prepared_shard_is_no_pickle(self, payload, prepared_digits, tmp_path):
        folder = tmp_path / "test"
        shutil.copytree(prepared_digits["test"].folder.path(), folder)
        shard = folder / prepared_digits["test"].shards[0].file
        shard.write_bytes(payload.ljust(shard.stat().st_size, b"\0"))
        with pytest.raises(DatasetError, match=r"shard-00000.* cannot be read"):
            PreparedDataset.open(folder).read(0, 1)

    def test_a_checkpoint_is_no_pickle(self, payload, column_digits, tmp_path):
        folder = Folder(tmp_path / "model")
        save_checkpoint(column_digits.classifier, folder, {})
        for name in (json.loads(folder.read("config.json"))["weights"], "config.json"):
            whole = folder.read(name)
            folder.write(name, payload)
            with pytest.raises(PatchcertError):
                load_checkpoint(folder)
            folder.write(name, whole)

    def test_a_training_state_is_no_pickle(self, payload, tmp_path):
        from ray.train import Checkpoint

        from patchcert.stages.train import _load_state

        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", payload)
            file.writestr("archive/version", "3")
        for data in (payload, archive.getvalue()):
            (tmp_path / "state.pt").write_bytes(data)
            with pytest.raises(PatchcertError, match=r"cannot be read.*(?s:.*)--no-resume"):
                _load_state(Checkpoint(str(tmp_path)), "key")

    def test_a_vote_part_is_no_pickle(self, payload, vote_table):
        vote_table.write(next(name for name in vote_table.files() if name.startswith("part-")), payload)
        with pytest.raises(PatchcertError, match="is damaged"):
            VoteTable.open(vote_table).read_part(0)


# Reading Parquet, Arrow or JSON files in any other way goes around the checks of data/untrusted.py.
GUARDED = {
    "ParquetFile", "ParquetDataset", "read_table", "read_metadata", "read_schema", "read_pandas", "read_parquet",
    "read_feather", "open_file", "open_stream", "RecordBatchFileReader", "dataset",
}  # fmt: skip
GUARD, ARROW_NAMES = "data/untrusted.py", ("pq", "pa", "pd", "pandas", "pyarrow", "parquet", "feather", "ds")


def unguarded_reads(source):
    """Names of the calls in a source text that read a table, or the JSON of a file, without the guard."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        base, _, last = name.rpartition(".")
        if last in GUARDED and base.split(".")[0] in (
            "pq",
            "pa",
            "pd",
            "pandas",
            "pyarrow",
            "parquet",
            "feather",
            "ds",
        ):
            yield name
        if name == "json.load" or (name == "json.loads" and ".read(" in ast.unparse(node.args[0])):
            yield name


class TestTablesOfOthers:
    """With ray.data loaded, which registers an extension type whose values are pickles."""

    @pytest.fixture
    def pickled(self, tmp_path):
        """A column of Ray's pickled objects that leave a mark when they are read, in all depths."""
        import ray.data  # noqa: F401
        from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

        mark = tmp_path / "mark"
        inner = ArrowPythonObjectArray.from_objects([_Payload(str(mark)), _Payload(str(mark))])
        yield {
            "column": inner,
            "struct": pa.StructArray.from_arrays([inner], ["x"]),
            "list": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), inner),
        }
        assert not mark.exists(), "a pickle from storage was loaded"

    @pytest.mark.parametrize("depth", ["column", "struct", "list"])
    def test_a_source_is_refused_by_file_and_column(self, depth, pickled, tmp_path):
        from patchcert.data import DataConfig, prepare

        folder = tmp_path / "photos"
        folder.mkdir()
        images = pa.array([{"bytes": b"x"}] * 2)
        table = pa.table({"image": images, "label": [0, 1], "image_id": pickled[depth]})
        for split in ("train", "test"):
            pq.write_table(table, folder / f"{split}-00000.parquet")
        config = DataConfig(dataset="folder", source=str(folder), class_names=("a", "b"), validation_size=0)
        with pytest.raises(DatasetError, match=r"train-00000.parquet .*column image_id holds the extension type ray"):
            prepare(config, (8, 8), tmp_path / "out")

    @pytest.mark.parametrize("depth", ["column", "struct", "list"])
    def test_a_prepared_shard_is_refused_by_file_and_column(self, depth, pickled, prepared_digits, tmp_path):
        folder = tmp_path / "test"
        shutil.copytree(prepared_digits["test"].folder.path(), folder)
        shard = prepared_digits["test"].shards[0]
        table = pq.read_table(folder / shard.file).slice(0, 2)
        changed = table.set_column(0, "image_id", pickled[depth])
        pq.write_table(changed, folder / shard.file)
        num_bytes = (folder / shard.file).stat().st_size
        reseal(folder / "dataset.json", lambda record: record["shards"][0].update(num_bytes=num_bytes))
        with pytest.raises(DatasetError, match=r"shard-00000.* column image_id holds the extension type ray"):
            PreparedDataset.open(folder).read(0, 1)

    @pytest.mark.parametrize("depth", ["column", "struct", "list"])
    def test_a_vote_part_is_refused_by_file_and_column(self, depth, pickled, vote_table):
        from patchcert.votes.table import part_problem

        name = next(name for name in vote_table.files() if name.startswith("part-"))
        table = pq.read_table(vote_table.path(name)).slice(0, 2)
        pq.write_table(table.set_column(0, "image_id", pickled[depth]), vote_table.path(name))
        assert "column image_id holds the extension type ray" in part_problem(vote_table, name, {}, (0, 2))
        with pytest.raises(PatchcertError, match=rf"{name} is damaged .*column image_id holds the extension type ray"):
            VoteTable.open(vote_table).read_part(0)

    def test_the_package_opens_tables_and_json_in_one_place(self):
        found = {
            (path.relative_to(PACKAGE).as_posix(), name)
            for path in PACKAGE.rglob("*.py")
            for name in unguarded_reads(path.read_text())
        }
        assert {place for place, _ in found} <= {GUARD}

    @pytest.mark.parametrize("source", ["pq.read_table(f)", "pd.read_parquet(f)", "json.loads(folder.read('x'))"])
    def test_the_search_finds_other_ways(self, source):
        assert list(unguarded_reads(source))


class TestNamesStayInTheirFolder:
    @pytest.mark.parametrize("name", ["../../other/shard.parquet", "/etc/passwd", "file:///etc/passwd", "a/../../x"])
    def test_a_dataset_that_names_files_elsewhere_is_refused(self, name, prepared_digits, tmp_path):
        folder = tmp_path / "test"
        shutil.copytree(prepared_digits["test"].folder.path(), folder)
        reseal(folder / "dataset.json", lambda record: record["shards"][0].update(file=name))
        with pytest.raises(DatasetError, match="leaves its folder"):
            PreparedDataset.open(folder)

    @pytest.mark.parametrize("name", ["../part-00000-of-00001.parquet", "/etc/passwd"])
    def test_a_vote_table_that_names_parts_elsewhere_is_refused(self, name, vote_table):
        success = json.loads(vote_table.read("_SUCCESS.json"))
        del success["sha256"]
        success["parts"][0]["name"] = name
        vote_table.write("_SUCCESS.json", sealed_bytes(success))
        with pytest.raises(DatasetError, match="leaves its folder"):
            VoteTable.open(vote_table).read_part(0)


class TestSecretsStaySecret:
    @pytest.mark.parametrize(
        "uri",
        [
            f"s3://AKIA:{SECRET}@bucket/work",
            f"s3://AKIA:{SECRET}/with/slashes@bucket/work",
            f"abfss://account:{SECRET}@store.example.com/x",
            f"s3://bucket/work?region=eu-west-1&secret_key={SECRET}",
        ],
    )
    def test_an_address_with_a_password_is_refused_without_repeating_it(self, uri):
        with pytest.raises(ResourceError, match="holds a password") as caught:
            Folder(uri)
        assert SECRET not in str(caught.value) and "AWS_SECRET_ACCESS_KEY" in str(caught.value)

    @pytest.mark.parametrize(
        "uri", ["hdfs://host:8020/users/me@home", "gs://anonymous@bucket/x", "http://host:5000/#/a", "s3://bucket/a:b"]
    )
    def test_addresses_without_a_password_are_left_alone(self, uri):
        assert masked(uri) == uri

    def test_the_command_line_does_not_repeat_a_password(self, tmp_path):
        command = [sys.executable, "-m", "patchcert", "prepare", "column4-digits", "--work", f"s3://k:{SECRET}@b/x"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 2 and "s3://***@b/x" in done.stderr
        assert SECRET not in done.stdout + done.stderr and "Traceback" not in done.stderr

    def test_records_of_the_environment_hold_no_variable(self, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("SOME_TOKEN", SECRET)
        assert SECRET not in json.dumps(environment())

    @pytest.mark.parametrize("mode", ["on", "strict"])
    def test_a_tracker_that_fails_does_not_tell_its_password(self, mode, tmp_path):
        from studies import simulated

        result = simulated.write(simulated.column_study(), tmp_path / "study")
        said = []
        uri = f"postgresql+psycopg://mlflow:{SECRET}@127.0.0.1:9/mlflow"
        try:
            publish([result.folder], TrackingConfig(uri=uri, mode=mode), Workspace(str(tmp_path)), said.append)
        except PatchcertError as error:
            said.append(str(error))
        assert len(said) == 1 and "not recorded" in said[0] and SECRET not in said[0]

    def test_the_address_of_a_tracker_is_printed_without_its_password(self):
        command = ui_command(f"https://me:{SECRET}@tracker.example.com:5000/base")
        assert command.address == "https://tracker.example.com:5000/base"
        command = ui_command(f"postgresql://me:{SECRET}@host/db")
        assert SECRET not in " ".join(command.arguments) + command.address


class TestNothingListensBeyondLoopback:
    @pytest.mark.ray
    def test_an_embedded_ray_that_was_imported_before(self, tmp_path):
        """As in a notebook: Ray has read its variables before this package could set them."""
        with embedded_ray(tmp_path, before="import ray") as ray:
            assert is_on_loopback(ray.address)
            assert listening(ray.pid), "Ray always listens somewhere"
            assert all(is_loopback(address) for _, address in listening(ray.pid))
            assert not (tmp_path / ".ray").exists(), "the token is kept nowhere"
            assert stat.S_IMODE(ray.folder.stat().st_mode) == 0o700 and any(ray.folder.rglob("raylet.out"))
            assert len(os.fsencode(max(map(str, ray.folder.rglob("sockets/*")), key=len))) <= 107
        assert not ray.folder.exists()

    @pytest.mark.slow
    @pytest.mark.ray
    def test_an_embedded_ray_runs_no_task_without_its_token(self, tmp_path):
        with embedded_ray(tmp_path) as ray:
            assert all(is_loopback(address) for _, address in listening(ray.pid))
            # The owner's token shows that the task itself would have run.
            assert "TASK" in ray.asked_by_a_stranger(tmp_path, token=ray.token)
            assert "TASK" not in ray.asked_by_a_stranger(tmp_path, token="ab" * 32)

    @pytest.mark.slow
    @pytest.mark.ray
    def test_an_embedded_ray_that_was_interrupted_or_failed_leaves_no_folder(self, tmp_path):
        for end in ("signal", "error"):
            with embedded_ray(tmp_path, end="raise RuntimeError('an error of the work')") as ray:
                assert ray.folder.exists()
                if end == "signal":
                    ray.process.send_signal(signal.SIGINT)
            assert not ray.folder.exists() and ray.process.returncode != 0

    @pytest.mark.parametrize(
        ("address", "expected"),
        [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.7:1", False), ("0.0.0.0:1", False)],
    )
    def test_which_addresses_are_on_loopback(self, address, expected):
        assert is_on_loopback(address) == expected

    def test_the_pages_of_the_tracker(self, tmp_path, empty_store):
        shutil.copy(empty_store, tmp_path / "mlflow.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "patchcert", "ui", "--port", str(port), "--work", str(tmp_path)]
        variables = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 150
            while not (found := listening(process.pid)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            assert {address for _, address in found} == {"127.0.0.1"}
        finally:
            os.killpg(process.pid, 9)
            process.wait()


class _Payload:
    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self._mark),)


@pytest.fixture
def vote_table(tmp_path, prepared_digits):
    """A small finished vote table, to be damaged."""
    import numpy as np

    from patchcert.geometry import BandViews
    from patchcert.votes.identity import vote_identity
    from patchcert.votes.table import VotePart, finish_table, part_name, write_part

    dataset = prepared_digits["test"]
    views = BandViews(image_size=(32, 32), width=4)
    identity = vote_identity(views, dataset, model_digest="ab" * 32, score_floor=0.0, precision="exact")
    images = dataset.read(0, dataset.num_rows)
    votes = VotePart(
        image_ids=images.image_ids,
        labels_N=images.labels_N,
        top_classes_NV=np.zeros((len(images), views.num_views), np.uint16),
        num_classes=dataset.num_classes,
    )
    folder = Folder(tmp_path / "votes")
    write_part(folder, part_name(0, 1), identity, 0, votes)
    finish_table(folder, identity, [(0, len(images))])
    VoteTable.open(folder).read_part(0)
    return folder
