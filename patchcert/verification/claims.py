"""Vote tables and studies as claims: which images, labels and votes they say they were made from."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from patchcert.data.storage import Folder
from patchcert.errors import ContradictionError, PatchcertError
from patchcert.geometry import view_set_from_identity
from patchcert.prediction.config import PRECISIONS
from patchcert.studies.results import PER_IMAGE, StudyResult
from patchcert.studies.subject import Subject
from patchcert.studies.variance_results import VarianceResult
from patchcert.votes import VotePart, VoteTable
from patchcert.votes.table import Identity, identity_differences


class Claim(abc.ABC):
    """Votes or answers, with everything that they say they were made from.

    Attributes:
        folder: where they lie.
        identity: of the vote table.
        views: its view set.
        score_floor: lowest score that it stores; None: top classes only.
        rows_N: rows in the data set of the images that have votes, int64, ascending.
    """

    folder: Folder
    identity: Identity
    views: Any
    score_floor: float | None
    rows_N: np.ndarray

    def _read_identity(self, identity: Any, unvoted_rows: Any) -> None:
        """Sets the attributes from an identity; a study may claim any.

        Raises:
            ContradictionError: it is the identity of no vote table.
        """
        try:
            self.identity = identity
            self.views = view_set_from_identity(identity["views"])
            self.score_floor = float(identity["votes"]["score_floor"]) or None
            is_voted_N = np.ones(int(identity["dataset"]["num_images"]), dtype=bool)
            for start, stop in unvoted_rows:
                is_voted_N[start:stop] = False
            self.rows_N = np.flatnonzero(is_voted_N)
            if not isinstance(identity["model"], str) or identity["votes"]["precision"] not in PRECISIONS:
                raise ValueError("no model, or an unknown precision")
        except (PatchcertError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise ContradictionError(
                f"{self.folder}: the votes that it says it was made from are those of no vote table "
                f"({type(error).__name__}: {error})."
            ) from None

    @abc.abstractmethod
    def blocks(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield names and labels of the images in the order of ``rows_N``: (file, image_ids, labels_N)."""


class TableClaim(Claim):
    """A vote table."""

    def __init__(self, table: VoteTable) -> None:
        """Takes an open table."""
        self.table, self.folder = table, Folder(table.location)
        self._read_identity(table.identity, table.unvoted_rows)

    def blocks(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield names and labels of the images of each part."""
        for part in self.parts():
            yield f"part at row {part.first_row}", part.image_ids, part.labels_N

    def parts(self) -> Iterator[VotePart]:
        """Yield the votes of all images, part by part."""
        return (self.table.read_part(index) for index in range(self.table.num_parts))

    def votes_of(self, rows: np.ndarray) -> Iterator[VotePart]:
        """Yield the votes of single images.

        Args:
            rows: rows of the images in the data set, ascending.
        """
        for index, (start, stop) in enumerate(self.table.part_rows):
            wanted = rows[(rows >= start) & (rows < stop)] - start
            if len(wanted):
                part = self.table.read_part(index)
                yield from (part.rows(row, row + 1) for row in wanted.tolist())


class StudyClaim(Claim):
    """A study, or a variance study."""

    def __init__(self, study: StudyResult | VarianceResult) -> None:
        """Takes an open study.

        Raises:
            ContradictionError: it is about something else than the votes that it says it was made from.
        """
        self.study, self.folder = study, study.folder
        self._read_identity(study.identity.get("votes"), study.identity.get("unvoted_rows", ()))
        self.stored = study.per_image()
        num_unvoted = int(self.identity["dataset"]["num_images"]) - len(self.rows_N)
        try:
            expected = Subject.of_identity(self.identity, study.subject.defense, num_unvoted)
        except (PatchcertError, KeyError, TypeError) as error:
            raise ContradictionError(
                f"{self.folder}: the votes that it says it was made from name no subject ({error})."
            ) from None
        found = dataclasses.asdict(study.subject)
        for name, said, votes in identity_differences(found, dataclasses.asdict(expected))[:1]:
            raise ContradictionError(
                f"{self.folder}: {name} of the study is {said!r}, but {votes!r} of the votes that it was made from."
            )

    def blocks(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield names and labels of all images."""
        names = np.asarray(self.stored["image_id"].to_pylist(), dtype=str)
        yield PER_IMAGE, names, np.asarray(self.stored["label"])
