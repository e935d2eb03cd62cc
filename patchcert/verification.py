"""Finds what lies in folders and checks its bytes against the digests that were written with it.

Each kind of folder is known by one file in it. Digests find damage; whoever forges a folder can write them anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from patchcert.data.prepared import DATASET_FILE, PreparedDataset
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError, PatchcertError
from patchcert.votes import VoteTable
from patchcert.votes.table import SUCCESS

# A work folder holds data/<dataset>/<split>.
_MOST_LEVELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of folder that can be checked.

    Attributes:
        name: for people.
        marker: the file by which it is known.
        check: reads everything in a folder and returns, in words, what was checked; raises PatchcertError for damage.
    """

    name: str
    marker: str
    check: Callable[[Folder], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """One folder that was checked.

    Attributes:
        kind: what it is.
        folder: where it lies.
        checked: in words what was compared; empty if it is damaged.
        problem: what is wrong with it, or None.
    """

    kind: str
    folder: Folder
    checked: str
    problem: str | None


def _prepared_split(folder: Folder) -> str:
    dataset = PreparedDataset.open(folder)
    dataset.verify()
    return f"{dataset.num_rows:,} images, digest {dataset.digest[:12]}"


def _vote_table(folder: Folder) -> str:
    table = VoteTable.open(folder)
    for index in range(table.num_parts):
        table.read_part(index)
    return f"{table.num_images:,} images in {table.num_parts} parts, model {table.identity['model'][:12]}"


def _checkpoint(folder: Folder) -> str:
    from patchcert.models.checkpoint import verify_checkpoint

    return f"weights and record, digest {verify_checkpoint(folder)[:12]}"


def _study(folder: Folder) -> str:
    from patchcert.studies.results import StudyResult

    study = StudyResult.open(folder)
    return f"{len(study.files)} files; {len(study.answers)} answers follow from {study.subject.num_images:,} images"


def _variance(folder: Folder) -> str:
    from patchcert.studies.variance_results import VarianceResult

    return f"{len(VarianceResult.open(folder).files)} files"


KINDS = (
    Kind(name="prepared split", marker=DATASET_FILE, check=_prepared_split),
    Kind(name="vote table", marker=SUCCESS, check=_vote_table),
    Kind(name="study", marker="summary.json", check=_study),
    Kind(name="variance study", marker="variance.json", check=_variance),
    Kind(name="checkpoint", marker="config.json", check=_checkpoint),
)


def verify(locations: Iterable[str]) -> Iterator[Verified]:
    """Check everything of a known kind in some folders, at most three levels down.

    Args:
        locations: paths or URIs: of one thing, of a folder of several, or of a work folder.

    Yields:
        What was found, one after the other, each as soon as it was checked.

    Raises:
        DatasetError: a folder is missing or unreadable, or holds nothing of a known kind.
    """
    for location in locations:
        root = Folder(location)
        try:
            found = list(_things(root, _MOST_LEVELS))
        except OSError as error:
            raise DatasetError(f"{root} cannot be read: {error}\n  Check its permissions.") from error
        if not found:
            known = ", ".join(f"{kind.name} ({kind.marker})" for kind in KINDS)
            there = "holds nothing that can be verified" if root.exists() else "is missing"
            raise DatasetError(f"{root} {there}\n  Give the folder of a {known}, or one that holds some.")
        for kind, folder in found:
            try:
                yield Verified(kind=kind.name, folder=folder, checked=kind.check(folder), problem=None)
            except PatchcertError as error:
                yield Verified(kind=kind.name, folder=folder, checked="", problem=str(error))


def _things(folder: Folder, levels: int) -> Iterator[tuple[Kind, Folder]]:
    for kind in KINDS:
        if folder.exists(kind.marker):
            yield kind, folder
            return
    for name in folder.folders() if levels else ():
        yield from _things(folder.folder(name), levels - 1)
