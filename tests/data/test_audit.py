"""What is judged before any image is decoded: classes of each split, links, leftovers, doubles."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode, hub_table, random_image
from records import reseal

from patchcert.data import DataConfig, prepare, register_dataset
from patchcert.errors import DatasetError

SIZE = (8, 8)


def write_images(root, split, classes, num_each=2):
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for row in range(num_each):
            (folder / f"{row}.png").write_bytes(encode(random_image(8, 8, seed=100 * label + row)))


def prepared(root, out, splits=("train", "test"), **fields):
    """Prepares own images; returns the splits and everything that was said."""
    said = []
    config = DataConfig(dataset="folder", source=str(root), resize="stretch", **fields)
    return prepare(config, SIZE, out, splits=list(splits), on_warning=said.append), said


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "photos", split, ["cat", "dog"])
    return tmp_path / "photos"


def test_whole_folders_are_prepared_without_a_word(photos, tmp_path):
    found, said = prepared(photos, tmp_path / "out")
    assert found["train"].class_names == ("cat", "dog") and said == []


@pytest.mark.parametrize("fields", [{}, {"limit": 3}])
@pytest.mark.parametrize("asked", [["train"], ["test"], ["train", "test"]])
def test_a_class_under_two_spellings_is_refused_with_both(photos, tmp_path, asked, fields):
    (photos / "test" / "dog").rename(photos / "test" / "Dog")
    message = r"1 classes have test images .*: 'Dog' \(perhaps 'dog'\); their images can never be right"
    with pytest.raises(DatasetError, match=message):
        prepared(photos, tmp_path / "out", asked, **fields)
    assert not (tmp_path / "out").exists()


def test_a_class_without_test_images_needs_consent(photos, tmp_path):
    write_images(photos, "train", ["emu"])
    message = r"1 classes have training images in .*, but no test images: 'emu'\n.*--data.allow-subset"
    with pytest.raises(DatasetError, match=message):
        prepared(photos, tmp_path / "out")
    found, said = prepared(photos, tmp_path / "out", allow_subset=True)
    assert found["test"].class_names == ("cat", "dog", "emu")
    assert len(said) == 1 and "no test images: 'emu'" in said[0]


def test_an_empty_class_folder_does_not_count_as_images(photos, tmp_path):
    (photos / "train" / "emu").mkdir()
    found, said = prepared(photos, tmp_path / "out")
    assert found["train"].class_names == ("cat", "dog", "emu")
    assert said == ["1 class folders of the train images of folder are empty: 'emu'"]
    write_images(photos, "test", ["emu"])
    with pytest.raises(DatasetError, match=r"1 classes have test images .*: 'emu'; their images can never be right"):
        prepared(photos, tmp_path / "other")


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"])
def test_what_other_programs_leave_is_no_class(photos, tmp_path, name):
    for split in ("train", "test"):
        write_images(photos, split, [name])
    write_images(photos / "train", "dog", ["@eaDir"])
    found, said = prepared(photos, tmp_path / "out")
    assert found["train"].class_names == ("cat", "dog") and found["train"].num_rows == 4
    assert any(f"left out: train/{name} (a folder that other programs leave behind, 2 files)" in text for text in said)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dog", "dog "),
        ("caf\u00e9", "cafe\u0301"),
        ("great dane", "great  dane"),
        ("dog", "dog_"),
        ("dog", "dog-"),
    ],
)
def test_names_that_differ_by_nothing_to_be_seen_are_refused(tmp_path, one, other):
    for split in ("train", "test"):
        write_images(tmp_path / "photos", split, [one, other])
    message = "differ by white space, Unicode normal form or a trailing separator only"
    with pytest.raises(DatasetError, match=message):
        prepared(tmp_path / "photos", tmp_path / "out")


def test_names_that_differ_by_case_in_all_splits_are_classes_with_a_word(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "letters", split, ["A", "a", "b"])
    found, said = prepared(tmp_path / "letters", tmp_path / "out")
    assert found["train"].class_names == ("A", "a", "b")
    assert said == ["two classes look alike: 'A' and 'a'; each counts as a class of its own"]


def dangling(folder):
    (folder / "train/dog/lost.png").symlink_to("nowhere.png")
    return r"train/dog/lost.png: it is a link to nowhere.png: where there is nothing"


def loop(folder):
    (folder / "train/dog/up").symlink_to("..")
    return r"train/dog/up: it leads to the folder that holds it"


def no_text(folder):
    (folder / "train/dog" / os.fsdecode(b"stra\xdfe.png")).write_bytes(encode(random_image(8, 8)))
    return r"train/dog/stra\\xdfe.png: its name is no UTF-8 text"


def pipe(folder):
    os.mkfifo(folder / "train/dog/2.png")
    return r"train/dog/2.png: it is a pipe"


@pytest.mark.parametrize("spoil", [dangling, loop, no_text, pipe])
def test_what_cannot_be_read_is_named_before_anything_is_decoded(photos, tmp_path, spoil):
    message = spoil(photos)
    with pytest.raises(
        DatasetError, match=rf"1 of the train files and folders of folder in .* cannot be read:\n  {message}"
    ):
        prepared(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_problems_are_counted(photos, tmp_path):
    for row in range(25):
        (photos / "test" / "cat" / f"lost{row:02d}.png").symlink_to("nowhere")
    with pytest.raises(DatasetError, match="25 of the test files and folders") as caught:
        prepared(photos, tmp_path / "out")
    assert str(caught.value).count("where there is nothing") == 10 and "\n  and 15 more\n" in str(caught.value)


def test_a_split_that_is_a_lost_link_is_named(photos, tmp_path):
    (photos / "test").rename(tmp_path / "moved")
    (photos / "test").symlink_to("gone")
    with pytest.raises(DatasetError, match=r"photos/test cannot be read: it is a link to gone: where there is nothing"):
        prepared(photos, tmp_path / "out")


def test_training_images_are_no_test_images(photos, tmp_path):
    (photos / "test").rename(tmp_path / "moved")
    (photos / "test").symlink_to("train")
    with pytest.raises(DatasetError, match=r"the train and the test images of folder in .* are read from one folder"):
        prepared(photos, tmp_path / "out")


def test_one_file_under_two_names_is_counted(photos, tmp_path):
    (photos / "test/cat/again.png").symlink_to(photos / "train/cat/0.png")
    os.link(photos / "train/cat/0.png", photos / "train/cat/third.png")
    said = prepared(photos, tmp_path / "out")[1]
    assert said == ["2 images of folder are read more than once: their names lead to files that have another name, too"]


def test_odd_file_names_are_kept(photos, tmp_path):
    names = [
        "a?b.png",
        "a#b.png",
        "100%.png",
        "a\\b.png",
        'it\'s "so".png',
        "a\nb.png",
        "x" * 250 + ".png",
        "\u00e4 b.png",
    ]
    for name in names:
        (photos / "train" / "dog" / name).write_bytes(encode(random_image(8, 8)))
    found = prepared(photos, tmp_path / "out")[0]
    assert {f"folder/train/dog/{name}" for name in names} < set(found["train"].read_all().image_ids.tolist())


def test_a_limited_split_says_how_many_classes_it_holds(photos, tmp_path):
    said = prepared(photos, tmp_path / "out", ["train"], limit=2)[1]
    assert said == ["the train split of folder is limited to its first 2 of 4 images, which hold 1 of 2 classes"]


def hub(root, split, names, labels, files=1):
    root.mkdir(exist_ok=True)
    for index, rows in enumerate(np.array_split(np.arange(len(labels)), files)):
        table = hub_table([encode(random_image(8, 8, seed=int(row))) for row in rows], [labels[row] for row in rows])
        if names is not None:
            features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, root / f"{split}-{index:05d}-of-{files:05d}.parquet")


@pytest.mark.parametrize("asked", [["test"], ["train", "test"]])
def test_labels_are_compared_by_name_across_splits(tmp_path, asked):
    hub(tmp_path / "hub", "train", ["ant", "bee", "cow"], [0, 1, 2, 0])
    hub(tmp_path / "hub", "test", ["cow", "ant", "bee"], [0, 1, 2, 2])
    found = prepared(tmp_path / "hub", tmp_path / "out", asked)[0]["test"]
    assert found.class_names == ("ant", "bee", "cow") and found.read_all().labels_N.tolist() == [2, 0, 1, 1]


def test_labels_are_compared_by_name_across_files_and_with_the_dataset(tiny, tmp_path):
    """``tiny`` has the classes ant, bee and cow."""
    hub(tmp_path / "hub", "train", ["ant", "bee", "cow"], [0, 1, 2, 0, 1, 2, 0, 1], files=2)
    table = pq.read_table(tmp_path / "hub" / "train-00001-of-00002.parquet")
    names = {"info": {"features": {"label": {"names": ["Bee", "cow", "ant"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "hub" / "train-00001-of-00002.parquet")
    config = DataConfig(dataset="tiny", source=str(tmp_path / "hub"))
    found = prepare(config, None, tmp_path / "out", splits=["trainval"])["trainval"].read_all()
    # The second file's labels 1, 2, 0, 1 are cow, ant, bee, cow.
    assert found.labels_N.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ant", "bee", "emu"],
            r"3 there, 3 expected; class 2 is 'emu' there, 'cow' expected; only there 'emu'; missing",
        ),
        (["ant", "bee"], r"2 there, 3 expected; class 2 is nothing there, 'cow' expected; missing there 'cow'"),
        (["ant", "bee", "bee"], r"names two classes 'bee': 1 and 2\n  Give every class its own name"),
        (["ant", "bee", "bee "], "differ by white space"),
        (["ant", "bee", ""], "which is no name"),
    ],
)
@pytest.mark.parametrize("dataset", ["tiny", "folder"])
def test_other_class_names_are_refused(tiny, tmp_path, dataset, names, message):
    hub(tmp_path / "hub", "train", ["ant", "bee", "cow"], [0, 1, 2] * 3)
    hub(tmp_path / "hub", "test", names, [0, 1, 1])
    config = DataConfig(dataset=dataset, source=str(tmp_path / "hub"), resize="stretch", validation_size=1)
    with pytest.raises(DatasetError, match=message):
        prepare(config, SIZE, tmp_path / "out", splits=["test"])


def test_prose_names_of_imagenet_may_be_spelled_otherwise(tmp_path, tiny):
    import dataclasses

    names = ("tench", "goldfish", "white shark", "crane bird")
    spec = dataclasses.replace(tiny, name="prose", class_names=names, folder_names=("n01", "n02", "n03", "n04"))
    register_dataset(spec)
    config = DataConfig(dataset="prose", source=str(tmp_path / "hub"), validation_size=1)
    longer = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark", "crane"]
    hub(tmp_path / "hub", "test", longer, [0, 1, 2, 3])
    assert prepare(config, None, tmp_path / "out", splits=["test"])["test"].read_all().labels_N.tolist() == [0, 1, 2, 3]
    hub(tmp_path / "hub", "test", ["n04", "n03", "n02", "n01"], [0, 1, 2, 3])
    assert prepare(config, None, tmp_path / "ids", splits=["test"])["test"].read_all().labels_N.tolist() == [3, 2, 1, 0]
    hub(tmp_path / "hub", "test", ["goldfish", "tench", "wolf", "crane"], [0, 1, 2, 3])
    with pytest.raises(DatasetError, match="class 0 is 'goldfish' there, 'tench' expected"):
        prepare(config, None, tmp_path / "swapped", splits=["test"])


@pytest.mark.parametrize("names", [None, {"huggingface": "null names"}])
def test_classes_can_be_named_in_the_settings(tmp_path, names):
    hub(tmp_path / "hub", "train", None, [0, 1, 2, 1])
    hub(tmp_path / "hub", "test", None, [2, 1, 0])
    if names is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": None}}}})}
        path = tmp_path / "hub" / "train-00000-of-00001.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(DatasetError, match=r"does not name its classes\n  .*--data.class-names ant bee cow"):
        prepared(tmp_path / "hub", tmp_path / "out")
    found, said = prepared(tmp_path / "hub", tmp_path / "out", class_names=("one", "two", "three"))
    assert found["test"].class_names == ("one", "two", "three") and said == []
    assert found["test"].read_all().labels_N.tolist() == [2, 1, 0]
    with pytest.raises(
        DatasetError, match=r"class_names: \['one', 'two', 'three'\] there, \['a', 'b', 'c'\] asked for"
    ):
        prepared(tmp_path / "hub", tmp_path / "out", class_names=("a", "b", "c"))


def test_names_in_the_settings_order_class_folders(photos, tmp_path):
    found = prepared(photos, tmp_path / "out", class_names=("dog", "cat"))[0]["train"]
    assert found.class_names == ("dog", "cat") and found.read_all().labels_N.tolist() == [1, 1, 0, 0]
    with pytest.raises(DatasetError, match="has the class folder 'dog', which is no class of folder"):
        prepared(photos, tmp_path / "other", class_names=("cat", "emu"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dataset": "digits", "class_names": ("a", "b")},
            "data.class_names is given, but digits has 10 classes of its",
        ),
        ({"dataset": "folder", "class_names": ("a",)}, "data.class_names names 1 classes, but at least 2 are needed"),
        ({"dataset": "folder", "class_names": ("a", "a")}, "data.class_names names two classes 'a': 0 and 1"),
        ({"dataset": "folder", "class_names": ("a", " ")}, "names class 1 ' ', which is no name"),
    ],
)
def test_class_names_in_the_settings_are_checked(fields, message):
    with pytest.raises(DatasetError, match=message):
        DataConfig(**fields)


def test_splits_prepared_with_different_orders_are_not_used_together(photos, tmp_path):
    """Older versions took the order of classes from each split alone."""
    prepared(photos, tmp_path / "out")
    reseal(tmp_path / "out/test/dataset.json", class_names=["dog", "cat"])
    with pytest.raises(DatasetError, match=r"the test split in .* counts its classes in another order than its train"):
        prepared(photos, tmp_path / "out", ["train"])


def test_parquet_files_in_split_folders_are_read(tmp_path):
    for split in ("train", "test"):
        hub(tmp_path / split, "0000", ["ant", "bee"], [0, 1])
        (tmp_path / split / "0000-00000-of-00001.parquet").rename(tmp_path / split / "0000.parquet")
    found = prepared(tmp_path, tmp_path / "out")[0]["train"]
    assert found.class_names == ("ant", "bee") and found.read_all().labels_N.tolist() == [0, 1]
    write_images(tmp_path, "train", ["ant", "bee"])
    with pytest.raises(
        DatasetError, match=r"holds its train images twice: train/0000.parquet, and the folder train/ant"
    ):
        prepared(tmp_path, tmp_path / "other")


def test_a_table_beside_class_folders_does_not_hide_them(photos, tmp_path):
    pq.write_table(pa.table({"file": ["1.png"]}), photos / "metadata.parquet")
    assert prepared(photos, tmp_path / "out")[0]["train"].num_rows == 4


@pytest.mark.parametrize("kind", ["binary_view", "fixed"])
def test_every_kind_of_binary_column_is_read(tiny, tmp_path, kind):
    images = [encode(random_image(8, 8, seed=row), "BMP") for row in range(4)]
    data_type = pa.binary_view() if kind == "binary_view" else pa.binary(len(images[0]))
    table = pa.table({"image": pa.array(images, data_type), "label": [0, 1, 2, 0]})
    pq.write_table(table, tmp_path / "test.parquet")
    config = DataConfig(dataset="tiny", source=str(tmp_path))
    found = prepare(config, None, tmp_path / "out", splits=["test"])["test"].read_all()
    assert [encode(image, "BMP") for image in found.images_NHWC] == images


def test_names_in_parquet_files_that_are_no_text_are_refused(tiny, tmp_path):
    ids = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xdf")]
    )
    pq.write_table(hub_table([encode(random_image(8, 8))], [0], image_id=ids), tmp_path / "test.parquet")
    with pytest.raises(DatasetError, match=r"test.parquet is no readable Parquet file: .*UTF8"):
        prepare(DataConfig(dataset="tiny", source=str(tmp_path)), None, tmp_path / "out", splits=["test"])
