"""The settings of the data: which images, and how they become network input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from patchcert.data.class_names import check_class_names
from patchcert.data.registry import DatasetSpec, dataset_spec
from patchcert.errors import DatasetError

Resize = Literal["none", "stretch", "pad", "crop"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images and how they become network input. All but ``source`` and ``allow_subset`` is its identity."""

    dataset: str = "digits"
    """Registered name: digits, mnist, cifar10, cifar10-jpeg, imagenet, imagenet-sample, folder, or your own."""
    source: str | None = None
    """Folder or URI of Parquet files or image folders, or "torchvision" to download; unset: $PATCHCERT_DATA/<folder>, then embedded images."""  # noqa: E501
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of their labels, for your own images; unset: from class folders or Parquet files."""  # noqa: E501
    resize: Resize | None = None
    """none: sizes must match; stretch; pad: longer side fits, zeros around; crop: shorter side to 256/224, centre crop; unset: by dataset."""  # noqa: E501
    interpolation: Interpolation | None = None
    """bilinear (if unset) or bicubic, both with antialiasing; has no meaning for resize none."""
    validation_size: int | None = None
    """Training images held out as the validation split; unset: by dataset."""
    validation_seed: int = 0
    """Chooses which training images are held out."""
    limit: int | None = None
    """Take only the first images of each split, in file order."""
    allow_subset: bool = False
    """The source may hold fewer images than the dataset has: say so, and go on."""
    on_bad_image: Literal["error", "quarantine"] = "error"
    """error: stop and name them; quarantine: set them apart in quarantine.parquet and count them."""
    storage: Literal["raw", "encoded"] = "raw"
    """raw: uint8 pixels, fastest to read; encoded: lossless PNG, smaller."""
    max_pixels: int = 64_000_000
    """Images of more pixels are bad images: a small file can decode to gigabytes."""
    rows_per_group: int | None = None
    """Rows of one Parquet row group, the least that is read at once; unset: about 8 to 16 MiB of pixels."""
    rows_per_shard: int | None = None
    """Rows of one shard, a multiple of rows_per_group; unset: 16 row groups."""

    def __post_init__(self) -> None:
        spec = dataset_spec(self.dataset)
        _one_of("resize", self.resize, (None, "none", "stretch", "pad", "crop"))
        _one_of("interpolation", self.interpolation, (None, "bilinear", "bicubic"))
        _one_of("on_bad_image", self.on_bad_image, ("error", "quarantine"))
        _one_of("storage", self.storage, ("raw", "encoded"))
        _at_least("limit", self.limit, 1)
        _at_least("validation_size", self.validation_size, 0)
        _at_least("validation_seed", self.validation_seed, 0)
        _at_least("max_pixels", self.max_pixels, 1)
        _at_least("rows_per_group", self.rows_per_group, 1)
        _at_least("rows_per_shard", self.rows_per_shard, 1)
        if self.class_names is not None:
            if spec.class_names is not None:
                raise DatasetError(
                    f"data.class_names is given, but {self.dataset} has {len(spec.class_names)} classes of its own\n"
                    "  Leave data.class_names out, or set data.dataset to folder."
                )
            check_class_names(self.class_names, "data.class_names")
        if self.source is not None and not self.source:
            raise DatasetError("data.source is empty\n  Give a folder or URI, or leave it out.")
        if self.rows_per_shard is not None and self.rows_per_shard % (self.rows_per_group or self.rows_per_shard + 1):
            raise DatasetError(
                f"data.rows_per_shard is {self.rows_per_shard}, but data.rows_per_group is {self.rows_per_group}\n"
                "  Set both, the first a multiple of the second."
            )
        if self.validation_size and "train" not in spec.source_splits:
            raise DatasetError(
                f"data.validation_size is {self.validation_size}, but {self.dataset} has no training images, only "
                f"{', '.join(spec.splits)}\n  Leave data.validation_size out."
            )


def spec_of(config: DataConfig) -> DatasetSpec:
    """The dataset of a configuration, with the class names that the configuration gives it."""
    spec = dataset_spec(config.dataset)
    return spec if config.class_names is None else dataclasses.replace(spec, class_names=config.class_names)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        words = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise DatasetError(f"data.{name} is {value!r}\n  Choose one of: {words}.")


def _at_least(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise DatasetError(f"data.{name} is {value!r}\n  Give a whole number, at least {least}.")
