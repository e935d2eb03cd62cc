import itertools
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode, hub_table, random_image, write_hub

from patchcert.data import DataConfig, dataset_spec
from patchcert.data.sources import open_source
from patchcert.data.splits import find_split
from patchcert.errors import DatasetError


def names(spec, folder, split, **fields):
    config = DataConfig(dataset=spec.name, source=str(folder), **fields)
    rows = find_split(spec, config, open_source(spec, config.source), split).select()
    everything = list(rows.take(0, rows.num_rows).read())
    assert rows.num_rows == len(everything)
    borders = [0, rows.num_rows // 3, rows.num_rows]
    parts = [pickle.loads(pickle.dumps(rows.take(*pair))) for pair in itertools.pairwise(borders)]
    assert [row for part in parts for row in part.read()] == everything
    return [row.image_id for row in everything]


@pytest.fixture
def hub(tmp_path):
    write_hub(tmp_path, "train", 60, num_files=2)
    write_hub(tmp_path, "test", 10)
    return tmp_path


def test_validation_is_held_out_of_the_training_images(tiny, hub):
    train, validation = names(tiny, hub, "train"), names(tiny, hub, "validation")
    everything = [f"tiny/train/{row:06d}" for row in range(60)]
    assert len(validation) == 5 and not set(train) & set(validation)
    assert sorted(train + validation) == names(tiny, hub, "trainval") == everything
    assert train == sorted(train) and validation == sorted(validation)
    assert names(tiny, hub, "test") == [f"tiny/test/{row:06d}" for row in range(10)]


def test_a_larger_validation_split_contains_the_smaller_one(tiny, hub):
    small, large = (set(names(tiny, hub, "validation", validation_size=size)) for size in (5, 20))
    assert small < large and len(large) == 20
    assert small != set(names(tiny, hub, "validation", validation_size=5, validation_seed=1))


def test_validation_does_not_depend_on_the_order_of_files(tiny, tmp_path):
    ids = [f"image{row}" for row in range(40)]
    found = []
    for order in (ids, ids[::-1]):
        images = [encode(random_image(8, 8))] * 40
        pq.write_table(hub_table(images, [0] * 40, image_id=pa.array(order)), tmp_path / "train.parquet")
        found.append(names(tiny, tmp_path, "validation"))
    assert set(found[0]) == set(found[1]) and found[0] == found[1][::-1]


def test_limit_takes_the_first_images_of_each_split(tiny, hub):
    for split in ("train", "validation", "trainval", "test"):
        assert names(tiny, hub, split, limit=3) == names(tiny, hub, split)[:3]


def test_a_validation_split_of_the_source_is_used(tmp_path):
    for split, classes in (("train", "ab"), ("val", "ab"), ("test", "b")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(encode(random_image(8, 8)))
    folder = dataset_spec("folder")
    assert names(folder, tmp_path, "validation") == ["folder/validation/a/1.png", "folder/validation/b/1.png"]
    assert names(folder, tmp_path, "train") == ["folder/train/a/1.png", "folder/train/b/1.png"]
    both = names(folder, tmp_path, "train") + names(folder, tmp_path, "validation")
    assert names(folder, tmp_path, "trainval") == both
    assert names(folder, tmp_path, "trainval", limit=3) == both[:3]
    assert names(folder, tmp_path, "trainval", limit=2) == both[:2]
    with pytest.raises(DatasetError, match=r"validation_size is 1, but .* has a validation split of its own"):
        names(folder, tmp_path, "validation", validation_size=1)


@pytest.mark.parametrize(
    ("split", "fields", "message"),
    [
        ("training", {}, r"tiny has no split 'training'\n  Choose from: train, validation, test, trainval"),
        ("validation", {"validation_size": 60}, "60 validation images cannot be held out of the 60 training images"),
        ("train", {"validation_size": 61}, "61 validation images cannot be held out"),
        ("validation", {"validation_size": 0}, "tiny has no validation images: validation_size is 0"),
    ],
)
def test_impossible_splits_are_refused(tiny, hub, split, fields, message):
    with pytest.raises(DatasetError, match=message):
        names(tiny, hub, split, **fields)


def test_no_validation_leaves_all_images_for_training(tiny, hub):
    assert len(names(tiny, hub, "train", validation_size=0)) == 60


def test_a_split_that_the_source_lacks_is_named(tiny, tmp_path):
    write_hub(tmp_path, "test", 5)
    with pytest.raises(DatasetError, match=r"the train images of tiny are missing: .* has test, but train is needed"):
        names(tiny, tmp_path, "validation")
