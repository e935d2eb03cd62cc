"""Finds what lies in folders and checks its bytes against the digests that were written with it.

Each kind of folder is known by one file in it. Digests find damage; whoever forges a folder can write them anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from patchcert.data.prepared import DATASET_FILE, PreparedDataset
from patchcert.data.storage import Folder
from patchcert.errors import DatasetError
from patchcert.votes import VoteTable
from patchcert.votes.table import SUCCESS

# A work folder holds data/<dataset>/<split>.
_MOST_LEVELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """A kind of folder that can be checked.

    Attributes:
        name: for people.
        marker: the file by which it is known.
        check: reads everything in a folder and returns it, opened, and in words what was checked; raises PatchcertError
            for damage.
    """

    name: str
    marker: str
    check: Callable[[Folder], tuple[Any, str]]


def _prepared_split(folder: Folder) -> tuple[Any, str]:
    dataset = PreparedDataset.open(folder)
    dataset.verify()
    return dataset, f"{dataset.num_rows:,} images, digest {dataset.digest[:12]}"


def _vote_table(folder: Folder) -> tuple[Any, str]:
    table = VoteTable.open(folder)
    for index in range(table.num_parts):
        table.read_part(index)
    return table, f"{table.num_images:,} images in {table.num_parts} parts, model {table.identity['model'][:12]}"


def _checkpoint(folder: Folder) -> tuple[Any, str]:
    from patchcert.models.checkpoint import verify_checkpoint

    digest = verify_checkpoint(folder)
    return digest, f"weights and record, digest {digest[:12]}"


def _study(folder: Folder) -> tuple[Any, str]:
    from patchcert.studies.results import StudyResult

    study = StudyResult.open(folder)
    return (
        study,
        f"{len(study.files)} files; {len(study.answers)} answers follow from {study.subject.num_images:,} images",
    )


def _variance(folder: Folder) -> tuple[Any, str]:
    from patchcert.studies.variance_results import VarianceResult

    study = VarianceResult.open(folder)
    return study, f"{len(study.files)} files; {len(study.summary)} rows follow from {len(study.repeats):,} repeats"


SPLIT = Kind(name="prepared split", marker=DATASET_FILE, check=_prepared_split)
TABLE = Kind(name="vote table", marker=SUCCESS, check=_vote_table)
STUDY = Kind(name="study", marker="summary.json", check=_study)
VARIANCE = Kind(name="variance study", marker="variance.json", check=_variance)
CHECKPOINT = Kind(name="checkpoint", marker="config.json", check=_checkpoint)
KINDS = (SPLIT, TABLE, STUDY, VARIANCE, CHECKPOINT)


def things_in(locations: Iterable[str], kinds: Sequence[Kind] = KINDS) -> list[tuple[Kind, Folder]]:
    """Everything of a known kind in some folders, at most three levels down, each once.

    Args:
        locations: paths or URIs: of one thing, of a folder of several, or of a work folder.
        kinds: what is looked for.

    Raises:
        DatasetError: a folder is missing or unreadable, or holds nothing of these kinds.
    """
    found: dict[str, tuple[Kind, Folder]] = {}
    for location in locations:
        root = Folder(location)
        try:
            here = [thing for thing in _things(root, _MOST_LEVELS) if thing[0] in kinds]
        except OSError as error:
            raise DatasetError(f"{root} cannot be read: {error}\n  Check its permissions.") from error
        if not here:
            known = ", ".join(f"{kind.name} ({kind.marker})" for kind in kinds)
            nothing = "nothing that can be verified" if len(kinds) > 1 else f"no {kinds[0].name}"
            there = f"holds {nothing}" if root.exists() else "is missing"
            raise DatasetError(f"{root} {there}\n  Give the folder of a {known}, or one that holds some.")
        found |= {str(folder): (kind, folder) for kind, folder in here}
    return list(found.values())


def _things(folder: Folder, levels: int) -> Iterator[tuple[Kind, Folder]]:
    for kind in KINDS:
        if folder.exists(kind.marker):
            yield kind, folder
            return
    for name in folder.folders() if levels else ():
        yield from _things(folder.folder(name), levels - 1)
