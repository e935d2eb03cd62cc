import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import write_hub
from PIL import Image
from records import reseal

from patchcert.data import DataConfig, DatasetSpec, PreparedDataset, prepare, registry
from patchcert.data import prepared as prepared_module
from patchcert.data.decoding import encode_png
from patchcert.data.prepared import row_digest
from patchcert.data.reading_ahead import read_ahead
from patchcert.errors import DatasetError, ResourceError

NUM_ROWS = 47


@pytest.fixture(scope="module", params=["raw", "encoded"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    images, labels = write_hub(folder / "hub", "test", NUM_ROWS, size=(6, 9))
    known = dict(registry._REGISTRY)
    registry.register_dataset(
        DatasetSpec(name="wide", description="", class_names=("a", "b", "c"), native_size=(6, 9), validation_size=0)
    )
    config = DataConfig(
        dataset="wide", source=str(folder / "hub"), rows_per_group=4, rows_per_shard=12, storage=request.param
    )
    prepared = prepare(config, None, folder / "out", splits=["test"])["test"]
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)
    return prepared, images, labels


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, NUM_ROWS), st.integers(0, NUM_ROWS)))
def test_any_range_of_rows_can_be_read(dataset, bounds):
    prepared, images, labels = dataset
    start, stop = sorted(bounds)
    batch = prepared.read(start, stop)
    assert batch.images_NHWC.dtype == np.uint8 and batch.labels_N.dtype == np.int64
    assert (batch.images_NHWC == images[start:stop]).all() and (batch.labels_N == labels[start:stop]).all()
    assert batch.image_ids.tolist() == [f"wide/test/{row:06d}" for row in range(start, stop)]
    assert len(batch) == stop - start and batch.images_NHWC.shape == (stop - start, 6, 9, 3)
    assert batch.images_NHWC.flags.writeable and batch.images_NHWC.flags.c_contiguous


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 48), (5, 4)])
def test_ranges_outside_are_refused(dataset, start, stop):
    with pytest.raises(DatasetError, match=f"rows {start} to {stop} of .* were asked for, but it has 47"):
        dataset[0].read(start, stop)


@pytest.mark.parametrize("rows", [1, 4, 10, 47, 100])
def test_parts_cover_every_row_once(dataset, rows):
    parts = dataset[0].parts(rows)
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(NUM_ROWS))
    assert all(stop - start == rows for start, stop in parts[:-1])
    with pytest.raises(DatasetError, match="parts of 0 rows"):
        dataset[0].parts(0)


def test_only_the_row_groups_needed_are_read(dataset, tmp_path):
    prepared, images, _ = dataset
    copy = copied(prepared, tmp_path)
    for shard in prepared.shards[1:]:
        (tmp_path / shard.file).write_bytes(b"x" * shard.num_bytes)
    assert (copy.read(0, 12).images_NHWC == images[:12]).all()
    with pytest.raises(DatasetError, match=r"shard-00001-of-00004.parquet cannot be read"):
        copy.read(0, 13)


def copied(prepared, folder):
    for name in prepared.folder.files():
        (folder / name).write_bytes(prepared.folder.read(name))
    return PreparedDataset.open(folder)


def test_other_processes_read_the_same(dataset):
    prepared = dataset[0]
    assert pickle.loads(pickle.dumps(prepared)) == prepared
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        batches = list(pool.map(prepared.read, *zip(*prepared.parts(20), strict=True)))
    together = np.concatenate([batch.images_NHWC for batch in batches])
    assert (together == prepared.read_all().images_NHWC).all()


def test_what_is_not_there_says_what_to_do(dataset, tmp_path):
    prepared = dataset[0]
    with pytest.raises(
        DatasetError, match=r"is no prepared dataset: it has no dataset.json\n  Make it first:  patchcert"
    ):
        PreparedDataset.open(tmp_path)
    with pytest.raises(DatasetError, match=r"no dataset.json\n  Open one of its splits: test\."):
        PreparedDataset.open(prepared.folder.uri.removesuffix("/test"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "has format version 99, but this program reads version 1"),
        ({"num_rows": 46}, "its shards do not add up to the 46 rows"),
        ({"class_names": None}, "lacks or misstates"),
        ({"image_size": [6]}, "lacks or misstates"),
        (
            {"shards": [{"file": "../../etc/passwd", "num_rows": 47, "num_row_groups": 1, "num_bytes": 1}]},
            "leaves its fol",
        ),
        (
            {"shards": [{"file": "/etc/passwd", "num_rows": 47, "num_row_groups": 1, "num_bytes": 1}]},
            "leaves its folder",
        ),
        (
            {"shards": [{"file": "x.parquet", "num_rows": 47, "num_row_groups": 1, "num_bytes": 1}]},
            "x.parquet is missing",
        ),
        ({"shards": [{"file": "x.parquet"}]}, "lacks or misstates"),
    ],
)
def test_a_tampered_record_is_refused(dataset, tmp_path, change, message):
    copied(dataset[0], tmp_path)
    reseal(tmp_path / "dataset.json", **change)
    with pytest.raises(DatasetError, match=message):
        PreparedDataset.open(tmp_path)


def test_a_changed_byte_of_the_record_is_found(dataset, tmp_path):
    copied(dataset[0], tmp_path)
    path = tmp_path / "dataset.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 23):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DatasetError, match=r"dataset\.json|has format version"):
            PreparedDataset.open(tmp_path)


def test_a_changed_byte_of_a_footer_is_found(dataset, tmp_path):
    prepared = copied(dataset[0], tmp_path)
    path = tmp_path / prepared.shards[1].file
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for position in [0, 3, *range(start, len(whole), 61)]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        for read in (lambda: prepared.read(12, 14), prepared.verify):
            with pytest.raises(DatasetError, match=r"shard-00001-of-00004\.parquet"):
                read()


def test_a_record_of_a_version_without_its_digest_is_read(dataset, tmp_path):
    copied(dataset[0], tmp_path)
    record = json.loads((tmp_path / "dataset.json").read_text())
    del record["sha256"]
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    assert PreparedDataset.open(tmp_path).digest == dataset[0].digest
    (tmp_path / "dataset.json").write_text(json.dumps(record | {"sha": "x"}))
    with pytest.raises(DatasetError, match=r"dataset\.json was changed after it was written"):
        PreparedDataset.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_refused(dataset, tmp_path, text):
    copied(dataset[0], tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(
        DatasetError, match=r"dataset.json cannot be read: .*\n  Delete the folder and prepare it again"
    ):
        PreparedDataset.open(tmp_path)


def test_cut_off_and_swapped_shards_are_found(dataset, tmp_path):
    prepared = copied(dataset[0], tmp_path)
    first, second = (tmp_path / shard.file for shard in prepared.shards[:2])
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"shard-00000-of-00004.parquet is .* bytes, but must have"):
        PreparedDataset.open(tmp_path)
    first.write_bytes(whole)
    other = (tmp_path / prepared.shards[3].file).read_bytes()
    second.write_bytes(other)
    with pytest.raises(DatasetError, match=r"holds other rows than dataset.json lists"):
        prepared.read(0, 20)


def test_verify_finds_a_changed_pixel_label_and_order(dataset, tmp_path):
    prepared = copied(dataset[0], tmp_path)
    prepared.verify()
    path = tmp_path / prepared.shards[1].file
    table = pq.read_table(path)
    for column, value in (("label", 2), ("image_id", "wide/test/000099"), ("image", None)):
        values = table[column].to_pylist()
        values[3] = values[4] if value is None else value
        position = table.schema.get_field_index(column)
        changed = table.set_column(
            position, table.schema.field(column), [pa.array(values, table.schema.field(column).type)]
        )
        pq.write_table(changed, path, row_group_size=4)
        with pytest.raises(DatasetError, match=r"row 15 \(wide/test/0000\d\d\) is not what was written"):
            prepared.verify()
    order = [1, 0, *range(2, 12)]
    pq.write_table(table.take(order), path, row_group_size=4)
    with pytest.raises(DatasetError, match=r"its digest is .*, but dataset.json says"):
        prepared.verify()


def negative_images(prepared, shard, rows):
    """Turns some stored images of a shard negative, everything else as it was."""
    path = prepared.folder.path(prepared.shards[shard].file)
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    for row in rows:
        if prepared.storage == "raw":
            images[row] = bytes(255 - value for value in images[row])
        else:
            with Image.open(io.BytesIO(images[row])) as image:
                images[row] = encode_png(255 - np.asarray(image), prepared.image_size, prepared.num_channels)
    position = table.schema.get_field_index("image")
    table = table.set_column(position, table.schema.field("image"), pa.array(images, table.schema.field("image").type))
    pq.write_table(table, path, row_group_size=prepared.rows_per_group, compression="none", use_dictionary=False)
    shards = list(prepared.shards)
    shards[shard] = dataclasses.replace(shards[shard], num_bytes=os.path.getsize(path), frame_sha256="")
    return dataclasses.replace(prepared, shards=tuple(shards))


@pytest.mark.parametrize(
    "read",
    [
        lambda prepared: prepared.read(12, 24),
        lambda prepared: prepared.read_all(),
        lambda prepared: prepared.read(17, 18),
        lambda prepared: prepared.fill(0, np.empty((47, 6, 9, 3), np.uint8), np.empty(47, np.int64)),
        lambda prepared: list(read_ahead(prepared, 10, 30)),
        lambda prepared: prepared.verify(),
    ],
)
def test_changed_pixels_are_found_whoever_reads_them(dataset, tmp_path, read):
    prepared = copied(dataset[0], tmp_path)
    read(prepared)
    changed = negative_images(prepared, 1, [5, 7])
    with pytest.raises(
        DatasetError, match=r"is damaged: shard-00001-of-00004.parquet: row 17 \(wide/test/000017\) is not"
    ):
        read(changed)
    assert (changed.read(0, 12).images_NHWC == dataset[1][:12]).all()


@pytest.mark.parametrize(("column", "value"), [("label", 2), ("image_id", "wide/test/000099")])
def test_changed_labels_and_names_are_found_while_reading(dataset, tmp_path, column, value):
    prepared = copied(dataset[0], tmp_path)
    path = tmp_path / prepared.shards[2].file
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[0] = value if values[0] != value else 1
    position = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(position, field, pa.array(values, field.type)), path, row_group_size=4)
    with pytest.raises(DatasetError, match=r"shard-00002-of-00004.parquet: row 24 \("):
        prepared.read(20, 30)


def test_rows_are_hashed_once_a_process_and_again_when_the_file_changes(dataset, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(prepared_module, "row_digest", lambda *row: hashed.append(row[0]) or row_digest(*row))
    prepared = copied(dataset[0], tmp_path)
    for _ in range(3):
        prepared.read_all()
    assert len(hashed) == NUM_ROWS
    os.utime(tmp_path / prepared.shards[0].file)
    prepared.read_all()
    assert len(hashed) == NUM_ROWS + 12
    prepared.verify()
    assert len(hashed) == 2 * NUM_ROWS + 12


@pytest.mark.parametrize("dataset", ["encoded"], indirect=True)
def test_an_image_that_cannot_be_decoded_is_damage(dataset, tmp_path):
    prepared = copied(dataset[0], tmp_path)
    path = tmp_path / prepared.shards[0].file
    data = path.read_bytes()
    path.write_bytes(data.replace(b"IHDR", b"IDHR"))
    with pytest.raises(DatasetError, match=r"an image in shard-00000-of-00004.parquet cannot be decoded"):
        prepared.read(0, 4)


def test_reading_everything_is_refused_when_memory_is_short(dataset):
    huge = dataclasses.replace(dataset[0], num_rows=10**14)
    with pytest.raises(ResourceError, match=r"GiB of memory, but .* GiB are free\n  Read it in parts"):
        huge.read_all()
