"""A folder of its own for each Ray that is started here, where no other user of the machine reads logs or sockets.

Ray's own choice lies under ``/tmp/ray``, open to everybody. A folder goes when its Ray has ended. What a process leaves
behind that was killed is removed by the next one: as long as a process lives, it holds the lock in its folder.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "pc-ray-"
_LOCK = "owner.lock"
_USUAL_BASE = "/tmp"
# The longest path of a socket that Linux takes, less what Ray puts behind its folder and what mkdtemp puts into it:
# /r/session_<date>_<time>_<microseconds>_<process>/sockets/plasma_store.1 and eight letters.
_LONGEST_SOCKET, _RAYS_PART, _RANDOM_PART = 107, 68, 8
_LONGEST_BASE = _LONGEST_SOCKET - _RAYS_PART - _RANDOM_PART - len(PREFIX) - 1
# A folder this young may not have been locked yet.
_SECONDS_TO_LOCK, _SECONDS_TO_END, _SECONDS_BETWEEN_TRIES = 60.0, 10.0, 0.1


class RayFolder:
    """A private folder (mode 0700) with a short path.

    Attributes:
        path: of the folder.
        for_ray: the folder in it that Ray gets, because Ray opens its folder to everybody.
    """

    def __init__(self) -> None:
        """Makes the folder, and removes those of this user whose processes were killed.

        Raises:
            OSError: no folder can be made there.
        """
        base = _base()
        os.makedirs(base, exist_ok=True)
        for left in _left_behind(base):
            shutil.rmtree(left, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        self.for_ray = self.path / "r"
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            # A file system without locks: nobody removes the folder but its own process.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Remove the folder; Ray's last processes may write to it for a moment."""
        deadline = time.monotonic() + _SECONDS_TO_END
        while self.path.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            if time.monotonic() > deadline:
                break
            if self.path.exists():
                time.sleep(_SECONDS_BETWEEN_TRIES)
        self.release()

    def logs(self) -> Path | None:
        """Return the folder of Ray's logs, where a Ray that did not start has left any words."""
        for folder in sorted(self.for_ray.glob("session_*/logs")):
            if not folder.parent.is_symlink() and any(
                file.stat().st_size for file in folder.iterdir() if file.is_file()
            ):
                return folder
        return None

    def release(self) -> None:
        """Leave the folder where it is; the next Ray that is started removes it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _base() -> str:
    """Where Ray's folders go: RAY_TMPDIR, else TMPDIR, else /tmp, unless the path is too long for Ray's sockets."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if chosen := os.environ.get(name):
            base = os.path.abspath(chosen)
            if len(os.fsencode(base)) <= _LONGEST_BASE:
                return base
            # Not through a terminal of ours: a program that imports the package has none.
            print(
                f"{name} is {len(os.fsencode(base))} bytes long, but Ray's sockets leave room for {_LONGEST_BASE}: "
                f"Ray's files go to {_USUAL_BASE}. Set RAY_TMPDIR to a short path to choose another place.",
                file=sys.stderr,
            )
            return _USUAL_BASE
    return _USUAL_BASE


def _left_behind(base: str) -> Iterator[Path]:
    """Folders of this user, made by this module, whose processes have ended without removing them."""
    for folder in Path(base).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            kind = folder.lstat()
            is_ours = stat.S_ISDIR(kind.st_mode) and kind.st_uid == os.getuid() and not kind.st_mode & 0o077
            lock = folder / _LOCK
            if not is_ours or time.time() - lock.lstat().st_mtime < _SECONDS_TO_LOCK:
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield folder
            finally:
                os.close(descriptor)
