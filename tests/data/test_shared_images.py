"""The real images: skipped, with a word, where they are not there."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchcert.data import DataConfig, prepare
from patchcert.errors import DatasetError


def first_rows(folder, split, num_rows):
    return pq.ParquetFile(folder / f"{split}-00000.parquet").read_row_group(0).slice(0, num_rows).to_pylist()


@pytest.mark.parametrize(("name", "folder", "channels"), [("mnist", "mnist", 1), ("cifar10-jpeg", "cifar10", 3)])
def test_the_test_split_starts_with_the_images_of_the_files(shared, tmp_path, name, folder, channels):
    test = prepare(DataConfig(dataset=name, limit=300), None, tmp_path, splits=["test"])["test"]
    batch = test.read_all()
    for row, image, label in zip(
        first_rows(shared / folder, "test", 300), batch.images_NHWC, batch.labels_N, strict=True
    ):
        decoded = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (decoded.reshape(image.shape) == image).all() and row["label"] == label
    assert test.num_channels == channels and batch.image_ids[299] == f"{name}/test/000299"


@pytest.mark.slow
def test_all_of_mnist_has_its_known_counts(shared, tmp_path):
    prepared = prepare(DataConfig(dataset="mnist"), None, tmp_path, splits=["train", "validation", "test"])
    assert [data.num_rows for data in prepared.values()] == [55_000, 5_000, 10_000]
    # Images per digit: the well-known counts of the MNIST test and training sets.
    assert np.bincount(prepared["test"].read_all().labels_N).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    counts = sum(np.bincount(prepared[split].read_all().labels_N) for split in ("train", "validation"))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_the_lossless_variant_is_not_taken_for_the_jpeg_one(shared, tmp_path):
    with pytest.raises(DatasetError, match=r"images are JPEG: .*\n  Ask for dataset cifar10-jpeg"):
        prepare(DataConfig(dataset="cifar10"), None, tmp_path, splits=["test"])


@pytest.mark.parametrize(("resize", "size"), [("crop", (224, 224)), ("pad", (224, 224)), ("pad", (160, 224))])
def test_imagenet_photos_become_network_input(shared, tmp_path, resize, size):
    config = DataConfig(dataset="imagenet-sample", limit=64, resize=resize, interpolation="bicubic")
    test = prepare(config, size, tmp_path)["test"]
    batch = test.read_all()
    assert batch.images_NHWC.shape == (64, *size, 3) and test.num_classes == 1000
    (row,) = first_rows(shared / "imagenet-sample", "val", 1)
    assert (
        batch.labels_N[0] == row["label"]
        and row["image"]["path"].split("_", 1)[1].removesuffix(".JPEG").replace("_", " ")
        == test.class_names[row["label"]]
    )
    test.verify()
