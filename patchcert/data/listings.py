"""Lists what lies in a folder, and says of everything that cannot be followed why not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow.fs as pafs


class FileStamp(NamedTuple):
    """What a listing says of a file without reading it.

    Attributes:
        size: bytes.
        mtime_ns: when it was last written, nanoseconds; 0 where the file system does not say.
        device: with ``inode`` the file itself, whatever its names; both 0 where there is no such thing.
        inode: see ``device``.
    """

    size: int
    mtime_ns: int
    device: int = 0
    inode: int = 0


@dataclass(kw_only=True)
class Listing:
    """Files and folders by their names relative to the listed folder, sorted; hidden ones are left out.

    Attributes:
        files: every file, with its stamp.
        folders: names of the folders directly inside.
        problems: names that cannot be read or followed, with the reason in words; they may hold undecodable bytes.
        places: (device, inode) of every local folder that was read.
    """

    files: dict[str, FileStamp] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    places: set[tuple[int, int]] = field(default_factory=set)


def printable(name: str) -> str:
    """A file name on one line of text, whatever bytes it is made of: what cannot be shown is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def is_text(name: str) -> bool:
    """Whether a name is UTF-8 on disk, which everything that is written about an image has to be."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def is_plain_name(name: str) -> bool:
    """Whether a name is visible and stays where it is put: no separator, no control character, no dot in front."""
    return bool(name) and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\")


def list_remote(filesystem: pafs.FileSystem, root: str, *, recursive: bool) -> Listing:
    """List a folder of an object store, or of any file system pyarrow has opened."""
    listing = Listing()
    start = len(root.rstrip("/")) + 1
    for info in filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=recursive)):
        name = info.path[start:]
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if info.type == pafs.FileType.File:
            listing.files[name] = FileStamp(info.size, info.mtime_ns or 0)
        elif info.type == pafs.FileType.Directory:
            if "/" not in name:
                listing.folders.append(name)
        else:
            listing.problems[name] = "it is neither a file nor a folder"
    return _sorted(listing)


def list_local(root: str, *, recursive: bool) -> Listing:
    """List a local folder; links are followed, but no folder is read twice.

    Raises:
        OSError: the folder itself cannot be read; a missing one is empty.
    """
    listing = Listing()
    try:
        found = os.stat(root)
        entries = list(_entries(root))
    except FileNotFoundError:
        return listing
    real_root = os.path.realpath(root)
    read_as = {(found.st_dev, found.st_ino): ""}
    waiting = [("", entries)]
    while waiting:
        prefix, entries = waiting.pop()
        # Links come last, so that what is found twice is reported as the link and not as the folder it leads to.
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
            name = prefix + entry.name
            if not is_text(entry.name):
                listing.problems[name] = "its name is no UTF-8 text"
                continue
            status = _followed(entry, name, listing)
            if status is None:
                continue
            if stat.S_ISREG(status.st_mode):
                listing.files[name] = FileStamp(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
            elif not stat.S_ISDIR(status.st_mode):
                listing.problems[name] = "it is a pipe, a socket or a device, and no file"
            else:
                if not prefix:
                    listing.folders.append(entry.name)
                if recursive and _may_enter(entry, name, status, real_root, read_as, listing):
                    read_as[status.st_dev, status.st_ino] = name
                    try:
                        waiting.append((f"{name}/", list(_entries(entry.path))))
                    except OSError as error:
                        listing.problems[name] = f"it cannot be read: {error.strerror or error}"
    listing.places = set(read_as)
    return _sorted(listing)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _followed(entry: os.DirEntry[str], name: str, listing: Listing) -> os.stat_result | None:
    """What the entry leads to; None if it leads nowhere."""
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink():
            reason = "where there is nothing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            listing.problems[name] = f"it is a link to {printable(os.readlink(entry.path))}: {reason}"
        elif not isinstance(error, FileNotFoundError):  # deleted meanwhile: it is no part of the folder
            listing.problems[name] = f"it cannot be read: {error.strerror or error}"
        return None


def _may_enter(
    entry: os.DirEntry[str],
    name: str,
    status: os.stat_result,
    real_root: str,
    read_as: dict[tuple[int, int], str],
    listing: Listing,
) -> bool:
    """Whether a folder is one that was not read yet; else the problem is noted."""
    first = read_as.get((status.st_dev, status.st_ino))
    if first is not None:
        where = f"{printable(first)}, which is read already" if first else "the folder that holds it"
        listing.problems[name] = f"it leads to {where}"
        return False
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath([target, real_root]) == target:
            listing.problems[name] = f"it is a link to {printable(target)}, which holds the folder it lies in"
            return False
    return True


def _sorted(listing: Listing) -> Listing:
    listing.files = dict(sorted(listing.files.items()))
    listing.problems = dict(sorted(listing.problems.items()))
    listing.folders.sort()
    return listing
