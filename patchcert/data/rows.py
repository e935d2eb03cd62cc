"""What every source of encoded images offers: named splits in, labelled images in file order out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

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


class RowSource(Protocol):
    """All labelled images of one split of a source, in file order."""

    class_names: tuple[str, ...]
    fingerprint: str
    has_generated_ids: bool

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
