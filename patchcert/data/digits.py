"""Reads the 1,797 handwritten digits that scikit-learn ships, as PNG images of 32x32 pixels."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from patchcert.data.decoding import encode_png
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import Findings, RowSource, SourceRow, TakenRows

_NUM_ROWS = {"train": 1_297, "test": 500}
_SIZE = (32, 32)


class DigitsSource:
    """The embedded digits; the last 500 scans are the test split, which mostly other writers wrote than the rest."""

    kind = "embedded"
    uri = "embedded:scikit-learn/digits"

    def __init__(self, spec: DatasetSpec) -> None:
        self._spec = spec

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return ["train", "test"]

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None."""
        split = next((name for name in names if name in ("train", "test")), None)
        return None if split is None else _DigitRows(self._spec, split)


class _DigitRows:
    has_generated_ids = True
    findings = Findings()
    fingerprint = "scikit-learn digits, last 500 scans for the test, bicubic to 32x32"

    def __init__(self, spec: DatasetSpec, split: str) -> None:
        self._prefix = f"{spec.name}/{split}"
        self._first_scan = 0 if split == "train" else _NUM_ROWS["train"]
        self.num_rows = _NUM_ROWS[split]
        self.class_names = spec.class_names or ()

    def files(self) -> None:
        """None: the scans come with a package."""

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        return pa.array([f"{self._prefix}/{row:06d}" for row in range(self.num_rows)], pa.string())

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other."""
        scans_NHW, labels_N = _scans()
        for row in rows.tolist():
            index = self._first_scan + row
            scan = Image.fromarray(scans_NHW[index]).resize(_SIZE[::-1], Image.Resampling.BICUBIC)
            name = f"{self._prefix}/{row:06d}"
            yield SourceRow(name, encode_png(scan.tobytes(), _SIZE, 1), int(labels_N[index]), name)

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``."""
        return _scans()[1][self._first_scan : self._first_scan + self.num_rows]

    def take(self, rows: np.ndarray) -> TakenRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        return TakenRows(self, rows)


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only these 1,797 images need it

    images_NHW, labels_N = load_digits(return_X_y=True)
    # Scans count 0 to 16 dark pixels of a 4x4 block.
    scans_NHW = (images_NHW.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    return scans_NHW, labels_N.astype(np.int64)
