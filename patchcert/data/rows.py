"""What every source of encoded images offers: named splits, each with its labelled images in file order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from patchcert.data.source_files import SourceFiles

DATA_VARIABLE = "PATCHCERT_DATA"


class SourceRow(NamedTuple):
    """One labelled image as its source holds it.

    Attributes:
        image_id: unique and stable name.
        data: the encoded file; None or empty when the source has no bytes for it.
        label: class index; None when the source has none.
        place: where to find it, for messages: file and row, or path.
        problem: why it is a bad image whatever its pixels hold; None: nothing is known against it.
    """

    image_id: str
    data: bytes | None
    label: int | None
    place: str
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a reader noticed while it listed one split; the audit judges it.

    Attributes:
        problems: files and folders that cannot be read or followed, with the reason.
        left_out: folders that were left out, with the reason.
        empty_classes: names of classes whose folder holds no image.
        places: (device, inode) of all local folders that were read.
        files_N2: device and inode of each local file, int64, shape (num_images, 2); None where there is no such thing.
    """

    problems: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    empty_classes: tuple[str, ...] = ()
    places: frozenset[tuple[int, int]] = frozenset()
    files_N2: np.ndarray | None = None


class RowSource(Protocol):
    """All labelled images of one split of a source, in file order.

    Attributes:
        class_names: in label order, the same in every split of a source.
        fingerprint: digest of the names and sizes of the files.
        has_generated_ids: whether images are named by their place and not by the source.
        findings: what was noticed while listing.
    """

    class_names: tuple[str, ...]
    fingerprint: str
    has_generated_ids: bool
    findings: Findings

    def files(self) -> SourceFiles | None:
        """The files that hold the images; None for images that come with a package."""

    @property
    def num_rows(self) -> int:
        """Number of images."""

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``; -1 where the source has none."""

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""

    def take(self, rows: np.ndarray) -> RowReader:
        """The images at these ascending positions alone, cheap to send to another process."""


class RowReader(Protocol):
    """Some images of a source, counted from 0."""

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""


@dataclass(frozen=True)
class TakenRows:
    """A source that is small enough to be sent whole, and the rows taken from it."""

    source: RowReader
    rows: np.ndarray

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other, in bounded memory."""
        return self.source.read(self.rows[rows])


class Source(Protocol):
    """A place that holds one or more splits of a dataset."""

    uri: str
    kind: str

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None."""

    def available(self) -> list[str]:
        """Names of the source splits that are there."""


def fingerprint(entries: Iterable[tuple[str, int]]) -> str:
    """Digest of file names and sizes: tells one source from another without reading its images."""
    digest = hashlib.sha256()
    for name, size in entries:
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
