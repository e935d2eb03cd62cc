"""Whether a finished dataset notices that its source was changed in place, and is not bothered by copies of it."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_files import encode, hub_table, random_image, write_hub

from patchcert.data import DataConfig, Folder, prepare, source_files
from patchcert.errors import DatasetError

CHANGED = (
    r"was prepared from other content: the files of .* have the same names and sizes, but were changed since\n.*--work"
)


def write_bitmaps(root, invert=False):
    """Bitmaps of one size have files of one size, whatever is on them."""
    for split in ("train", "test"):
        for name in ("ant", "bee", "cow"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for row in range(3):
                image = random_image(8, 8, seed=row + 10 * len(split))
                (folder / f"{row}.bmp").write_bytes(encode(255 - image if invert else image, "BMP"))


def write_tables(root, invert=False):
    images = [
        encode(255 - random_image(8, 8, seed=row) if invert else random_image(8, 8, seed=row), "BMP")
        for row in range(9)
    ]
    root.mkdir(exist_ok=True)
    for split in ("train", "test"):
        pq.write_table(
            hub_table(images, [0, 1, 2] * 3), root / f"{split}.parquet", compression="none", use_dictionary=False
        )


def later(root):
    """Other times of writing, as a copy or a checkout has them."""
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(1_800_000_000_000_000_000, 1_800_000_000_000_000_000))


def config_for(root, **fields):
    return DataConfig(dataset="tiny", source=str(root), validation_size=1, **fields)


@pytest.fixture(params=[write_bitmaps, write_tables])
def write(request, tiny):
    return request.param


def test_files_changed_in_place_are_noticed(write, tmp_path):
    write(tmp_path / "source")
    sizes = Folder(tmp_path / "source").files(recursive=True)
    prepare(config_for(tmp_path / "source"), None, tmp_path / "out")
    write(tmp_path / "source", invert=True)
    later(tmp_path / "source")
    assert Folder(tmp_path / "source").files(recursive=True) == sizes
    with pytest.raises(DatasetError, match=CHANGED):
        prepare(config_for(tmp_path / "source"), None, tmp_path / "out")


def test_copies_are_the_same_source(write, tmp_path):
    write(tmp_path / "source")
    first = prepare(config_for(tmp_path / "source"), None, tmp_path / "out")
    later(tmp_path / "source")
    said = []
    assert prepare(config_for(tmp_path / "source"), None, tmp_path / "out", on_warning=said.append) == first
    shutil.copytree(tmp_path / "source", tmp_path / "copy", copy_function=shutil.copyfile)
    assert prepare(config_for(tmp_path / "copy"), None, tmp_path / "out", on_warning=said.append) == first
    shutil.rmtree(tmp_path / "copy")
    assert prepare(config_for(tmp_path / "copy"), None, tmp_path / "out", on_warning=said.append) == first
    assert said == []


def test_large_sources_are_compared_by_a_sample_and_that_is_said(write, tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(source_files, "_NUM_BLOCKS", 5)
    write(tmp_path / "source")
    first = prepare(config_for(tmp_path / "source"), None, tmp_path / "out")
    later(tmp_path / "source")
    said = []
    assert prepare(config_for(tmp_path / "source"), None, tmp_path / "out", on_warning=said.append) == first
    assert len(said) == 3 and all("a sample of their content is the same" in text for text in said)
    write(tmp_path / "source", invert=True)
    with pytest.raises(DatasetError, match=CHANGED):
        prepare(config_for(tmp_path / "source"), None, tmp_path / "out")


def test_shards_made_before_a_change_are_made_again(tiny, tmp_path):
    write_bitmaps(tmp_path / "source")
    config = config_for(tmp_path / "source", rows_per_group=2, rows_per_shard=2)
    (tmp_path / "source/test/cow/1.bmp").write_bytes(encode(random_image(9, 8), "BMP"))
    with pytest.raises(DatasetError, match="it is 9x8 pixels"):
        prepare(config, None, tmp_path / "out", splits=["test"])
    assert len(list((tmp_path / "out/test").glob("shard-*"))) == 3
    write_bitmaps(tmp_path / "source", invert=True)
    (tmp_path / "source/test/cow/1.bmp").write_bytes(encode(random_image(8, 8), "BMP"))
    images = prepare(config, None, tmp_path / "out", splits=["test"])["test"].read_all().images_NHWC
    assert (images[0] == 255 - random_image(8, 8, seed=40)).all()


def test_folders_of_older_versions_stay_usable(write, tmp_path):
    write(tmp_path / "source")
    first = prepare(config_for(tmp_path / "source"), None, tmp_path / "out")
    for path in (tmp_path / "out").glob("*/dataset.json"):
        record = json.loads(path.read_text())
        del record["sha256"]
        assert record.pop("source_files")["num_files"] in (1, 9)
        assert record["identity"].pop("class_names") is None
        path.write_text(json.dumps(record))
    later(tmp_path / "source")
    again = prepare(config_for(tmp_path / "source"), None, tmp_path / "out")
    assert [data.digest for data in again.values()] == [data.digest for data in first.values()]


def test_objects_of_a_store_have_times_too(tiny, tmp_path, s3_variables, monkeypatch):
    for variable, value in s3_variables.items():
        monkeypatch.setenv(variable, value)
    write_hub(tmp_path / "hub", "test", 4)
    store = Folder(f"s3://bucket/{tmp_path.name}")
    (name,) = os.listdir(tmp_path / "hub")
    data = bytearray((tmp_path / "hub" / name).read_bytes())
    store.write(name, bytes(data))
    assert store.listing().files[name].mtime_ns > 0
    config = config_for(store.uri)
    prepare(config, None, tmp_path / "out", splits=["test"])
    data[100] ^= 1
    monkeypatch.setattr(source_files, "stamp_of", lambda parts: "another time")  # the store counts in seconds
    monkeypatch.setattr("patchcert.data.identity.stamp_of", lambda parts: "another time")
    prepare(config, None, tmp_path / "out", splits=["test"])
    store.write(name, bytes(data))
    with pytest.raises(DatasetError, match=CHANGED):
        prepare(config, None, tmp_path / "out", splits=["test"])


def test_every_file_decides_the_digest(tmp_path):
    for row in range(4):
        (tmp_path / f"{row}.bin").write_bytes(bytes([row]) * 10)
    folder = Folder(tmp_path)
    found = {source_files.SourceFiles.of(folder, folder.listing().files).content}
    for row in range(4):
        (tmp_path / f"{row}.bin").write_bytes(bytes([row + 10]) * 10)
        found.add(source_files.SourceFiles.of(folder, folder.listing().files).content)
    assert len(found) == 5
    assert source_files.SourceFiles.of(folder, {}).content
    assert np.sum(source_files.SourceFiles.of(folder, folder.listing().files).sizes) == 40
