"""Tells whether the files of a source are still the ones that were prepared."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchcert.data.listings import FileStamp
from patchcert.data.storage import Folder

# Sources up to this size are read in full, larger ones in blocks that are spread evenly over all files.
_WHOLE_BYTES = 2**30
_WHOLE_REMOTE_BYTES = 2**26
_MOST_WHOLE_FILES = 20_000
_NUM_BLOCKS = 1_024
_BLOCK_BYTES = 2**16


@dataclass(frozen=True)
class SourceFiles:
    """The files behind one part of a source.

    Attributes:
        folder: where they lie.
        names: sorted.
        sizes: bytes, int64, one for each name.
        stamp: digest of names, sizes and times of writing: changes with every change, and with a mere copy.
    """

    folder: Folder
    names: Sequence[str]
    sizes: np.ndarray
    stamp: str

    @classmethod
    def of(cls, folder: Folder, stamps: Mapping[str, FileStamp]) -> SourceFiles:
        """The files of a listing."""
        digest = hashlib.sha256()
        for name, stamp in stamps.items():
            digest.update(f"{name}\0{stamp.size}\0{stamp.mtime_ns}\n".encode())
        sizes = np.fromiter((stamp.size for stamp in stamps.values()), np.int64, len(stamps))
        return cls(folder, list(stamps), sizes, digest.hexdigest())

    @property
    def is_sampled(self) -> bool:
        """Whether ``content`` looks at a part of the bytes only."""
        most = _WHOLE_BYTES if self.folder.is_local else _WHOLE_REMOTE_BYTES
        return len(self.names) > _MOST_WHOLE_FILES or int(self.sizes.sum()) > most

    @functools.cached_property
    def content(self) -> str:
        """Digest of the bytes, whatever the times of writing.

        Raises:
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256()
        if not self.is_sampled:
            for name in self.names:
                digest.update(hashlib.sha256(self.folder.read(name)).digest())
            return digest.hexdigest()
        ends = np.cumsum(self.sizes)
        for place in np.linspace(0, max(int(ends[-1]) - _BLOCK_BYTES, 0), _NUM_BLOCKS).astype(np.int64).tolist():
            index = min(int(np.searchsorted(ends, place, side="right")), len(ends) - 1)
            with self.folder.open(self.names[index], mapped=False) as stream:
                digest.update(stream.read_at(_BLOCK_BYTES, place - int(ends[index] - self.sizes[index])))
        return digest.hexdigest()


def stamp_of(parts: Iterable[SourceFiles]) -> str:
    """One stamp of several parts."""
    return "+".join(part.stamp for part in parts)


def record_of(parts: Sequence[SourceFiles]) -> dict[str, Any]:
    """What is kept beside prepared images, JSON-able.

    Raises:
        OSError: a file cannot be read.
    """
    return {
        "num_files": sum(len(part.names) for part in parts),
        "stamp": stamp_of(parts),
        "content": "+".join(part.content for part in parts),
        "is_sampled": any(part.is_sampled for part in parts),
    }
