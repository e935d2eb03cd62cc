import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from image_files import cmyk_photo, encode, hub_table, random_image, write_hub
from PIL import Image

from patchcert.data import DataConfig, Folder, PreparedDataset, prepare, register_dataset
from patchcert.data.shards import in_processes
from patchcert.errors import DatasetError, ImageError, ResourceError

SMALL = {"rows_per_group": 5, "rows_per_shard": 20}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


@pytest.fixture
def hub(tmp_path, tiny):
    """Source folder, its training pixels and labels."""
    folder = tmp_path / "hub"
    images, labels = write_hub(folder, "train", 60, num_files=2, size=(8, 8))
    write_hub(folder, "test", 13, seed=1)
    return folder, images, labels


def config_for(folder, **fields):
    return DataConfig(dataset="tiny", source=str(folder), **fields)


def test_digits_need_nothing_but_a_folder(tmp_path):
    prepared = prepare(DataConfig(), None, tmp_path)
    assert {split: data.num_rows for split, data in prepared.items()} == {"train": 1097, "validation": 200, "test": 500}
    test = prepared["test"]
    assert (test.name, test.image_size, test.num_channels, test.num_classes) == ("digits", (32, 32), 1, 10)
    batch = test.read_all()
    assert batch.images_NHWC.shape == (500, 32, 32, 1) and batch.images_NHWC.max() == 255
    assert np.bincount(batch.labels_N).min() >= 40
    # The 8x8 scan of the first test image, scaled: sklearn's row 1,297.
    from sklearn.datasets import load_digits

    scan = (load_digits().images[1297] * 255 / 16).round().astype(np.uint8)
    scaled = Image.fromarray(scan).resize((32, 32), Image.Resampling.BICUBIC)
    assert (batch.images_NHWC[0, ..., 0] == np.asarray(scaled)).all()
    assert len({data.digest for data in prepared.values()}) == 3


def test_pixels_labels_and_names_are_those_of_the_source(hub, tmp_path):
    folder, images, labels = hub
    prepared = prepare(config_for(folder, **SMALL), None, tmp_path / "out", splits=["trainval", "test"])
    assert list(prepared) == ["trainval", "test"]
    batch = prepared["trainval"].read_all()
    assert (batch.images_NHWC == images).all() and (batch.labels_N == labels).all()
    assert batch.image_ids.tolist() == [f"tiny/train/{row:06d}" for row in range(60)]
    assert [(s.num_rows, s.num_row_groups) for s in prepared["trainval"].shards] == [(20, 4)] * 3
    assert [(s.num_rows, s.num_row_groups) for s in prepared["test"].shards] == [(13, 3)]
    assert sorted(contents(tmp_path / "out" / "test")) == ["dataset.json", "shard-00000-of-00001.parquet"]


def test_threads_and_storage_do_not_change_the_digest(hub, tmp_path):
    config = config_for(hub[0], resize="crop", **SMALL)
    for name, threads in (("one", 1), ("four", 4)):
        prepare(config, (6, 9), tmp_path / name, num_threads=threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")
    one = PreparedDataset.open(tmp_path / "one" / "train")
    others = {
        "png": {"storage": "encoded", **SMALL},
        "groups": {"rows_per_group": 4, "rows_per_shard": 8},
        "defaults": {},
    }
    for name, fields in others.items():
        config = config_for(hub[0], resize="crop", **fields)
        other = prepare(config, (6, 9), tmp_path / name, splits=["train"])["train"]
        assert other.digest == one.digest
        assert (other.read_all().images_NHWC == one.read_all().images_NHWC).all()
    for fields in ({"validation_seed": 3}, {"interpolation": "bicubic"}, {"limit": 54}, {"resize": "pad"}):
        config = config_for(hub[0], **{"resize": "crop", **fields})
        other = prepare(config, (6, 9), tmp_path / f"{fields}", splits=["train"])["train"]
        assert other.digest != one.digest
    wide = prepare(config_for(hub[0], resize="stretch"), (8, 9), tmp_path / "wide", splits=["train"])["train"]
    assert wide.image_size == (8, 9) and wide.digest != one.digest


def test_processes_make_the_same_files(hub, tmp_path):
    config = config_for(hub[0], **SMALL)
    prepare(config, None, tmp_path / "threads", num_threads=1)
    steps = []
    prepare(config, None, tmp_path / "processes", spread=in_processes(2), on_progress=lambda *step: steps.append(step))
    assert contents(tmp_path / "processes") == contents(tmp_path / "threads")
    assert steps[-1] == (73, 73)


def test_errors_of_processes_are_those_of_threads(tiny, tmp_path):
    images = [encode(random_image(8, 8, seed=row)) for row in range(60)]
    images[30], images[55] = b"", images[55][:-20]
    pq.write_table(hub_table(images, [0] * 60), tmp_path / "test.parquet")
    messages = []
    for name, spread in {"threads": None, "processes": in_processes(3)}.items():
        with pytest.raises(ImageError) as caught:
            prepare(config_for(tmp_path, **SMALL), None, tmp_path / name, splits=["test"], spread=spread)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "tiny/test/000030" in messages[0]


def test_a_killed_process_is_one_clear_message(tmp_path):
    killed = []

    def kill_one(done, total):
        # Shards that were made before it died are still reported afterwards.
        if not killed:
            killed.append(next(pid for pid in children_of(os.getpid()) if is_worker(pid)))
            os.kill(killed[0], signal.SIGKILL)

    def is_worker(pid):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() and not has_ended(pid)

    config = DataConfig(rows_per_group=5, rows_per_shard=5)
    with pytest.raises(ResourceError, match=r"one of 2 preparing processes was killed.*\n  The same command continues"):
        prepare(config, None, tmp_path, splits=["train"], spread=in_processes(2), on_progress=kill_one)
    assert prepare(config, None, tmp_path, splits=["train"])["train"].num_rows == 1097


def test_the_digest_hashes_names_labels_and_pixels(tiny, tmp_path):
    """Written out here a second time, because a changed digest would orphan every vote table."""
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 100)]
    pq.write_table(hub_table([encode(image) for image in images], [0, 2]), tmp_path / "test.parquet")
    test = prepare(config_for(tmp_path), None, tmp_path / "out", splits=["test"])["test"]
    rows = [
        hashlib.sha256(b"tiny/test/000000\x000\n" + bytes([0] * 192)).digest(),
        hashlib.sha256(b"tiny/test/000001\x002\n" + bytes([100] * 192)).digest(),
    ]
    assert test.digest == hashlib.sha256(b"patchcert images 8x8x3\n" + b"".join(rows)).hexdigest()


def test_a_second_call_changes_nothing_and_needs_no_source(hub, tmp_path):
    config = config_for(hub[0], **SMALL)
    first = prepare(config, None, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    steps = []
    assert prepare(config, None, tmp_path / "out", on_progress=lambda *step: steps.append(step)) == first
    assert steps[-1] == (73, 73)
    hub[0].rename(tmp_path / "moved")
    assert prepare(config, None, tmp_path / "out") == first
    assert prepare(config_for(tmp_path / "moved", **SMALL), None, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"resize": "pad"}, None, "resize: 'none' there, 'pad' asked for; interpolation: None there, 'bilinear' asked"),
        ({"resize": "stretch"}, (4, 6), r"image_size: \[8, 8\] there, \[4, 6\] asked for"),
        ({"validation_size": 6}, None, "validation_size: 5 there, 6 asked for"),
        ({"validation_seed": 1}, None, "validation_seed: 0 there, 1 asked for"),
        ({"limit": 7}, None, "limit: None there, 7 asked for"),
        ({"max_pixels": 99}, None, "max_pixels: 64000000 there, 99 asked for"),
        ({"storage": "encoded"}, None, "storage: 'raw' there, 'encoded' asked for"),
        ({"rows_per_group": 3, "rows_per_shard": 6}, None, "rows_per_group: 4096 there, 3 asked for"),
        ({"dataset": "other"}, None, "dataset: 'tiny' there, 'other' asked for"),
    ],
)
def test_another_configuration_is_refused_with_both_values(hub, tmp_path, tiny, fields, size, message):
    register_dataset(dataclasses.replace(tiny, name="other"))
    prepare(config_for(hub[0]), None, tmp_path / "out", splits=["train"])
    before = contents(tmp_path / "out")
    with pytest.raises(
        DatasetError, match=rf"holds images prepared differently: .*{message}.*\n  Choose another output"
    ):
        prepare(dataclasses.replace(config_for(hub[0]), **fields), size, tmp_path / "out", splits=["train"])
    assert contents(tmp_path / "out") == before


def test_another_source_is_refused(hub, tmp_path):
    prepare(config_for(hub[0]), None, tmp_path / "out", splits=["test"])
    write_hub(hub[0], "test", 14)
    with pytest.raises(DatasetError, match="source: other files than the ones asked for"):
        prepare(config_for(hub[0]), None, tmp_path / "out", splits=["test"])


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, (9, 8), r"tiny images are 8x8, but 9x8 was asked for without resizing\n  Set data.resize"),
        ({"interpolation": "bicubic"}, None, "data.interpolation is bicubic, but with data.resize none nothing is"),
        ({}, (8,), r"image size \(8,\) is none"),
        ({"resize": "pad"}, (8, 0), r"image size \(8, 0\) is none"),
    ],
)
def test_impossible_sizes_are_refused(hub, tmp_path, fields, size, message):
    with pytest.raises(DatasetError, match=message):
        prepare(config_for(hub[0], **fields), size, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the images of imagenet have no common size\n  Give an image size"):
        prepare(DataConfig(dataset="imagenet", source=str(hub[0])), None, tmp_path / "out")
    with pytest.raises(ResourceError, match="0 decoding threads were asked for"):
        prepare(config_for(hub[0]), None, tmp_path / "out", num_threads=0)
    with pytest.raises(DatasetError, match="no split of tiny was asked for"):
        prepare(config_for(hub[0]), None, tmp_path / "out", splits=[])
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_row_once(hub, tmp_path):
    steps = []
    prepare(config_for(hub[0], **SMALL), None, tmp_path / "out", on_progress=lambda *step: steps.append(step))
    done = [step[0] for step in steps]
    assert done == sorted(set(done)) and steps[-1] == (73, 73) and len(steps) >= 14


def bad_hub(folder):
    """Ten images, four of them bad, each in its own way."""
    good = [encode(random_image(8, 8, seed=row)) for row in range(10)]
    images, labels = list(good), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    images[1] = None
    images[4] = encode(random_image(64, 64), "JPEG")[:2000]
    labels[6] = 3
    images[9] = encode(random_image(9, 9))
    folder.mkdir()
    pq.write_table(hub_table(images, labels), folder / "test.parquet")
    return good


def test_bad_images_are_all_named_with_their_rows(tiny, tmp_path):
    bad_hub(tmp_path / "hub")
    with pytest.raises(ImageError, match="4 bad images in the test split of tiny") as caught:
        prepare(config_for(tmp_path / "hub"), None, tmp_path / "out", splits=["test"])
    lines = str(caught.value).splitlines()
    assert lines[1] == ("  tiny/test/000001 (test.parquet row 1): it has no bytes, only the path '1.png' of a file")
    assert lines[2].startswith("  tiny/test/000004 (test.parquet row 4): it cannot be decoded: ")
    assert lines[3] == "  tiny/test/000006 (test.parquet row 6): its label is 3, but tiny has classes 0 to 2"
    assert lines[4].endswith("(test.parquet row 9): it is 9x9 pixels, but resize 'none' needs 8x8")
    assert "data.on_bad_image to quarantine" in lines[5]
    assert set(contents(tmp_path / "out")) == {"test/preparation.json"}


def test_quarantined_images_are_counted_and_listed(tiny, tmp_path):
    good = bad_hub(tmp_path / "hub")
    with pytest.raises(ImageError):
        prepare(config_for(tmp_path / "hub", **SMALL), None, tmp_path / "out", splits=["test"])
    config = config_for(tmp_path / "hub", on_bad_image="quarantine", **SMALL)
    test = prepare(config, None, tmp_path / "out", splits=["test"])["test"]
    assert (test.num_rows, test.num_quarantined) == (6, 4)
    batch = test.read_all()
    assert batch.image_ids.tolist() == [f"tiny/test/{row:06d}" for row in (0, 2, 3, 5, 7, 8)]
    assert encode(batch.images_NHWC[1]) == good[2]
    listed = pq.read_table(tmp_path / "out" / "test" / "quarantine.parquet").to_pylist()
    assert [row["image_id"] for row in listed] == [f"tiny/test/{row:06d}" for row in (1, 4, 6, 9)]
    assert listed[2]["reason"] == "its label is 3, but tiny has classes 0 to 2" and listed[2]["label"] == 3
    assert listed[0]["place"] == "test.parquet row 1"
    with pytest.raises(DatasetError, match="num_quarantined: 4 there, 0 asked for"):
        prepare(config_for(tmp_path / "hub", **SMALL), None, tmp_path / "out", splits=["test"])


def test_quarantine_does_not_depend_on_shards(tiny, tmp_path):
    bad_hub(tmp_path / "hub")
    digests = set()
    for rows in (1, 2, 3, 10):
        config = config_for(tmp_path / "hub", on_bad_image="quarantine", rows_per_group=rows, rows_per_shard=rows)
        test = prepare(config, None, tmp_path / f"out{rows}", splits=["test"])["test"]
        digests.add(test.digest)
        for start, stop in test.parts(2):
            assert (test.read(start, stop).images_NHWC == test.read_all().images_NHWC[start:stop]).all()
    assert len(digests) == 1


def test_a_clean_dataset_is_the_same_with_quarantine(hub, tmp_path):
    first = prepare(config_for(hub[0]), None, tmp_path / "out")
    assert prepare(config_for(hub[0], on_bad_image="quarantine"), None, tmp_path / "out") == first


def test_only_bad_images_are_no_dataset(tiny, tmp_path):
    pq.write_table(hub_table([b"x", b"y"], [0, 1]), tmp_path / "test.parquet")
    config = config_for(tmp_path, on_bad_image="quarantine")
    with pytest.raises(
        DatasetError, match=r"all 2 images of the test split of tiny are bad, the first: tiny/test/000000"
    ):
        prepare(config, None, tmp_path / "out", splits=["test"])
    assert not (tmp_path / "out" / "test" / "dataset.json").exists()


def test_mended_images_go_on_where_the_error_was(tiny, tmp_path):
    good = bad_hub(tmp_path / "hub")
    with pytest.raises(ImageError):
        prepare(config_for(tmp_path / "hub", **SMALL), None, tmp_path / "out", splits=["test"])
    pq.write_table(hub_table(good, [0] * 10), tmp_path / "hub" / "test.parquet")
    test = prepare(config_for(tmp_path / "hub", **SMALL), None, tmp_path / "out", splits=["test"])["test"]
    assert test.num_rows == 10 and test.num_quarantined == 0


@pytest.mark.filterwarnings("error")
def test_huge_images_are_refused_within_memory(tiny, tmp_path):
    """12,000 x 9,000 pixels would take 324 MB as RGB."""
    image = Image.new("1", (12_000, 9_000))
    image.save(tmp_path / "huge.png")
    folder = tmp_path / "hub" / "test" / "ant"
    folder.mkdir(parents=True)
    (tmp_path / "huge.png").rename(folder / "huge.png")
    with pytest.raises(ImageError, match=r"9000x12000 = 108,000,000 pixels, more than max_pixels 64,000,000"):
        prepare(config_for(tmp_path / "hub", resize="pad"), None, tmp_path / "out", splits=["test"])


def test_a_placeholder_of_one_pixel_is_no_picture(tiny, tmp_path):
    pq.write_table(
        hub_table([encode(random_image(1, 1)), encode(random_image(1, 2))], [0, 1]), tmp_path / "test.parquet"
    )
    with pytest.raises(ImageError, match=r"1 bad image .*\n.*row 0\): it is 1x1 pixels: a placeholder"):
        prepare(config_for(tmp_path, resize="stretch"), None, tmp_path / "out", splits=["test"])


def test_images_that_had_to_be_converted_are_listed(tiny, tmp_path):
    colour, grey = random_image(8, 8), random_image(8, 8, 1)
    images = {
        "plain.png": encode(colour),
        "print.jpg": cmyk_photo(colour),
        "scan.png": encode(grey),
        "cut-out.png": encode(random_image(8, 8, 4)),
        "misnamed.JPEG": encode(colour),
        "no-suffix": encode(colour),
        "both.jpg": encode(grey, "BMP"),
    }
    names = pa.array(list(images))
    pq.write_table(hub_table(list(images.values()), [0] * 7, image_id=names), tmp_path / "test.parquet")
    test = prepare(config_for(tmp_path, **SMALL), None, tmp_path / "out", splits=["test"])["test"]
    assert (test.num_rows, test.num_quarantined) == (7, 0)
    listed = pq.read_table(tmp_path / "out" / "test" / "converted.parquet").to_pylist()
    assert {row["image_id"]: row["conversion"] for row in listed} == {
        "print.jpg": "CMYK to RGB",
        "scan.png": "L to RGB",
        "cut-out.png": "RGBA to RGB",
        "misnamed.JPEG": "a PNG file by another name",
        "both.jpg": "L to RGB; a BMP file by another name",
    }
    assert json.loads((tmp_path / "out" / "test" / "dataset.json").read_text())["num_converted"] == 5


def test_an_object_store_holds_the_same_dataset(hub, tmp_path):
    (tmp_path / "store").mkdir()
    store = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    config = config_for(hub[0], **SMALL)
    prepared = prepare(config, None, Folder("bucket/tiny", filesystem=store))
    prepare(config, None, tmp_path / "out")
    assert contents(tmp_path / "store" / "bucket" / "tiny") == contents(tmp_path / "out")
    prepared["train"].verify()


SLOW = """
import sys, time
from patchcert.data import DataConfig, prepare
from patchcert.data.shards import in_processes, in_threads
config = DataConfig(rows_per_group=5, rows_per_shard=20)
spread = {"threads": in_threads, "processes": in_processes}[sys.argv[2]](3)
prepare(config, None, sys.argv[1], splits=["train"], on_progress=lambda *_: time.sleep(0.02), spread=spread)
"""


def children_of(process):
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def has_ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_killed_preparation_continues_to_the_same_bytes(tmp_path, workers):
    config = DataConfig(rows_per_group=5, rows_per_shard=20)
    prepare(config, None, tmp_path / "reference", splits=["train"], num_threads=1)
    folder = tmp_path / "killed" / "train"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "killed"), workers])
    deadline = time.monotonic() + 60
    while len(list(folder.glob("shard-*"))) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Its processes neither stay nor go on writing; beside them is the one that watches over shared resources.
    assert len(children) == (4 if workers == "processes" else 0)
    while not all(map(has_ended, children)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert 8 <= len(done) < 55 and not (folder / "dataset.json").exists()
    with pytest.raises(DatasetError, match="is no prepared dataset"):
        PreparedDataset.open(folder)
    with pytest.raises(DatasetError, match="limit: None there, 3 asked for"):
        prepare(dataclasses.replace(config, limit=3), None, tmp_path / "killed", splits=["train"])
    # A shard that a crash cut off, one of other rows, and what a killed writer leaves are made again or removed.
    cut, swapped = sorted(done)[2:4]
    (folder / cut).write_bytes((folder / cut).read_bytes()[:-10])
    (folder / swapped).write_bytes((folder / sorted(done)[0]).read_bytes())
    (folder / "shard-00000-of-00009.parquet").write_bytes(b"of another plan")
    steps = []
    prepare(config, None, tmp_path / "killed", splits=["train"], on_progress=lambda *step: steps.append(step))
    assert steps[-1] == (1097, 1097)
    assert contents(tmp_path / "killed") == contents(tmp_path / "reference")
    kept = set(done) - {cut, swapped}
    assert all((folder / name).stat().st_mtime_ns == done[name] for name in kept)


FULL_DISK = """
import resource, sys
from patchcert.data import DataConfig, prepare
from patchcert.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare(DataConfig(), None, sys.argv[1], splits=["test"])
except ResourceError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        f"cannot write {tmp_path}/test/shard-00000-of-00001.parquet: File too large\n  The disk"
    )
    assert done.stderr == ""
    assert os.listdir(tmp_path / "test") == ["preparation.json"]


def test_read_only_folders_are_one_clear_message(unprivileged):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        with pytest.raises(ResourceError, match=r"Permission denied\n  The folder is read-only"):
            prepare(DataConfig(), None, Path(name, "out"), splits=["test"])
        assert os.listdir(name) == []
        os.chmod(name, 0o755)
        locked = Path(name, "locked")
        (locked / "test" / "ant").mkdir(parents=True)
        locked.chmod(0)
        with pytest.raises(DatasetError, match=r"source of digits cannot be read: .*Permission denied"):
            prepare(DataConfig(source=str(locked)), None, Path(name, "out"), splits=["test"])
        with pytest.raises(ResourceError, match="Permission denied"):
            prepare(DataConfig(), None, locked, splits=["test"])
        locked.chmod(0o755)


def test_a_file_in_the_way_of_the_output_is_named(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"cannot write .*/out/test/preparation.json"):
        prepare(DataConfig(), None, tmp_path / "out", splits=["test"])


def test_a_damaged_plan_is_named(hub, tmp_path):
    config = config_for(hub[0], **SMALL)
    prepare(config, None, tmp_path / "out", splits=["test"])
    folder = tmp_path / "out" / "test"
    (folder / "dataset.json").rename(folder / "preparation.json")
    (folder / "preparation.json").write_text("{")
    with pytest.raises(DatasetError, match=r"preparation.json cannot be read: .*\n  Delete the folder"):
        prepare(config, None, tmp_path / "out", splits=["test"])


def test_the_record_says_how_the_images_were_made(hub, tmp_path):
    prepare(config_for(hub[0], resize="pad"), (10, 6), tmp_path / "out", splits=["test"])
    record = json.loads((tmp_path / "out" / "test" / "dataset.json").read_text())
    assert record["preprocessing"]["resize"] == "pad" and record["preprocessing"]["interpolation"] == "bilinear"
    assert record["image_size"] == [10, 6] and record["source"] == {"kind": "parquet", "uri": str(hub[0])}
    assert record["made_with"]["pillow"] and record["num_quarantined"] == 0
    assert record["class_names"] == ["ant", "bee", "cow"]
    table = pq.read_table(tmp_path / "out" / "test" / record["shards"][0]["file"])
    assert table.schema.names == ["image_id", "label", "image", "row_sha256"]
    assert table.schema.field("image").type == pa.binary(10 * 6 * 3)
