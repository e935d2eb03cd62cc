"""ImageNet from its archives: the same dataset as from unpacked folders, and one clear message for what is broken."""

import io
import json
import pickle
import tarfile

import imagenet_files
import numpy as np
import pytest
from image_files import encode, random_image
from imagenet_files import (
    NUM_TEST,
    NUM_TRAIN,
    TRAIN,
    VAL,
    VAL_CLASSES,
    WORDNET_IDS,
    devkit,
    pack,
    write_archives,
    write_folders,
    write_parquet,
)

from patchcert.cli import main
from patchcert.data import DataConfig, dataset_spec, prepare, register_dataset, registry
from patchcert.data.shards import in_processes
from patchcert.data.sources import open_source
from patchcert.errors import DatasetError, ImageError

SIZE = (16, 16)


@pytest.fixture(autouse=True)
def spec(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    return register_dataset(imagenet_files.SPEC)


def config_for(folder, **fields):
    return DataConfig(dataset="imagenet-tiny", source=str(folder), rows_per_group=2, rows_per_shard=4, **fields)


def prepared(folder, out, **fields):
    return prepare(config_for(folder, **fields), SIZE, out, splits=["train", "validation", "test"], num_threads=1)


def everything(data):
    batch = data.read_all()
    return batch.image_ids.tolist(), batch.labels_N.tolist(), batch.images_NHWC.tobytes()


def class_archives_of_train(folder):
    write_archives(folder)
    (folder / "train").mkdir()
    for name, data in imagenet_files.class_archives().items():
        (folder / "train" / name).write_bytes(data)
    (folder / "ILSVRC2012_img_train.tar").unlink()


def unpacked_train(folder):
    write_archives(folder)
    write_folders(folder)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(b"not looked at: somebody unpacked it")
    for path in (folder / "val").rglob("*.JPEG"):
        path.unlink()
    for path in [*(folder / "val").iterdir(), folder / "val"]:
        path.rmdir()


def packed_folders(folder):
    write_archives(folder)
    by_class = {f"./val/{c}/{name}": VAL[name] for c, name in zip(VAL_CLASSES, VAL, strict=True)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(pack(by_class))
    directory = tarfile.TarInfo("train")
    directory.type = tarfile.DIRTYPE
    files = {"train": directory} | {f"train/{path}": data for path, data in TRAIN.items()}
    files |= {"train/n00000001/._x.JPEG": b"of a Mac", "train/Thumbs.db": b"of Windows"}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(pack(files))


@pytest.mark.parametrize(
    "layout", [write_archives, class_archives_of_train, unpacked_train, packed_folders], ids=lambda f: f.__name__
)
def test_archives_prepare_the_same_dataset_as_folders(tmp_path, layout):
    layout(tmp_path / "archives")
    packed = prepared(tmp_path / "archives", tmp_path / "packed")
    unpacked = prepared(write_folders(tmp_path / "folders"), tmp_path / "unpacked")
    assert [data.num_rows for data in packed.values()] == [NUM_TRAIN - 4, 4, NUM_TEST]
    for split, data in packed.items():
        assert everything(data) == everything(unpacked[split]) and data.digest == unpacked[split].digest
    names = everything(packed["train"])[0] + everything(packed["validation"])[0]
    assert sorted(names) == sorted(f"imagenet-tiny/train/{path}" for path in TRAIN)
    ids, labels, _ = everything(packed["test"])
    assert ids[0] == "imagenet-tiny/test/n00000001/ILSVRC2012_val_00000003.JPEG" and labels == [0, 0, 1, 1, 2, 2]
    record = json.loads((tmp_path / "packed" / "test" / "dataset.json").read_text())
    assert record["images_per_class"] == [2, 2, 2] and record["class_names"] == ["ant", "bee", "cow"]


def test_hub_files_hold_the_same_pixels(tmp_path):
    hub = prepared(write_parquet(tmp_path / "hub"), tmp_path / "from hub")["test"]
    packed = prepared(write_archives(tmp_path / "archives"), tmp_path / "packed")["test"]
    assert everything(hub)[1:] == everything(packed)[1:]


def test_any_rows_can_be_read_alone_and_sent_away(tmp_path, spec):
    rows = open_source(spec, str(write_archives(tmp_path))).find(["train"])
    all_rows = list(rows.read(np.arange(NUM_TRAIN)))
    assert rows.labels().tolist() == [row.label for row in all_rows]
    assert rows.image_ids().to_pylist() == [row.image_id for row in all_rows]
    picked = np.array([1, 4, 11])
    taken = pickle.loads(pickle.dumps(rows.take(picked)))
    assert list(taken.read(np.array([0, 2]))) == [all_rows[1], all_rows[11]]
    assert list(rows.read(picked[:0])) == []


def test_processes_read_archives(tmp_path):
    write_archives(tmp_path)
    config = config_for(tmp_path)
    alone = prepare(config, SIZE, tmp_path / "alone")
    together = prepare(config, SIZE, tmp_path / "together", spread=in_processes(2))
    assert {s: data.digest for s, data in alone.items()} == {s: data.digest for s, data in together.items()}


def test_a_finished_dataset_is_found_without_going_through_the_archives(tmp_path, monkeypatch):
    prepared(write_archives(tmp_path), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("patchcert.data.archives._walk", None)
        assert prepared(tmp_path, tmp_path / "out")["test"].num_rows == NUM_TEST
    write_archives(tmp_path, truth=devkit(VAL_CLASSES[::-1]))
    with pytest.raises(DatasetError, match="source: other files than the ones asked for"):
        prepared(tmp_path, tmp_path / "out")


LISTS = {
    "imagenet_2012_validation_synset_labels.txt": "\n".join(VAL_CLASSES) + "\n",
    "valprep.sh": "#!/bin/bash\n"
    + "".join(f"mkdir -p {name}\n" for name in WORDNET_IDS)
    + "".join(f"mv {name} {c}/\n" for c, name in sorted(zip(VAL_CLASSES, VAL, strict=True))),
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(f"{n.partition('.')[0]},{c} 1 2 3 4 {c} 5 6 7 8 \n" for c, n in zip(VAL_CLASSES, VAL, strict=True)),
}


@pytest.mark.parametrize("name", [*LISTS, "ILSVRC2012_devkit_t12.tar.gz"])
def test_every_usual_list_of_validation_classes_is_read(tmp_path, name):
    write_archives(tmp_path, truth={})
    if name in LISTS:
        (tmp_path / name).write_text(LISTS[name])
    else:
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for file, data in devkit().items():
                info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{file}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    rows = open_source(dataset_spec("imagenet-tiny"), str(tmp_path)).find(["val"])
    found = {row.image_id.rpartition("/")[2]: WORDNET_IDS[row.label] for row in rows.read(np.arange(NUM_TEST))}
    assert found == dict(zip(VAL, VAL_CLASSES, strict=True))


def named(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PHOTO = encode(random_image(20, 26), "JPEG")
BROKEN_TRAIN = {
    "cut in a photo": (lambda data: data[: len(data) // 2 + 700], r"img_train.tar.* is no whole tar archive"),
    "cut in a header": (lambda data: data[: 512 + 100], r"img_train.tar.* is no whole tar archive"),
    "empty": (lambda data: b"", r"img_train.tar is no whole tar archive: empty file"),
    "no archive": (lambda data: b"<html>404</html>" * 100, r"img_train.tar is no whole tar archive"),
    "a damaged header": (lambda data: data.replace(b"n00000002.tar", b"n\1\2\3\4.tar", 1), r"no header at byte"),
    "a path outside": (lambda data: pack({"../../n00000001.tar": b""}), r"member '../../n00000001.tar', which leaves"),
    "an absolute path": (lambda data: pack({"/etc/passwd": b"x"}), r"member '/etc/passwd', which leaves its folder"),
    "a path outside within a class": (
        lambda data: pack({"n00000001.tar": pack({"../x.JPEG": PHOTO})}),
        r"img_train.tar/n00000001.tar has the member '../x.JPEG', which leaves",
    ),
    "a link": (
        lambda data: pack({"n00000001/x.JPEG": named("n00000001/x.JPEG", tarfile.SYMTYPE, "/etc/passwd")}),
        r"member 'n00000001/x.JPEG', which is a link or device",
    ),
    "an unknown class": (
        lambda data: pack({"n00000008.tar": pack({"x.JPEG": PHOTO})}),
        r"has the class folder 'n00000008', which is no class of imagenet-tiny\n  Did you mean 'n0000000\d'",
    ),
    "photos without class": (lambda data: pack({"x.JPEG": PHOTO}), r"holds 1 images without a class, such as x.JPEG"),
    "a photo twice": (
        lambda data: pack({"n00000001.tar": pack({"x.JPEG": PHOTO}), "n00000001/x.JPEG": PHOTO}),
        r"holds n00000001/x.JPEG twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN_TRAIN)
def test_broken_archives_are_one_clear_message(tmp_path, case):
    change, message = BROKEN_TRAIN[case]
    path = write_archives(tmp_path) / "ILSVRC2012_img_train.tar"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=message):
        prepare(config_for(tmp_path), SIZE, tmp_path / "out", splits=["train"])
    assert not (tmp_path / "out").exists()


BROKEN_TRUTH = {
    "too short": ({"valprep.sh": "mv ILSVRC2012_val_00000001.JPEG n00000001/"}, r"holds 6 photos, but .*on 1\n"),
    "one line short": (devkit(VAL_CLASSES[:-1]), r"holds 6 photos, but .*ground_truth.txt says what is on 5\n"),
    "a wrong number": (
        devkit() | {"ILSVRC2012_validation_ground_truth.txt": b"1\n2\n4\n1\n1\n1"},
        r"line 3 of .*ground_truth.txt is '4', but the devkit has classes 1 to 3",
    ),
    "a damaged table": (devkit() | {"meta.mat": b"MATLAB 5.0 MAT-file" * 20}, r"meta.mat beside .* cannot be read"),
    "no list": ({"valprep.sh": "#!/bin/sh"}, r"valprep.sh is no list of classes: 0 of its lines"),
    "another class": (
        {"valprep.sh": "\n".join(("n00000007", *VAL_CLASSES[1:]))},
        r"valprep.sh has the class folder 'n00000007', which is no class",
    ),
    "nothing": ({}, r"img_val.tar holds 6 images without a class, .*\n  Put a list of their classes beside it: ILSVRC"),
    "a damaged devkit": ({"ILSVRC2012_devkit_t12.tar.gz": b"\x1f\x8b\x08 broken"}, r"is no readable archive"),
}


@pytest.mark.parametrize("case", BROKEN_TRUTH)
def test_wrong_lists_of_validation_classes_are_named(tmp_path, case):
    truth, message = BROKEN_TRUTH[case]
    write_archives(tmp_path, truth=truth if "meta.mat" in truth else {})
    for name, data in truth.items():
        (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DatasetError, match=message):
        prepare(config_for(tmp_path), SIZE, tmp_path / "out", splits=["test"])


def test_a_member_that_is_no_image_is_a_bad_image(tmp_path):
    path = "n00000002/n00000002_1.JPEG"
    write_archives(tmp_path, train=TRAIN | {path: b"remember the milk"})
    message = rf"imagenet-tiny/train/{path} \(ILSVRC2012_img_train.tar: {path}\): its 17 bytes are no image"
    with pytest.raises(ImageError, match=message):
        prepare(config_for(tmp_path), SIZE, tmp_path / "out", splits=["trainval"])
    config = config_for(tmp_path, on_bad_image="quarantine")
    kept = prepare(config, SIZE, tmp_path / "kept", splits=["trainval"])["trainval"]
    assert (kept.num_rows, kept.num_quarantined) == (NUM_TRAIN - 1, 1)


@pytest.mark.parametrize("write", [write_archives, write_folders, write_parquet])
def test_incomplete_sources_name_both_counts(tmp_path, write, monkeypatch):
    train = {path: data for path, data in TRAIN.items() if not path.startswith("n00000002")}
    monkeypatch.setattr(imagenet_files, "TRAIN", train)
    write(tmp_path / "source")
    problem = r"imagenet-tiny is not complete for its train images: 12 expected, found 8 in .*; "
    problem += r"1 of 3 classes have not 3 to 5: bee \(1\) 0"
    with pytest.raises(DatasetError, match=rf"{problem}\n  Add what is missing, or .* --data.allow-subset"):
        prepare(config_for(tmp_path / "source"), SIZE, tmp_path / "out", splits=["train"])
    for fields in ({"limit": 3}, {"allow_subset": True}):
        said = []
        config = config_for(tmp_path / "source", **fields)
        data = prepare(config, SIZE, tmp_path / str(fields), splits=["train", "validation"], on_warning=said.append)
        assert data["train"].num_rows == fields.get("limit", 4)
        # Once, although both splits are taken from one source.
        assert sum("12 expected, found 8" in text for text in said) == 1
        assert any("1 classes have test images in" in text and "bee" in text for text in said)


def test_the_published_counts_and_the_order_of_classes():
    imagenet = dataset_spec("imagenet")
    assert {split: images.total for split, images in imagenet.expected.items()} == {"train": 1_281_167, "test": 50_000}
    assert list(imagenet.folder_names) == sorted(imagenet.folder_names) and imagenet.num_classes == 1000
    assert imagenet.expected["test"].fewest * 1000 == 50_000 == imagenet.expected["test"].most * 1000


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """``patchcert prepare crop80-imagenet`` from tmp_path/source: exit code and messages."""
    monkeypatch.setenv("PATCHCERT_WORK", str(tmp_path / "work"))

    def run(*options):
        code = main(["prepare", "crop80-imagenet", "--data.source", str(tmp_path / "source"), *options])
        return code, capsys.readouterr().err

    return run


def write_real_classes(folder):
    """Three classes of the real ImageNet, two training photos and one validation photo of each."""
    classes = dataset_spec("imagenet").folder_names[:3]
    train = {f"{name}/{name}_{number}.JPEG": PHOTO for name in classes for number in range(2)}
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": PHOTO for number in (1, 2, 3)}
    write_archives(folder, train=train, val=val, truth={})
    (folder / "valprep.sh").write_text("\n".join(classes))
    return folder


def test_the_command_line_prepares_a_part_when_told_to(tmp_path, command):
    write_real_classes(tmp_path / "source")
    code, messages = command()
    assert code == 2 and messages.startswith("DatasetError: imagenet is not complete for its train images: 1,281,167")
    assert "found 6 in" in messages and "1000 of 1000 classes have not 732 to 1,300: tench (0) 2, goldfish" in messages
    assert len(messages.splitlines()) == 2 and not (tmp_path / "work").exists()
    code, messages = command("--data.allow-subset", "--data.validation-size", "2")
    assert code == 0 and "50,000 expected, found 3 in" in messages and "Next:" in messages
    assert len(list((tmp_path / "work").glob("data/imagenet-224x224-*/*/dataset.json"))) == 3


def cut_short(source):
    path = source / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def shorten_list(source):
    (source / "valprep.sh").write_text(WORDNET_IDS[0])


def hide_text(source):
    train = {"n01440764/x.JPEG": b"remember the milk", "n01443537/y.JPEG": PHOTO}
    (source / "ILSVRC2012_img_train.tar").write_bytes(pack(imagenet_files.class_archives(train)))


def climb_out(source):
    (source / "ILSVRC2012_img_train.tar").write_bytes(pack({"../n01440764.tar": b""}))


def forget_class(source):
    for name in dataset_spec("imagenet").folder_names[1:]:
        (source / "train" / name).mkdir(parents=True)
        (source / "train" / name / "x.JPEG").write_bytes(PHOTO)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (cut_short, ["--data.allow-subset"], "ILSVRC2012_img_train.tar"),
        (shorten_list, ["--data.allow-subset", "--data.validation-size", "1"], "holds 3 photos, but"),
        (hide_text, ["--data.allow-subset", "--data.validation-size", "1"], "its 17 bytes are no image"),
        (climb_out, ["--data.allow-subset"], "leaves its folder"),
        (forget_class, [], "1,281,167 expected, found 999 in"),
    ],
)
def test_the_command_line_ends_with_one_message(tmp_path, command, spoil, options, message):
    spoil(write_real_classes(tmp_path / "source"))
    code, messages = command(*options)
    assert code == 2 and message in messages and "Traceback" not in messages
    assert not list((tmp_path / "work").rglob("dataset.json")) and not list((tmp_path / "work").rglob("*.parquet"))
