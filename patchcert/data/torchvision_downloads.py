"""Downloads datasets with torchvision and reads their labelled images."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchcert.data.decoding import encode_png
from patchcert.data.registry import DatasetSpec
from patchcert.data.rows import DATA_VARIABLE, Findings, RowSource, SourceRow, TakenRows
from patchcert.data.source_files import SourceFiles
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError


class TorchvisionSource:
    """A torchvision dataset, downloaded when its first image is asked for.

    Args:
        spec: the dataset; it names the torchvision class.
        cache: local folder for the download; None: ``$PATCHCERT_DATA/torchvision`` or ``~/.cache/patchcert``.
    """

    kind = "torchvision"

    def __init__(self, spec: DatasetSpec, cache: str | None) -> None:
        if spec.torchvision_class is None:
            raise DatasetError(
                f"torchvision cannot download {spec.name}\n  Give data.source a folder with its images instead."
            )
        root = os.environ.get(DATA_VARIABLE)
        folder = Folder(cache or (Folder(root).folder("torchvision") if root else "~/.cache/patchcert"))
        if not folder.is_local:
            raise DatasetError(
                f"torchvision cannot download {spec.name} to {folder}\n  Give a folder of this machine's own disks."
            )
        self._spec = spec
        self._cache = Path(folder.path())
        self.uri = f"torchvision:{self._cache}"

    def available(self) -> list[str]:
        """Names of the source splits that are there."""
        return ["train", "test"]

    def find(self, names: Iterable[str]) -> RowSource | None:
        """The images of the first of these source splits that is there, else None."""
        split = next((name for name in names if name in ("train", "test")), None)
        return None if split is None else _TorchvisionRows(self._spec, self._cache, split)


# Where torchvision unpacks a dataset, inside its cache.
_UNPACKED = {"MNIST": "MNIST/raw", "CIFAR10": "cifar-10-batches-py"}


class _TorchvisionRows:
    has_generated_ids = True
    findings = Findings()

    def __init__(self, spec: DatasetSpec, cache: Path, split: str) -> None:
        self._cache = cache
        self._split = split
        self._torchvision_class = spec.torchvision_class or ""
        self._prefix = f"{spec.name}/{split}"
        self.class_names = spec.class_names or ()
        self.fingerprint = f"torchvision.datasets.{spec.torchvision_class}, {split}"

    @functools.cached_property
    def _dataset(self) -> Any:
        # By name and only here: torchvision loads torch, which nothing else in this layer needs.
        datasets = importlib.import_module("torchvision.datasets")
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            make = getattr(datasets, self._torchvision_class)
            return make(str(self._cache), train=self._split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise DatasetError(
                f"torchvision could not download {self._torchvision_class} to {self._cache}: {error}\n"
                "  Check the network, or give data.source a folder with the images."
            ) from error

    @property
    def num_rows(self) -> int:
        """Number of images; downloads them if they are not there."""
        return len(self._dataset)

    def files(self) -> SourceFiles | None:
        """The unpacked files of all splits; None before they were downloaded, or where torchvision keeps others."""
        folder = Folder(self._cache).folder(_UNPACKED.get(self._torchvision_class, self._torchvision_class))
        # Archives are not what images are read from.
        stamps = {name: stamp for name, stamp in folder.listing().files.items() if not name.endswith(".gz")}
        return SourceFiles.of(folder, stamps) if stamps else None

    def image_ids(self) -> pa.Array:
        """Names of all images in file order, string array of ``num_rows``."""
        return pa.array([f"{self._prefix}/{row:06d}" for row in range(self.num_rows)], pa.string())

    def read(self, rows: np.ndarray) -> Iterator[SourceRow]:
        """The images at these ascending positions, one after the other."""
        for row in rows.tolist():
            image, label = self._dataset[row]
            data = encode_png(image.tobytes(), (image.height, image.width), len(image.getbands()))
            name = f"{self._prefix}/{row:06d}"
            yield SourceRow(name, data, int(label), name)

    def labels(self) -> np.ndarray:
        """Class indices of all images in file order, int64 of ``num_rows``."""
        return np.asarray(self._dataset.targets, np.int64)

    def take(self, rows: np.ndarray) -> TakenRows:
        """The images at these ascending positions alone, cheap to send to another process."""
        return TakenRows(self, rows)
