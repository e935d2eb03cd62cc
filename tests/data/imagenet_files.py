"""Makes ImageNet in small: the same photos as folders, as the published archives and as hub Parquet."""

import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import scipy.io
from image_files import encode, hub_table, random_image

from patchcert.data import DatasetSpec
from patchcert.data.registry import ExpectedImages

WORDNET_IDS = ("n00000001", "n00000002", "n00000003")
# The devkit counts classes in an order of its own, and inner nodes of WordNet after them.
DEVKIT_ORDER = ("n00000003", "n00000001", "n00000002")
NUM_TRAIN, NUM_TEST = 12, 6
SPEC = DatasetSpec(
    name="imagenet-tiny",
    description="for tests",
    class_names=("ant", "bee", "cow"),
    folder_names=WORDNET_IDS,
    default_resize="crop",
    source_splits={"train": ("train",), "test": ("val", "validation")},
    source_archives={"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"},
    expected={
        "train": ExpectedImages(total=NUM_TRAIN, fewest=3, most=5),
        "test": ExpectedImages(total=NUM_TEST, fewest=2, most=2),
    },
    validation_size=4,
)
TRAIN = {
    f"{wordnet_id}/{wordnet_id}_{number}.JPEG": encode(random_image(20, 26, seed=10 * label + number), "JPEG")
    for label, wordnet_id in enumerate(WORDNET_IDS)
    for number in range(3 + label)
}
VAL_CLASSES = ("n00000002", "n00000003", "n00000001", "n00000001", "n00000002", "n00000003")
VAL = {
    f"ILSVRC2012_val_{number:08d}.JPEG": encode(random_image(20, 26, seed=100 + number), "JPEG")
    for number in range(1, NUM_TEST + 1)
}


def pack(files):
    """A tar archive of files, or of tarfile.TarInfo objects without contents, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                archive.addfile(info)
    return buffer.getvalue()


def class_archives(train=None):
    """One archive a class; neither classes nor photos are in the order of their names."""
    train = TRAIN if train is None else train
    classes = sorted({path.partition("/")[0] for path in train}, reverse=True)
    return {
        f"{name}.tar": pack(
            {path.partition("/")[2]: train[path] for path in sorted(train, reverse=True) if path.startswith(name)}
        )
        for name in classes
    }


def devkit(classes=VAL_CLASSES):
    """The two files of the devkit that matter."""
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(number, name, "words", 0) for number, name in enumerate(DEVKIT_ORDER, 1)] + [(4, "n00000009", "node", 3)]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": np.array(rows, kinds).reshape(-1, 1)})
    numbers = "".join(f"{DEVKIT_ORDER.index(name) + 1}\n" for name in classes)
    return {"meta.mat": buffer.getvalue(), "ILSVRC2012_validation_ground_truth.txt": numbers.encode()}


def write_archives(folder, *, train=None, val=None, truth=None):
    """The archives as published, and what says what is on the validation photos: a list, or the devkit folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(pack(class_archives(train)))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(pack(VAL if val is None else val))
    inner = folder / "ILSVRC2012_devkit_t12" / "data"
    for name, data in (devkit() if truth is None else truth).items():
        inner.mkdir(parents=True, exist_ok=True)
        (inner / name).write_bytes(data)
    return folder


def write_folders(folder):
    """Everything unpacked, validation photos sorted into class folders."""
    files = {f"train/{path}": data for path, data in TRAIN.items()}
    files |= {f"val/{c}/{name}": data for c, (name, data) in zip(VAL_CLASSES, VAL.items(), strict=True)}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def write_parquet(folder):
    """Hub files, photos in the order of the folders."""
    folder.mkdir(parents=True, exist_ok=True)
    val = {f"{c}/{name}": data for c, (name, data) in zip(VAL_CLASSES, VAL.items(), strict=True)}
    for split, photos in (("train", TRAIN), ("validation", val)):
        paths = sorted(photos)
        images = [photos[path] for path in paths]
        labels = [WORDNET_IDS.index(path.partition("/")[0]) for path in paths]
        for index, rows in enumerate(np.array_split(np.arange(len(paths)), 3)):
            table = hub_table([images[row] for row in rows], [labels[row] for row in rows])
            pq.write_table(table, folder / f"{split}-{index:05d}-of-00003.parquet")
    return folder
