"""Compares what votes and studies say of their images with the prepared images themselves: every name and label."""

from __future__ import annotations

import dataclasses

import numpy as np

from patchcert.data.prepared import PreparedDataset
from patchcert.errors import ContradictionError
from patchcert.verification.claims import Claim
from patchcert.verification.kinds import SPLIT, things_in
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import identity_differences


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A prepared split whose every pixel, name and label was compared with its digest.

    Attributes:
        dataset: the images.
        image_ids: names of all images, shape (N,).
        labels_N: int64 labels of all images.
    """

    dataset: PreparedDataset
    image_ids: np.ndarray
    labels_N: np.ndarray


class Images:
    """Prepared splits in a folder; each is read in full when it is asked for, and once."""

    def __init__(self, location: str) -> None:
        """Finds the splits.

        Raises:
            DatasetError: there are none, or a record is damaged.
        """
        self._location = location
        self._datasets = [PreparedDataset.open(folder) for _, folder in things_in([location], (SPLIT,))]
        self._whole: dict[str, Split] = {}

    def compared(self, claim: Claim) -> Split:
        """Return the images that a claim is about, after a comparison with all that it says of them.

        Raises:
            ContradictionError: it names other images, another number of them, another name or another label.
            DatasetError: the images are damaged.
        """
        said = claim.identity["dataset"]
        dataset = next((found for found in self._datasets if found.digest == said.get("digest")), None)
        if dataset is None:
            there = ", ".join(f"{found.name}/{found.split} {found.digest[:12]}" for found in self._datasets)
            raise ContradictionError(
                f"{claim.folder}: its images are {said.get('name')}/{said.get('split')} with digest "
                f"{str(said.get('digest'))[:12]}, but {self._location} holds {there}.\n"
                "  Name the images that were voted on:  --data FOLDER"
            )
        votes = claim.identity["votes"]
        expected = vote_identity(
            claim.views,
            dataset,
            model_digest=claim.identity["model"],
            score_floor=votes["score_floor"],
            precision=votes["precision"],
        )
        for name, found, right in identity_differences(claim.identity, expected)[:1]:
            raise ContradictionError(f"{claim.folder}: {name} is {found!r}, but {right!r} in {dataset.folder}.")
        split = self._read(dataset)
        _compare_rows(claim, split)
        return split

    def _read(self, dataset: PreparedDataset) -> Split:
        if dataset.digest not in self._whole:
            image_ids, labels_N = dataset.verify()
            self._whole[dataset.digest] = Split(dataset=dataset, image_ids=image_ids, labels_N=labels_N)
        return self._whole[dataset.digest]


def _compare_rows(claim: Claim, split: Split) -> None:
    """Raises ContradictionError for the first image whose name or label is another one in the images."""
    first, where = 0, split.dataset.folder
    for file, image_ids, labels_N in claim.blocks():
        rows = claim.rows_N[first : first + len(labels_N)]
        first += len(labels_N)
        if first > len(claim.rows_N):
            break
        is_other = (image_ids != split.image_ids[rows]) | (labels_N != split.labels_N[rows])
        if is_other.any():
            index = int(is_other.argmax())
            row, name, label = int(rows[index]), str(image_ids[index]), int(labels_N[index])
            right_name, right = str(split.image_ids[row]), int(split.labels_N[row])
            more = f" ({int(is_other.sum()):,} images differ in {file})" if is_other.sum() > 1 else ""
            raise ContradictionError(
                f"{claim.folder}: row {row} is image {name!r}, but {right_name!r} in {where}{more}."
                if name != right_name
                else f"{claim.folder}: image {name!r} has label {label}, but {right} in {where}{more}."
            )
    if first != len(claim.rows_N):
        raise ContradictionError(
            f"{claim.folder}: it holds {first:,} images, but {len(claim.rows_N):,} of the images in {where} have votes."
        )
