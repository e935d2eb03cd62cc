import dataclasses
import gzip
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode, hub_table, random_image, write_hub

from patchcert.data import DataConfig, dataset_spec, prepare
from patchcert.data.sources import open_source
from patchcert.errors import DatasetError, ImageError


def rows_of(source, *names):
    rows = source.find(names)
    return list(rows.read(np.arange(rows.num_rows)))


def write_folder(root, images, split="train"):
    for path, image in images.items():
        file = root / split / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image if isinstance(image, bytes) else encode(image))


def test_hub_files_are_read_in_the_order_of_their_names(tiny, tmp_path):
    images, labels = write_hub(tmp_path, "train", 50, num_files=3)
    source = open_source(tiny, str(tmp_path))
    rows = rows_of(source, "train")
    assert [row.image_id for row in rows] == [f"tiny/train/{row:06d}" for row in range(50)]
    assert [row.label for row in rows] == labels.tolist()
    assert [row.data for row in rows] == [encode(image) for image in images]
    assert rows[17].place == "train-00001-of-00003.parquet row 0"
    assert source.find(["train"]).image_ids().to_pylist() == [row.image_id for row in rows]
    assert source.available() == ["train"] and source.find(["val"]) is None


@pytest.mark.parametrize("seed", range(5))
def test_any_ascending_rows_can_be_read_alone(tiny, tmp_path, seed):
    write_hub(tmp_path, "train", 150, num_files=2, group_rows=40)
    rows = open_source(tiny, str(tmp_path)).find(["train"])
    everything = list(rows.read(np.arange(150)))
    picked = np.flatnonzero(np.random.default_rng(seed).random(150) < seed / 4)
    assert list(rows.read(picked)) == [everything[row] for row in picked]


@pytest.mark.parametrize("layout", ["reordered", "binary", "large_binary", "img", "data folder", "one file", "int32"])
def test_layouts_found_on_hubs(tiny, tmp_path, layout):
    images = [encode(random_image(8, 8, seed=row)) for row in range(4)]
    table = hub_table(images, [0, 1, 2, 0], extra=pa.array(["x"] * 4))
    folder, name = tmp_path, "train-00000.parquet"
    if layout == "reordered":
        table = table.select(["extra", "label", "image"])
    elif layout in ("binary", "large_binary"):
        table = table.set_column(0, "image", pa.array(images, getattr(pa, layout)()))
    elif layout == "img":
        table = table.rename_columns(["img", "label", "extra"])
    elif layout == "int32":
        table = table.set_column(1, "label", table["label"].cast(pa.int32()))
    elif layout == "data folder":
        folder = tmp_path / "data"
        folder.mkdir()
    else:
        name = "train.parquet"
    pq.write_table(table, folder / name)
    rows = rows_of(open_source(tiny, str(tmp_path)), "train")
    assert [(row.data, row.label) for row in rows] == list(zip(images, [0, 1, 2, 0], strict=True))


def test_names_in_the_files_are_kept(tiny, tmp_path):
    images = [encode(random_image(8, 8, seed=row)) for row in range(3)]
    pq.write_table(hub_table(images, [0, 1, 2], image_id=pa.array(["c", "a", "b"])), tmp_path / "test.parquet")
    prepared = prepare(DataConfig(dataset="tiny", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])
    assert prepared["test"].read_all().image_ids.tolist() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], r"1 images of the test split .*\n  row 2: its image_id 'a' is that of row 0"),
        (["a", None, "a"], r"2 images .*\n  row 1: it has no image_id\n  row 2: its image_id 'a' is that of row 0"),
    ],
)
def test_doubled_and_missing_names_are_refused(tiny, tmp_path, ids, message):
    images = [encode(random_image(8, 8))] * 3
    pq.write_table(hub_table(images, [0, 1, 2], image_id=pa.array(ids)), tmp_path / "test.parquet")
    with pytest.raises(ImageError, match=message):
        prepare(DataConfig(dataset="tiny", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])
    assert not (tmp_path / "out").exists()


def test_doubled_and_missing_names_are_quarantined_but_for_the_first(tiny, tmp_path):
    images = [encode(random_image(8, 8, seed=row)) for row in range(5)]
    ids = pa.array(["a", None, "a", "b", "a"])
    pq.write_table(hub_table(images, [0, 1, 2, 0, 1], image_id=ids), tmp_path / "test.parquet")
    config = DataConfig(dataset="tiny", source=str(tmp_path), on_bad_image="quarantine")
    for rows in (1, 2):
        config = dataclasses.replace(config, rows_per_group=rows, rows_per_shard=rows)
        test = prepare(config, None, tmp_path / f"out{rows}", splits=["test"])["test"]
        assert test.read_all().image_ids.tolist() == ["a", "b"] and test.num_quarantined == 3
        assert encode(test.read_all().images_NHWC[0]) == images[0]
        listed = pq.read_table(tmp_path / f"out{rows}" / "test" / "quarantine.parquet").to_pylist()
        assert [(row["place"], row["reason"]) for row in listed] == [
            ("test.parquet row 1", "it has no image_id"),
            ("test.parquet row 2", "its image_id 'a' is that of row 0"),
            ("test.parquet row 4", "its image_id 'a' is that of row 0"),
        ]


def test_class_names_come_from_hub_metadata_or_are_asked_for(tmp_path):
    table = hub_table([encode(random_image(9, 9))] * 2, [0, 1])
    pq.write_table(table, tmp_path / "test.parquet")
    folder = dataset_spec("folder")
    with pytest.raises(DatasetError, match=r"does not name its classes\n  Give their names in the order"):
        open_source(folder, str(tmp_path)).find(["test"])
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "test.parquet")
    assert open_source(folder, str(tmp_path)).find(["test"]).class_names == ("no", "yes")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table({"picture": [b"x"], "label": [0]}),
            r"has the columns picture: binary, label: int64\n  It needs image",
        ),
        (pa.table({"image": [b"x"], "class": [0]}), "It needs image"),
        (pa.table({"image": ["x"], "label": [0]}), "Its column image must be a struct with bytes, or binary"),
        (pa.table({"image": [{"path": "x"}], "label": [0]}), "Its column image must be a struct with bytes"),
        (pa.table({"image": [b"x"], "label": ["cat"]}), "Its column label must hold integers"),
        (pa.table({"image": [b"x"], "label": [0]}).slice(1), "the test split of tiny has no images"),
    ],
)
def test_wrong_columns_and_empty_files_are_refused(tiny, tmp_path, table, message):
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(DatasetError, match=message):
        prepare(DataConfig(dataset="tiny", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])


def test_damaged_incomplete_and_mixed_files_are_named(tiny, tmp_path):
    write_hub(tmp_path, "train", 20, num_files=4)
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    source = open_source(tiny, str(tmp_path))
    with pytest.raises(DatasetError, match=r"3 of 4 files train-\*: missing 00002"):
        source.find(["train"])
    write_hub(tmp_path, "train", 20, num_files=2)
    with pytest.raises(DatasetError, match="mixes files of different downloads"):
        open_source(tiny, str(tmp_path)).find(["train"])
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DatasetError, match=r"test.parquet is no readable Parquet file"):
        open_source(tiny, str(tmp_path)).find(["test"])


def test_a_file_damaged_inside_is_named(tiny, tmp_path):
    write_hub(tmp_path, "test", 40, size=(64, 64))
    path = tmp_path / "test-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    rows = open_source(tiny, str(tmp_path)).find(["test"])
    with pytest.raises(DatasetError, match=r"test-00000-of-00001.parquet is no readable Parquet file"):
        list(rows.read(np.arange(40)))


def test_image_folders_are_labelled_by_class_name(tiny, tmp_path):
    images = {
        f"{name}/{sub}": random_image(8, 8, seed=len(name + sub))
        for name in ("cow", "ant")
        for sub in ("b.png", "a/c.png")
    }
    write_folder(tmp_path, images)
    (tmp_path / "train" / "cow" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "cow" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    source = open_source(tiny, str(tmp_path))
    rows = rows_of(source, "train")
    assert [row.image_id for row in rows] == [
        "tiny/train/ant/a/c.png",
        "tiny/train/ant/b.png",
        "tiny/train/cow/a/c.png",
        "tiny/train/cow/b.png",
    ]
    assert [row.label for row in rows] == [0, 0, 2, 2]
    assert rows[3].data == encode(images["cow/b.png"]) and rows[3].place == "train/cow/b.png"
    assert source.find(["train"]).image_ids().to_pylist() == [row.image_id for row in rows]


def test_imagenet_folders_are_labelled_by_wordnet_id(tmp_path):
    write_folder(tmp_path, {"n15075141/x.JPEG": random_image(8, 8), "n01440764/y.JPEG": random_image(8, 8)}, "val")
    rows = rows_of(open_source(dataset_spec("imagenet"), str(tmp_path)), "val", "validation")
    assert [(row.image_id, row.label) for row in rows] == [
        ("imagenet/test/n01440764/y.JPEG", 0),
        ("imagenet/test/n15075141/x.JPEG", 999),
    ]


def test_own_folders_take_their_classes_from_all_splits(tmp_path):
    write_folder(tmp_path, {f"{name}/1.png": random_image(9, 7) for name in "cba"})
    write_folder(tmp_path, {"a/3.png": random_image(9, 7), "c/4.png": random_image(5, 9)}, "test")
    config = DataConfig(dataset="folder", source=str(tmp_path), allow_subset=True)
    with pytest.warns(UserWarning, match=r"1 classes have training images in .*, but no test images: 'b'"):
        prepared = prepare(config, (6, 10), tmp_path / "out", splits=["train", "test"])
    assert prepared["train"].class_names == prepared["test"].class_names == ("a", "b", "c")
    assert prepared["train"].read_all().labels_N.tolist() == [0, 1, 2]
    assert prepared["test"].read_all().labels_N.tolist() == [0, 2]
    assert prepared["test"].preprocessing["resize"] == "crop"


def test_own_folders_need_two_classes(tmp_path):
    write_folder(tmp_path, {"only/1.png": random_image(8, 8)})
    with pytest.raises(DatasetError, match="has 1 class folders, but at least 2 are needed"):
        open_source(dataset_spec("folder"), str(tmp_path)).find(["train"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("loose.png", r"loose.png lies in no class folder"),
        ("bees/1.png", r"class folder 'bees', which is no class of tiny\n  Did you mean 'bee'"),
        ("zebra/1.png", r"class folder 'zebra', which is no class of tiny\n  Its 3 classes"),
    ],
)
def test_files_out_of_place_are_named(tiny, tmp_path, path, message):
    write_folder(tmp_path, {path: random_image(8, 8)})
    with pytest.raises(DatasetError, match=message):
        open_source(tiny, str(tmp_path)).find(["train"])


def test_a_text_file_among_the_images_is_a_bad_image(tiny, tmp_path):
    write_folder(tmp_path, {"ant/1.png": random_image(8, 8), "bee/notes.txt": b"remember the milk"}, "test")
    with pytest.raises(ImageError, match=r"tiny/test/bee/notes.txt \(test/bee/notes.txt\): its 17 bytes are no image"):
        prepare(DataConfig(dataset="tiny", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])


def test_missing_and_empty_sources_say_what_to_do(tiny, tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"source folder of tiny is missing: .*/nowhere\n  Check data.source"):
        open_source(tiny, str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"holds no images: .*\n  It needs <split>-\*.parquet files, or <split>/"):
        open_source(tiny, str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"the source of tiny is a file: .*\n  Give the folder"):
        open_source(tiny, str(tmp_path / "file"))
    with pytest.raises(
        DatasetError, match=r"images of cifar10 are missing: looked in \$PATCHCERT_DATA \(not set\)"
    ) as e:
        open_source(dataset_spec("cifar10"), None)
    assert "--data.source FOLDER" in str(e.value) and "--data.source torchvision" in str(e.value)
    monkeypatch.setenv("PATCHCERT_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=rf"looked in {tmp_path}/cifar10-jpeg or {tmp_path}/cifar10\n"):
        open_source(dataset_spec("cifar10-jpeg"), None)
    with pytest.raises(DatasetError, match="no source was given"):
        open_source(dataset_spec("folder"), None)


def test_the_data_variable_comes_before_embedded_images(tmp_path, monkeypatch):
    digits = dataset_spec("digits")
    assert open_source(digits, None).kind == "embedded"
    monkeypatch.setenv("PATCHCERT_DATA", str(tmp_path))
    assert open_source(digits, None).kind == "embedded"
    write_hub(tmp_path / "digits", "test", 3)
    assert open_source(digits, None).uri == f"{tmp_path}/digits"


def test_the_wrong_variant_is_refused_with_the_right_one(tmp_path):
    pq.write_table(hub_table([encode(random_image(32, 32), "JPEG")], [0]), tmp_path / "test.parquet")
    message = (
        r"a lossless dataset was asked for, but the images are JPEG: test.parquet row 0 of .*\n  Ask for dataset cif"
    )
    with pytest.raises(DatasetError, match=message):
        prepare(DataConfig(dataset="cifar10", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])
    # What was refused does not stand in the way of what was meant.
    prepare(DataConfig(dataset="cifar10-jpeg", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])
    pq.write_table(hub_table([encode(random_image(32, 32))], [0]), tmp_path / "test.parquet")
    with pytest.raises(
        DatasetError, match=r"JPEG variant was asked for, but the images are PNG[^\n]*\n.*dataset cifar10,"
    ):
        prepare(DataConfig(dataset="cifar10-jpeg", source=str(tmp_path)), None, tmp_path / "out2", splits=["test"])


def test_torchvision_files_become_rows(tmp_path):
    """The original MNIST files are made here, so that torchvision finds them downloaded."""
    raw = tmp_path / "cache" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = random_image(6 * 28, 28, 1).reshape(6, 28, 28), bytes([3, 1, 4, 1, 5, 9])
    for prefix in ("train", "t10k"):
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 2051, 6, 28, 28) + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 2049, 6) + labels,
        }
        for name, data in files.items():
            (raw / name).write_bytes(data)
            (raw / f"{name}.gz").write_bytes(gzip.compress(data))
    config = DataConfig(dataset="mnist", source=f"torchvision:{tmp_path / 'cache'}", validation_size=2)
    prepared = prepare(config, None, tmp_path / "out")
    batch = prepared["test"].read_all()
    assert (batch.images_NHWC[..., 0] == images).all() and batch.labels_N.tolist() == list(labels)
    assert batch.image_ids[0] == "mnist/test/000000"
    assert [prepared[split].num_rows for split in ("train", "validation")] == [4, 2]


def test_torchvision_has_not_every_dataset():
    with pytest.raises(DatasetError, match=r"torchvision cannot download imagenet\n  Give data.source a folder"):
        open_source(dataset_spec("imagenet"), "torchvision")


def test_a_failed_download_says_so(tmp_path):
    (tmp_path / "cache").write_bytes(b"in the way")
    config = DataConfig(dataset="cifar10", source=f"torchvision:{tmp_path / 'cache'}")
    with pytest.raises(DatasetError, match=r"torchvision could not download CIFAR10 to .*\n  Check the network"):
        prepare(config, None, tmp_path / "out", splits=["test"])
