import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from patchcert.data import Folder, atomic_write
from patchcert.data.storage import remove_unfinished
from patchcert.errors import DatasetError, ResourceError


def object_store(folder):
    """A file system that is not the local one, as object stores are."""
    folder.mkdir(parents=True, exist_ok=True)
    return Folder("bucket/run", filesystem=pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()))


@pytest.fixture(params=["local", "uri", "object store", "s3"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "local":
        return Folder(tmp_path / "run")
    if request.param == "uri":
        return Folder(f"file://{tmp_path}/run/")
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_variables").items():
            monkeypatch.setenv(name, value)
        return Folder(f"s3://bucket/{tmp_path.name}/run")
    return object_store(tmp_path / "store")


def test_what_is_written_is_read_back_and_listed(folder):
    table = pa.table({"x": [1, 2, 3]})
    assert folder.files() == {} and not folder.exists()
    folder.write("b.parquet", table)
    folder.write("a.bin", b"four")
    folder.folder("inner").write("c.gz", b"\x1f\x8bno gzip")
    assert folder.read("a.bin") == b"four"
    with folder.open("b.parquet") as stream:
        assert pq.read_table(stream).equals(table)
    assert list(folder.files()) == ["a.bin", "b.parquet"] and folder.files()["a.bin"] == 4
    assert list(folder.files(recursive=True)) == ["a.bin", "b.parquet", "inner/c.gz"]
    assert folder.folders() == ["inner"]
    assert folder.folder("inner").read("c.gz") == b"\x1f\x8bno gzip"
    assert folder.exists("inner") and folder.is_file("a.bin") and not folder.is_file("inner")
    folder.remove("a.bin")
    folder.remove("a.bin")
    assert not folder.exists("a.bin")


def test_empty_files_can_be_opened(folder):
    folder.write("empty", b"")
    with folder.open("empty") as stream:
        assert stream.read() == b""


def test_what_is_being_written_can_be_removed_before_a_process_ends_at_once(tmp_path):
    with pytest.raises(InterruptedError), Folder(tmp_path).writer("part") as sink:
        sink.write(b"half")
        assert len(os.listdir(tmp_path)) == 1
        remove_unfinished()
        assert os.listdir(tmp_path) == []
        Folder(tmp_path).write("other", b"whole")
        remove_unfinished()
        assert os.listdir(tmp_path) == ["other"], "what is finished stays"
        # The end of the block would find nothing to rename.
        raise InterruptedError


def test_what_a_library_still_writes_after_an_interruption_goes_nowhere(tmp_path, monkeypatch):
    problems = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    table = pa.table({"x": [1, 2, 3]})
    with pytest.raises(KeyboardInterrupt), Folder(tmp_path).writer("part") as sink:
        writer = pq.ParquetWriter(sink, table.schema)
        writer.write_table(table)
        raise KeyboardInterrupt
    # What it ends its file with when it is collected.
    del writer, sink
    assert problems == [] and os.listdir(tmp_path) == []


def test_an_interruption_while_the_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    real_open = open

    def interrupted(path, mode="r", **options):
        file = real_open(path, mode, **options)
        if mode == "wb":
            raise KeyboardInterrupt
        return file

    monkeypatch.setattr("builtins.open", interrupted)
    with pytest.raises(KeyboardInterrupt), Folder(tmp_path).writer("part"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(folder):
    folder.write("part", b"old")
    with pytest.raises(ZeroDivisionError), folder.writer("part") as sink:
        sink.write(b"new, but only half")
        raise ZeroDivisionError
    assert folder.read("part") == b"old"
    assert list(folder.files()) == ["part"]


def test_local_folders_hold_no_temporary_after_a_failure(tmp_path):
    with pytest.raises(OSError, match="of the caller"), Folder(tmp_path).writer("part") as sink:
        sink.write(b"half")
        raise OSError("of the caller's own code")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "s3://b/x"])
def test_names_may_not_leave_the_folder(folder, name):
    with pytest.raises(DatasetError, match="leaves its folder"):
        folder.read(name)
    with pytest.raises(DatasetError, match="leaves its folder"):
        folder.folder(name)


ODD_NAMES = ["a?b", "a#b", "100%", "a b", " a", "a%20b", "ä", "a\\b", "a\nb", 'it\'s "so"', "file:x", "s3:", "~", "a:b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_local_path_is_a_path_whatever_its_letters(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (Folder(tmp_path / name), Folder(f"./{name}"), Folder(tmp_path).folder(name)):
        inner = folder.folder(name)
        inner.write(name, pa.table({"x": [1]}))
        assert inner.uri == f"{tmp_path}/{name}/{name}" and Folder(inner.uri) == inner and str(inner) == inner.uri
        assert inner.exists(name) and list(inner.files()) == [name] and folder.folders() == [name]
        with inner.open(name) as stream:
            assert pq.read_table(stream).num_rows == 1
        inner.remove(name)
        assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name / name) == []


@pytest.mark.parametrize("name", ["a?b", "a#b", "100%", "a b", "ä", "a\\b"])
def test_names_are_quoted_where_a_uri_is_made_of_them(s3_variables, monkeypatch, tmp_path, name):
    for variable, value in s3_variables.items():
        monkeypatch.setenv(variable, value)
    folder = Folder(f"s3://bucket/{tmp_path.name}").folder(name)
    folder.write("x", b"1")
    assert Folder(folder.uri).read("x") == b"1" and Folder(folder.uri).path() == f"bucket/{tmp_path.name}/{name}"


def test_a_file_uri_is_one_and_is_decoded(tmp_path):
    assert Folder(f"file://{tmp_path}/a%3Fb%20c").uri == f"{tmp_path}/a?b c"
    with pytest.raises(ResourceError, match=r"ends at its \? or #.*\n  Give the folder as a plain path"):
        Folder(f"file://{tmp_path}/a?b")


def test_homes_are_those_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/x").uri == f"{tmp_path}/x" and Folder("~").uri == str(tmp_path)
    with pytest.raises(ResourceError, match=r"a user who is not known here\n  Give the folder in full, or ./~nobody"):
        Folder("~nobody-of-this-name/x")


@pytest.mark.parametrize("uri", ["s3://", "gs://"])
def test_an_address_without_a_bucket_is_refused(uri):
    with pytest.raises(ResourceError, match=f"{uri} names no bucket\n  Give one, such as {uri}bucket/folder"):
        Folder(uri)


@pytest.mark.parametrize("path", ["/tmp/stra\udcdfe", "a\0b"])
def test_paths_that_are_no_text_are_refused(path):
    with pytest.raises(ResourceError, match=r"the path .*(\\xdf|\\x00).* is no UTF-8 text"):
        Folder(path)
    with pytest.raises(DatasetError, match=r"\\xdf in .* is no UTF-8 text"):
        Folder("/tmp").path("\udcdf")


def test_folders_are_pickled_and_compared(folder):
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder and hash(again) == hash(folder) and again.uri == folder.uri
    assert folder.folder("inner") != folder


def test_atomic_write_takes_a_path_or_uri(tmp_path):
    atomic_write(tmp_path / "a" / "x.bin", b"1")
    atomic_write(f"file://{tmp_path}/a/y.bin", b"2")
    assert Folder(tmp_path / "a").files() == {"x.bin": 1, "y.bin": 1}


def test_inner_folders_keep_the_options_of_a_uri():
    pytest.importorskip("pyarrow._s3fs")
    folder = Folder("s3://bucket/run?region=eu-west-1&endpoint_override=localhost:9")
    assert folder.folder("test").uri == "s3://bucket/run/test?region=eu-west-1&endpoint_override=localhost:9"
    assert folder.folder("test").path("x") == "bucket/run/test/x" and not folder.is_local


def test_an_unknown_file_system_is_named():
    with pytest.raises(ResourceError, match="cannot open gopher://x/y"):
        Folder("gopher://x/y")


def test_only_temporaries_of_dead_processes_are_removed(tmp_path):
    folder = Folder(tmp_path)
    with folder.writer("alive") as sink:
        sink.write(b"x")
        (temporary,) = os.listdir(tmp_path)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        dead = temporary.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
        (tmp_path / dead).write_bytes(b"half")
        (tmp_path / dead.replace("alive", "folder")).mkdir()
        (tmp_path / dead.replace("alive", "folder") / "file").write_bytes(b"half")
        (tmp_path / ".other.tmp").write_bytes(b"not ours")
        folder.remove_stale_temporaries()
        assert sorted(os.listdir(tmp_path)) == sorted([temporary, ".other.tmp"])


FULL_DISK = """
import os, resource, sys
import pyarrow as pa
from patchcert.data import Folder
from patchcert.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for data in (bytes(10_000), pa.table({"x": os.urandom(50_000).hex().split("0")})):
    try:
        Folder(sys.argv[1]).write("part", data)
    except ResourceError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("cannot write") == 2 and done.stdout.count("disk or its quota is full") == 2
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


def test_a_read_only_folder_is_one_clear_message(unprivileged):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "kept")
        folder.mkdir()
        folder.chmod(0o555)
        with pytest.raises(ResourceError, match=r"kept/part: Permission denied\n  The folder is read-only"):
            Folder(folder).write("part", b"x")
        with pytest.raises(ResourceError, match="read-only"):
            Folder(folder / "inner").write("part", b"x")
        assert os.listdir(folder) == []


def test_a_file_in_the_way_is_one_clear_message(tmp_path):
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"cannot write .*run/part"):
        Folder(tmp_path / "run").write("part", b"x")
