"""The private folder of a Ray that is started here: closed, short, gone in the end, and never that of somebody else."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchcert.errors import ResourceError
from patchcert.stages import cluster, ray_folder
from patchcert.stages.ray_folder import PREFIX, RayFolder
from patchcert.stages.resources import Resources


@pytest.fixture
def base(monkeypatch):
    """A short folder, as pytest's own are too long for sockets."""
    folder = Path(f"/tmp/pc-t{os.getpid()}")
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def old(folder):
    """Makes a folder look as if it had been locked long ago."""
    os.utime(folder / "owner.lock", (0, 0))


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_nobody_else_may_enter_and_it_goes_with_what_is_in_it(base, umask):
    before = os.umask(umask)
    try:
        folder = RayFolder()
        (folder.for_ray / "session_1" / "logs").mkdir(parents=True, mode=0o777)
        (folder.for_ray / "session_latest").symlink_to(folder.for_ray / "session_1")
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700 and folder.path.parent == base
        assert folder.logs() is None
        (folder.for_ray / "session_1" / "logs" / "gcs.err").write_text("no room")
        assert folder.logs() == folder.for_ray / "session_1" / "logs"
    finally:
        os.umask(before)
    folder.remove()
    folder.remove()
    assert list(base.iterdir()) == []


def test_sockets_have_room_in_the_longest_base_that_is_taken(base):
    folder = RayFolder()
    socket = folder.for_ray / "session_2026-12-31_23-59-59_999999_4194304" / "sockets" / "plasma_store.1"
    assert len(os.fsencode(socket)) + ray_folder._LONGEST_BASE - len(str(base)) == 107
    folder.remove()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("place", ["a" * 60, "\u00e4" * 12, "a/" * 20])
def test_a_path_that_is_too_long_is_said_once_and_another_is_taken(name, place, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, f"/tmp/{place}")
    folder = RayFolder()
    folder.remove()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name} is ") and "RAY_TMPDIR to a short path" in line
    assert folder.path.parent == Path("/tmp") and not Path(f"/tmp/{place}").exists()


@pytest.mark.parametrize("place", ["/dev/null/ray", "/proc/no", "/dev/full/x"])
def test_a_place_where_nothing_can_be_made_is_one_message(place, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_TMPDIR": place})
    with pytest.raises(ResourceError, match=r"(?s)cannot start Ray on this machine: .*RAY_TMPDIR"):
        cluster._private_folder()


def test_without_variables_it_lies_in_the_usual_place(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    folder = RayFolder()
    folder.remove()
    assert folder.path.parent == Path("/tmp") and not folder.path.exists()


def test_what_a_killed_process_left_goes_with_the_next_start(base):
    killed = "import os, sys; from patchcert.stages.ray_folder import RayFolder; print(RayFolder().path, flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", killed + "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = Path(process.stdout.readline().strip())
    (left / "r" / "logs").mkdir(parents=True)
    old(left)
    RayFolder().remove()
    assert left.exists(), "its process lives"
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    os.utime(left / "owner.lock")
    RayFolder().remove()
    assert left.exists(), "one so young may be about to be locked"
    old(left)
    RayFolder().remove()
    assert not left.exists() and list(base.iterdir()) == []


def test_nothing_else_is_removed(base, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "owner.lock").touch()
    old(kept)
    (base / f"{PREFIX}link").symlink_to(kept)
    (base / f"{PREFIX}file").write_text("mine")
    for name, mode in ((f"{PREFIX}open", 0o755), ("other", 0o700), (f"{PREFIX}nolock", 0o700)):
        (base / name).mkdir(mode=mode)
        if name != f"{PREFIX}nolock":
            (base / name / "owner.lock").touch()
            old(base / name)
    (base / f"{PREFIX}linked").mkdir(mode=0o700)
    (base / f"{PREFIX}linked" / "owner.lock").symlink_to(kept / "owner.lock")
    before = sorted(base.iterdir())
    RayFolder().remove()
    assert sorted(base.iterdir()) == before and kept.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_folders_of_other_users_stay(base):
    theirs = base / f"{PREFIX}theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "owner.lock").touch()
    old(theirs)
    os.chown(theirs, 65534, 65534)
    RayFolder().remove()
    assert theirs.exists()


@pytest.mark.parametrize("words", ["", "the disk is full"])
def test_a_ray_that_does_not_start_keeps_its_words_for_the_reader(words, base, monkeypatch):
    class Ray:
        class exceptions:
            RayError = RuntimeError

        class _private:
            class ray_constants:
                ENABLE_RAY_CLUSTER = None

        @staticmethod
        def is_initialized():
            return False

        @staticmethod
        def shutdown():
            pass

        @staticmethod
        def init(address, _temp_dir, **options):
            logs = Path(_temp_dir) / "session_1" / "logs"
            logs.mkdir(parents=True)
            (logs / "raylet.err").write_text(words)
            raise RuntimeError("the raylet ended")

    monkeypatch.setitem(sys.modules, "ray", Ray)
    monkeypatch.setattr(cluster, "set_environment", lambda **_: None)
    start = time.monotonic()
    with pytest.raises(ResourceError, match="cannot start Ray on this machine: the raylet ended") as caught:
        with cluster.connected(Resources(address="local")):
            pass
    assert time.monotonic() - start < 5
    folders = list(base.iterdir())
    assert len(folders) == bool(words) and ("Ray's own words" in str(caught.value)) == bool(words)
    for folder in folders:
        assert str(folder) in str(caught.value)
        old(folder)
    RayFolder().remove()
    assert list(base.iterdir()) == []
