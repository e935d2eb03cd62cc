"""The datasets patchcert knows: a name in; its classes, sizes, splits and where its images are looked for out."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

from patchcert.errors import DatasetError

SPLITS = ("train", "validation", "test", "trainval")


@dataclass(frozen=True, kw_only=True)
class ExpectedImages:
    """How many images a whole source split holds: ``total``, and from ``fewest`` to ``most`` in each class."""

    total: int
    fewest: int
    most: int


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What has to be known about a dataset before any of its images is read.

    Attributes:
        name: how users ask for it; it stands beside every number measured on it.
        description: one line for lists.
        variant: which edition of the images this is, in a word.
        class_names: one name per class in label order; None: read from the source (class folders, or the names that
            hub Parquet files carry).
        folder_names: names of the class folders in label order where they differ from ``class_names``.
        num_channels: 1 (grey) or 3 (RGB); other images are converted.
        native_size: (height, width) in pixels if all images share one, else None.
        default_resize: resize mode when the user names none.
        encoding: "lossless" or "jpeg" when other files would be another variant, else None.
        source_splits: for each split the names it may have in a source ("val-00000.parquet", "val/"), in order of
            preference. Where the source has no validation split of its own it is held out of the training images.
        source_archives: for source splits the tar archive that holds them as published.
        expected: for splits how many images the source has to hold; others hold what they hold.
        validation_size: number of training images held out; None: the user has to say.
        source_folders: folders looked for inside the environment variable PATCHCERT_DATA.
        embedded: whether the images come with an installed package, without any download.
        torchvision_class: class of torchvision.datasets that can download it, or None.
    """

    name: str
    description: str
    variant: str = "original"
    class_names: tuple[str, ...] | None = None
    folder_names: tuple[str, ...] | None = None
    num_channels: int = 3
    native_size: tuple[int, int] | None = None
    default_resize: Literal["none", "stretch", "pad", "crop"] = "none"
    encoding: Literal["lossless", "jpeg"] | None = None
    source_splits: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train",), "test": ("test", "validation", "val")}
    )
    source_archives: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, ExpectedImages] = field(default_factory=dict)
    validation_size: int | None = None
    source_folders: tuple[str, ...] = ()
    embedded: bool = False
    torchvision_class: str | None = None

    def __post_init__(self) -> None:
        def refuse(problem: str, mend: str) -> None:
            raise DatasetError(f"dataset {self.name!r}: {problem}\n  {mend}")

        if not self.name or set(self.name) & set("/\\ ") or self.name.startswith("."):
            refuse("its name is empty, starts with a dot or holds a slash or space", "Choose a name like 'my-photos'.")
        if self.num_channels not in (1, 3):
            refuse(f"num_channels is {self.num_channels}, but must be 1 (grey) or 3 (RGB)", "Choose one of the two.")
        if self.class_names is not None and len(self.class_names) < 2:
            refuse(f"it has {len(self.class_names)} classes, but must have at least 2", "Name every class.")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            refuse("two classes share a name", "Give every class its own name.")
        if self.folder_names is not None and len(self.folder_names) != len(self.class_names or ()):
            refuse(
                f"{len(self.folder_names)} folder_names for {len(self.class_names or ())} class_names",
                "Give one folder name for each class.",
            )
        unknown = sorted(set(self.source_splits) - {"train", "validation", "test"})
        if unknown or not self.source_splits:
            refuse(f"source_splits names {unknown or 'nothing'}", "Use some of: train, validation, test.")
        if self.native_size is None and self.default_resize == "none":
            refuse(
                "default_resize is 'none', but native_size is unknown", "Set native_size, or another default_resize."
            )
        if self.validation_size is not None and (self.validation_size < 0 or "validation" in self.source_splits):
            refuse(
                f"validation_size is {self.validation_size}, but the splits are {sorted(self.source_splits)}",
                "Hold out 0 or more training images, or name the validation split of the source, not both.",
            )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None when only the source knows."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that can be asked for; "trainval" is all training images, the held-out ones included."""
        if "train" not in self.source_splits:
            return tuple(split for split in ("validation", "test") if split in self.source_splits)
        return tuple(split for split in SPLITS if split != "test" or "test" in self.source_splits)

    def own_split(self, source_split: str) -> str:
        """The split for which a source uses this name, e.g. "test" for ImageNet's "val"."""
        return next(split for split, names in self.source_splits.items() if source_split in names)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where its images can come from, in words."""
        words = ["Parquet files", "image folders"]
        if self.source_archives:
            words.append("tar archives")
        if self.torchvision_class:
            words.append("torchvision download")
        if self.embedded:
            words.append("embedded")
        return tuple(words)


_REGISTRY: dict[str, DatasetSpec] = {}


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Make a dataset known under its name.

    Registering an equal spec again is fine (modules are imported again in worker processes).

    Raises:
        DatasetError: the name belongs to a different spec.
    """
    known = _REGISTRY.get(spec.name)
    if known is not None and known != spec:
        raise DatasetError(
            f"dataset {spec.name!r} is registered already ({known.description}), and not the same as now "
            f"({spec.description})\n  Choose another name."
        )
    _REGISTRY[spec.name] = spec
    return spec


def dataset_names() -> tuple[str, ...]:
    """Names of all registered datasets, in order of registration."""
    return tuple(_REGISTRY)


def dataset_spec(name: str) -> DatasetSpec:
    """The dataset of that name.

    Raises:
        DatasetError: no such dataset; the nearest name is suggested.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    nearest = difflib.get_close_matches(name, _REGISTRY, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}?  " if nearest else ""
    raise DatasetError(
        f"unknown dataset {name!r}\n  {hint}Registered: {', '.join(_REGISTRY)}. "
        "Your own images: dataset 'folder' with a source, or patchcert.data.register_dataset."
    )


def _imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = resources.files("patchcert.data").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return tuple(row["name"] for row in rows), tuple(row["wordnet_id"] for row in rows)


_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGENET, _WORDNET_IDS = _imagenet_classes()

register_dataset(
    DatasetSpec(
        name="digits",
        description="1,797 handwritten digits, 8x8 scans that scikit-learn ships, scaled to 32x32 grey",
        variant="8x8 scans scaled to 32x32",
        class_names=_DIGITS,
        num_channels=1,
        native_size=(32, 32),
        validation_size=200,
        source_folders=("digits",),
        embedded=True,
    )
)
register_dataset(
    DatasetSpec(
        name="mnist",
        description="70,000 handwritten digits, 28x28 grey",
        class_names=_DIGITS,
        num_channels=1,
        native_size=(28, 28),
        encoding="lossless",
        validation_size=5_000,
        source_folders=("mnist",),
        torchvision_class="MNIST",
    )
)
register_dataset(
    DatasetSpec(
        name="cifar10",
        description="60,000 small photos of 10 classes, 32x32 RGB, lossless",
        class_names=_CIFAR10,
        native_size=(32, 32),
        encoding="lossless",
        validation_size=5_000,
        source_folders=("cifar10",),
        torchvision_class="CIFAR10",
    )
)
register_dataset(
    DatasetSpec(
        name="cifar10-jpeg",
        description="CIFAR-10 re-encoded as JPEG: accuracies come out a little lower than on the lossless original",
        variant="jpeg",
        class_names=_CIFAR10,
        native_size=(32, 32),
        encoding="jpeg",
        validation_size=5_000,
        source_folders=("cifar10-jpeg", "cifar10"),
    )
)
register_dataset(
    DatasetSpec(
        name="imagenet",
        description="ImageNet-1k: 1.28 million training photos; its validation photos are the test split",
        class_names=_IMAGENET,
        folder_names=_WORDNET_IDS,
        default_resize="crop",
        source_splits={"train": ("train",), "test": ("val", "validation")},
        source_archives={"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"},
        expected={
            "train": ExpectedImages(total=1_281_167, fewest=732, most=1_300),
            "test": ExpectedImages(total=50_000, fewest=50, most=50),
        },
        validation_size=10_000,
        source_folders=("imagenet", "imagenet-1k"),
    )
)
register_dataset(
    DatasetSpec(
        name="imagenet-sample",
        description="one photo for each ImageNet class, shorter side at most 256: to exercise a pipeline, not to train",
        variant="jpeg q90, shorter side at most 256",
        class_names=_IMAGENET,
        folder_names=_WORDNET_IDS,
        default_resize="crop",
        source_splits={"test": ("test", "val", "validation")},
        source_folders=("imagenet-sample",),
    )
)
register_dataset(
    DatasetSpec(
        name="folder",
        description="your own images: source/<split>/<class>/<image>, or Parquet files that name their classes",
        default_resize="crop",
        source_splits={"train": ("train",), "validation": ("validation", "val"), "test": ("test",)},
    )
)
