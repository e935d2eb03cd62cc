"""Reads and writes files in folders, local or on an object store, so that each file is whole or absent.

The one place where data, vote tables and checkpoints touch a disk or an object store. A location is a local path or a
URI (``file:///...``, ``s3://bucket/...``): all else is a path, whatever its letters. A name is
relative to its folder and may not leave it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import socket
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from patchcert.addresses import masked_address
from patchcert.data.listings import Listing, is_text, list_local, list_remote, printable
from patchcert.errors import DatasetError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def write_error(location: str, error: OSError) -> ResourceError:
    """The one clear message for a write that the disk refused.

    Args:
        location: path or URI that was being written.
        error: what the file system said.
    """
    if error.errno in _FULL:
        mend = (
            "The disk or its quota is full: free some space or choose another folder; the same command then continues."
        )
    elif error.errno in _FORBIDDEN:
        mend = "The folder is read-only for this user: choose another folder or change its permissions."
    else:
        mend = "Choose another folder, or mend this one; the same command then continues."
    return ResourceError(f"cannot write {location}: {error.strerror or error}\n  {mend}")


class Folder:
    """A folder, existing or not, on a local disk or an object store. It can be pickled and compared.

    Args:
        location: local path (``~`` is the user's home) or pyarrow file-system URI; with ``filesystem`` a path inside
            that.
        filesystem: a pyarrow file system that is open already, for endpoints and credentials that no URI holds.

    Attributes:
        uri: where it is, for people and as an argument of ``Folder``; an absolute path when it is local.
        is_local: whether it lies on a local disk.
        filesystem: the open file system, for libraries that take one: they would read a path as a URI.

    Raises:
        ResourceError: the URI names no file system that can be reached, or it holds a password: URIs are written into
            results and shown by Ray's and MLflow's pages; or the path is none.
    """

    def __init__(self, location: str | os.PathLike[str] | Folder, *, filesystem: pafs.FileSystem | None = None) -> None:
        self.uri: str
        self.filesystem: pafs.FileSystem
        self._root: str
        if isinstance(location, Folder):
            self.filesystem, self._root, self.uri = location.filesystem, location._root, location.uri
        else:
            location = os.fspath(location)
            if filesystem is not None:
                self.filesystem, self._root = filesystem, location.rstrip("/")
                self.uri = f"{filesystem.type_name}:{self._root}"
            elif is_uri(location):
                self.filesystem, self._root = _filesystem_of(location)
                self.uri = location
            else:
                self.filesystem, self._root = pafs.LocalFileSystem(), _absolute(location)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        if self.is_local:
            self.uri = self._root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.uri == other.uri and self.filesystem == other.filesystem

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        return self.uri

    def path(self, name: str = "") -> str:
        """Path of ``name`` inside the file system (for a local folder: its absolute path).

        Raises:
            DatasetError: the name is absolute or climbs out of the folder, or is no text.
        """
        if not name:
            return self._root
        if not is_text(name):
            raise DatasetError(
                f"the file name {printable(name)} in {self.uri} is no UTF-8 text\n  Give the file another name."
            )
        # A backslash is a letter like any other wherever "/" is what separates folders.
        outside = name.startswith("/") or is_uri(name) or ".." in name.split("/")
        if outside or (os.sep == "\\" and "\\" in name):
            raise DatasetError(
                f"the file name {name!r} leaves its folder {self.uri}\n"
                "  Names are relative to the folder that lists them; make the folder again."
            )
        return f"{self._root.rstrip('/')}/{name}"

    def folder(self, name: str) -> Folder:
        """The folder ``name`` inside this one."""
        inner = Folder(self)
        inner._root = self.path(name)
        if self.is_local:
            inner.uri = inner._root
        elif is_uri(self.uri):
            address, mark, query = self.uri.partition("?")
            inner.uri = f"{address.rstrip('/')}/{urllib.parse.quote(name)}{mark}{query}"
        else:
            inner.uri = f"{self.uri}/{name}"
        return inner

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder ``name`` (default: this folder) is there."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def is_file(self, name: str = "") -> bool:
        """Whether ``name`` (default: this location) is a file."""
        return bool(self.filesystem.get_file_info(self.path(name)).type == pafs.FileType.File)

    def files(self, *, recursive: bool = False) -> dict[str, int]:
        """Names of all files and their sizes in bytes, sorted by name; empty when the folder is missing.

        Hidden files (first letter ``.``), so also files that are still being written, are left out.
        """
        return {name: stamp.size for name, stamp in self.listing(recursive=recursive).files.items()}

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted; hidden ones are left out."""
        return self.listing().folders

    def listing(self, *, recursive: bool = False) -> Listing:
        """Everything in this folder that is not hidden, and what of it cannot be followed; empty when it is missing.

        Raises:
            OSError: the folder cannot be read.
        """
        if self.is_local:
            return list_local(self._root, recursive=recursive)
        return list_remote(self.filesystem, self._root, recursive=recursive)

    def open(self, name: str, *, mapped: bool = True) -> pa.NativeFile:
        """Open a file for reading at any position; use it in a ``with``.

        Args:
            name: the file.
            mapped: map local files into memory; without, a small read from a huge file fetches little beside it.
        """
        path = self.path(name)
        if mapped and self.is_local and os.path.getsize(path):
            return pa.memory_map(path)
        return self.filesystem.open_input_file(path)

    def read(self, name: str) -> bytes:
        """All bytes of one file."""
        with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | pa.Table) -> None:
        """Write a file atomically; a table becomes Parquet (zstd).

        Raises:
            ResourceError: full disk, read-only folder or any other refusal; nothing is left behind.
        """
        with self.writer(name) as sink:
            if isinstance(data, pa.Table):
                pq.write_table(data, sink, compression="zstd")
            else:
                sink.write(data)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A binary file to write; it takes its name when the block ends well, and vanishes when it does not.

        Local files are written under a temporary name, synced and renamed. Object stores get one upload from memory
        at the end, because their streams publish what was written so far when an error closes them.

        Raises:
            ResourceError: full disk, read-only folder or any other refusal; nothing is left behind.
        """
        location = f"{self.uri}/{name}"
        if not self.is_local:
            memory = io.BytesIO()
            yield memory
            try:
                self._upload(self.path(name), memory.getbuffer())
            except OSError as error:
                raise write_error(location, error) from error
            return
        final = self.path(name)
        parent, base = os.path.split(final)
        temporary = os.path.join(parent, f".{base}.{writer_mark()}.{uuid.uuid4().hex[:8]}.tmp")
        # The name is known before the file is there: an interruption at any moment finds what to remove.
        sink = None
        _unfinished.add(temporary)
        try:
            try:
                os.makedirs(parent, exist_ok=True)
                raw = open(temporary, "wb")
            except OSError as error:
                raise write_error(location, error) from error
            sink = _Sink(raw, location)
            yield sink  # type: ignore[misc]
            try:
                raw.flush()
                os.fsync(raw.fileno())
                raw.close()
                os.replace(temporary, final)
            except OSError as error:
                raise write_error(location, error) from error
        except BaseException:
            if sink is not None:
                sink.abandon()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            _unfinished.discard(temporary)

    def _upload(self, path: str, data: memoryview) -> None:
        try:
            stream = self.filesystem.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a file system that has real folders
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self.filesystem.open_output_stream(path, compression=None)
        with stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Delete one file; no error when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    def check_writable(self) -> None:
        """Make sure that a file can be written here, and leave nothing behind; only disks are asked, no object store.

        Raises:
            ResourceError: the folder cannot be made, or takes no file.
        """
        if not self.is_local:
            return
        missing, path = [], self._root
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            os.makedirs(self._root, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._root) as file:
                file.write(b".")
        except OSError as error:
            raise write_error(self.uri, error) from error
        finally:
            for path in missing:
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def remove_stale_temporaries(self) -> None:
        """Delete what killed processes of this machine left half-written directly in this folder, folders included."""
        if not self.is_local or not os.path.isdir(self._root):
            return
        for base in os.listdir(self._root):
            parts = base.split(".")
            if not (base.startswith(".") and base.endswith(".tmp") and len(parts) >= 5):
                continue
            host, _, process = parts[-3].rpartition("-")
            if host == _host() and process.isdigit() and not _is_alive(int(process)):
                path = os.path.join(self._root, base)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(path)


def atomic_write(location: str | os.PathLike[str], data: bytes | pa.Table) -> None:
    """Write one file, named by path or URI, whole or not at all; see :meth:`Folder.write`."""
    parent, _, name = os.fspath(location).rpartition("/")
    Folder(parent or ".").write(name, data)


def is_uri(location: str) -> bool:
    """Whether a location is a URI (``scheme://...``); every other one is a local path."""
    return _SCHEME.match(location) is not None


def _absolute(location: str) -> str:
    """The absolute path of a local one; ``~`` and ``~name`` in front are homes, as in a shell."""
    if not is_text(location) or "\0" in location:
        raise ResourceError(
            f"the path {printable(location)} is no UTF-8 text\n  Rename the folder, or choose another one."
        )
    path = os.path.expanduser(location)
    if location.startswith("~") and path == location:
        raise ResourceError(
            f"the path {location} starts with the home of a user who is not known here\n"
            f"  Give the folder in full, or ./{location} for one of that name."
        )
    path = os.path.abspath(path)
    if not is_text(path):
        raise ResourceError(
            f"the path {printable(path)} is no UTF-8 text\n  Start from another folder, or give an absolute path."
        )
    return path


def _filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    if masked_address(uri) != uri:
        raise ResourceError(
            f"the address {printable(masked_address(uri))} holds a password, and addresses are written into results "
            "and shown on pages.\n"
            "  Give it without, and the password in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for "
            "s3, GOOGLE_APPLICATION_CREDENTIALS for gs."
        )
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, ImportError, OSError, ValueError) as error:
        raise ResourceError(
            f"cannot open {printable(uri)}: {error}\n  Give a local folder, or a URI such as s3://bucket/folder."
        ) from error
    if not path.strip("/") and not isinstance(filesystem, pafs.LocalFileSystem):
        raise ResourceError(
            f"the address {uri} names no bucket\n  Give one, such as {uri.rstrip(':/')}://bucket/folder."
        )
    if isinstance(filesystem, pafs.LocalFileSystem) and set(uri) & set("?#"):
        raise ResourceError(
            f"the address {uri} ends at its ? or #, as every URI does: {path} would be meant\n"
            "  Give the folder as a plain path, without file://."
        )
    return filesystem, path.rstrip("/") or "/"


class _Sink(io.RawIOBase):
    """A file whose write errors are the user's message; errors of the caller's own code pass untouched."""

    def __init__(self, raw: Any, location: str) -> None:
        super().__init__()
        self._raw = raw
        self._location = location

    def writable(self) -> bool:
        return True

    def abandon(self) -> None:
        """Give the file up: what a library still writes when its writer is collected goes nowhere."""
        raw, self._raw = self._raw, io.BytesIO()
        with contextlib.suppress(OSError):
            raw.close()

    def write(self, data: Any) -> int:
        try:
            return int(self._raw.write(data))
        except OSError as error:
            raise write_error(self._location, error) from error

    def tell(self) -> int:
        return int(self._raw.tell())

    def flush(self) -> None:
        if self._raw.closed:
            return
        try:
            self._raw.flush()
        except OSError as error:
            raise write_error(self._location, error) from error


_unfinished: set[str] = set()


def remove_unfinished() -> None:
    """Delete the files that this process is still writing, before it ends without any further word."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _host() -> str:
    return socket.gethostname().replace(".", "_") or "host"


def writer_mark() -> str:
    """Names this process in the names of what it writes for now, so that others see whether it is alive."""
    return f"{_host()}-{os.getpid()}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
