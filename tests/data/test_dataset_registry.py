import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import patchcert.data
from patchcert.data import DataConfig, DatasetSpec, dataset_names, dataset_spec, register_dataset
from patchcert.errors import DatasetError


def test_the_datasets_of_the_field_are_registered():
    assert set(dataset_names()) >= {
        "digits",
        "mnist",
        "cifar10",
        "cifar10-jpeg",
        "imagenet",
        "imagenet-sample",
        "folder",
    }
    sizes = {name: dataset_spec(name).num_classes for name in dataset_names()}
    assert sizes["mnist"] == sizes["cifar10"] == sizes["digits"] == 10 and sizes["folder"] is None
    assert dataset_spec("cifar10").class_names == dataset_spec("cifar10-jpeg").class_names
    assert dataset_spec("cifar10").variant != dataset_spec("cifar10-jpeg").variant
    assert dataset_spec("imagenet").splits == ("train", "validation", "test", "trainval")
    assert dataset_spec("imagenet-sample").splits == ("test",)
    assert dataset_spec("mnist").sources == ("Parquet files", "image folders", "torchvision download")
    assert "embedded" in dataset_spec("digits").sources


def test_imagenet_labels_rank_the_wordnet_ids():
    spec = dataset_spec("imagenet")
    assert spec.num_classes == 1000 and len(set(spec.class_names)) == 1000
    assert list(spec.folder_names) == sorted(spec.folder_names)
    assert (spec.folder_names[0], spec.class_names[0]) == ("n01440764", "tench")
    assert (spec.folder_names[999], spec.class_names[999]) == ("n15075141", "toilet tissue")


def test_a_miss_names_the_nearest():
    with pytest.raises(DatasetError, match=r"unknown dataset 'cifar_10'\n  Did you mean 'cifar10'"):
        DataConfig(dataset="cifar_10")


def test_an_equal_dataset_may_be_registered_twice_and_another_may_not(tiny):
    assert register_dataset(dataclasses.replace(tiny)) == tiny
    with pytest.raises(DatasetError, match="'tiny' is registered already"):
        register_dataset(dataclasses.replace(tiny, description="another"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "slash"),
        ({"name": ""}, "empty"),
        ({"num_channels": 2}, "num_channels is 2"),
        ({"class_names": ("one",)}, "1 classes, but must have at least 2"),
        ({"class_names": ("one", "one")}, "share a name"),
        ({"folder_names": ("n1",)}, "1 folder_names for 2 class_names"),
        ({"source_splits": {"training": ("train",)}}, "source_splits names"),
        ({"source_splits": {}}, "source_splits names nothing"),
        ({"native_size": None}, "native_size is unknown"),
        ({"validation_size": -1}, "validation_size is -1"),
    ],
)
def test_impossible_datasets_are_refused(change, message):
    fields = {"name": "x", "description": "", "class_names": ("one", "two"), "native_size": (8, 8), **change}
    with pytest.raises(DatasetError, match=message):
        DatasetSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "squash"}, r"data.resize is 'squash'\n  Choose one of: none, stretch, pad, crop"),
        ({"interpolation": "nearest"}, "data.interpolation is 'nearest'"),
        ({"on_bad_image": "skip"}, "data.on_bad_image is 'skip'"),
        ({"storage": "webp"}, "data.storage is 'webp'"),
        ({"limit": 0}, "data.limit is 0\n  Give a whole number, at least 1"),
        ({"limit": 2.5}, "data.limit is 2.5"),
        ({"validation_size": -1}, "data.validation_size is -1"),
        ({"validation_seed": -1}, "data.validation_seed is -1"),
        ({"max_pixels": 0}, "data.max_pixels is 0"),
        ({"rows_per_group": 0}, "data.rows_per_group is 0"),
        ({"rows_per_shard": 0}, "data.rows_per_shard is 0"),
        ({"rows_per_shard": 10}, "data.rows_per_shard is 10, but data.rows_per_group is None"),
        ({"rows_per_shard": 10, "rows_per_group": 4}, "rows_per_shard is 10, but data.rows_per_group is 4"),
        ({"source": ""}, "data.source is empty"),
        ({"dataset": "imagenet-sample", "validation_size": 3}, "has no training images"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(DatasetError, match=message):
        DataConfig(**fields)


def test_nothing_in_this_layer_imports_torch():
    for path in Path(patchcert.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "torchvision", "ray", "mlflow"}, path
    code = "import sys, patchcert.data; print({'torch', 'ray', 'mlflow', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
