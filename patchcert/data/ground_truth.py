"""The lists that say what is on the photos of a flat validation archive in; the class of each photo by its name out."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from patchcert.data.storage import Folder
from patchcert.errors import DatasetError

_DEVKIT = "ILSVRC2012_devkit_t12"
_NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
_CLASSES = "meta.mat"
# Where each kind of list is usually kept, the original first.
_DEVKIT_FOLDERS = ("", f"{_DEVKIT}/data/", "data/")
_LISTS = (
    "imagenet_2012_validation_synset_labels.txt",
    "valprep.sh",
    "LOC_val_solution.csv",
    "val.txt",
)
GROUND_TRUTH_FILES = (f"{_DEVKIT}.tar.gz", f"{_DEVKIT}/", *_LISTS)
_MOST_BYTES = 64 * 2**20
_IMAGE = re.compile(r"[\w.-]*_(\d{8})(?:\.\w+)?")
_WORDNET_ID = re.compile(r"\bn\d{8}\b")


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Which class folder each photo belongs to.

    Attributes:
        place: the file that says it.
        digest: sha256 of that file, hex.
        folders: class folders (WordNet ids): of the photo of that name, or in the order of the photos' numbers.
    """

    place: str
    digest: str
    folders: dict[str, str] | list[str]

    def of(self, names: Sequence[str], archive: str) -> list[str]:
        """The class folder of each photo.

        Args:
            names: file names such as ILSVRC2012_val_00000001.JPEG.
            archive: what holds them, for messages.

        Raises:
            DatasetError: another number of photos than of classes, or a name that is not listed.
        """
        if len(names) != len(self.folders):
            raise DatasetError(
                f"{archive} holds {len(names):,} photos, but {self.place} says what is on {len(self.folders):,}\n"
                "  Get both again from where they are published: one of them is incomplete."
            )
        found = []
        for name in names:
            if isinstance(self.folders, dict):
                folder = self.folders.get(name.partition(".")[0])
            else:
                match = _IMAGE.fullmatch(name)
                number = int(match[1]) if match else 0
                folder = self.folders[number - 1] if 1 <= number <= len(self.folders) else None
            if folder is None:
                raise DatasetError(
                    f"{archive} holds {name!r}, but {self.place} does not say what is on it\n"
                    "  Its photos are named ILSVRC2012_val_00000001.JPEG and so on; get the archive again."
                )
            found.append(folder)
        return found


def find_ground_truth(folder: Folder) -> GroundTruth | None:
    """Read the first list that is there: the devkit (folder or archive), else a derived list, else None.

    A derived list names a WordNet id on each line, alone (in the order of the photos' numbers) or beside a photo.

    Raises:
        DatasetError: it cannot be read.
    """
    files = folder.files()
    for prefix in _DEVKIT_FOLDERS:
        inner = folder.folder(prefix.rstrip("/")) if prefix else folder
        if {_NUMBERS, _CLASSES} <= inner.files().keys():
            return _from_devkit(inner.read(_NUMBERS), inner.read(_CLASSES), f"{inner}/{_NUMBERS}")
    for name in (f"{_DEVKIT}.tar.gz", f"{_DEVKIT}.tar"):
        if name in files:
            return _from_devkit_archive(folder.read(name), f"{folder}/{name}")
    for name in _LISTS:
        if name in files:
            return _from_list(folder.read(name), f"{folder}/{name}")
    return None


def _from_devkit_archive(data: bytes, place: str) -> GroundTruth:
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                stream = archive.extractfile(member) if name in (_NUMBERS, _CLASSES) and member.isreg() else None
                if stream is not None and member.size <= _MOST_BYTES:
                    parts[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{place} is no readable archive: {error}\n  Get it again.") from error
    missing = [name for name in (_NUMBERS, _CLASSES) if name not in parts]
    if missing:
        raise DatasetError(f"{place} lacks {' and '.join(missing)}\n  It has to be the devkit for tasks 1 and 2.")
    return _from_devkit(parts[_NUMBERS], parts[_CLASSES], place)


def _from_devkit(numbers: bytes, classes: bytes, place: str) -> GroundTruth:
    """The devkit numbers the classes in an order of its own, which only its MATLAB file explains."""
    from scipy.io import loadmat  # imported here: nothing else in this layer needs it

    try:
        table = loadmat(io.BytesIO(classes), squeeze_me=True)["synsets"]
        leaves = table[table["num_children"] == 0]
        folders = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # loadmat raises many types for damaged files
        raise DatasetError(f"{_CLASSES} beside {place} cannot be read: {error}\n  Get the devkit again.") from error
    found = []
    for line, text in enumerate(numbers.decode("ascii", "replace").split(), start=1):
        if not text.isdigit() or int(text) not in folders:
            raise DatasetError(
                f"line {line} of {place} is {text!r}, but the devkit has classes 1 to {len(folders)}\n"
                "  Get the devkit again."
            )
        found.append(folders[int(text)])
    return GroundTruth(place=place, digest=hashlib.sha256(numbers + classes).hexdigest(), folders=found)


def _from_list(data: bytes, place: str) -> GroundTruth:
    digest = hashlib.sha256(data).hexdigest()
    alone: list[str] = []
    by_name: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        ids = _WORDNET_ID.findall(line)
        image = re.search(r"\b[\w-]+_\d{8}\b", line)
        if ids and image:
            by_name[image[0]] = ids[0]
        elif ids and line.strip() == ids[0]:
            alone.append(ids[0])
    if bool(alone) == bool(by_name):
        raise DatasetError(
            f"{place} is no list of classes: {len(alone)} of its lines are a WordNet id alone, {len(by_name)} name a "
            "photo and one\n  Each line has to be a WordNet id such as n01440764, or a photo and its id."
        )
    return GroundTruth(place=place, digest=digest, folders=alone or by_name)
