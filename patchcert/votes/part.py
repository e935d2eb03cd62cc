"""The votes of consecutive images, and what rules make of their scores."""

import dataclasses
import functools
from typing import Any

import numpy as np

from patchcert.errors import VoteTableError
from patchcert.votes.scores import rounded_score


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotePart:
    """The votes of consecutive images.

    Attributes:
        image_ids: names of the images, shape (N,).
        labels_N: int64 true classes.
        top_classes_NV: uint16, the class with the highest score of each view.
        num_entries_NV: uint16, how many stored scores each view has; None in a top-class table.
        entry_classes: uint16, their classes, ascending within a view, views in order.
        entry_scores: uint16, their scores in units of 1 / SCORE_SCALE.
        num_classes: K.
        score_floor: scores below it are not stored; None in a top-class table.
        first_row: row number of the first image in its dataset.
    """

    image_ids: np.ndarray
    labels_N: np.ndarray
    top_classes_NV: np.ndarray
    num_entries_NV: np.ndarray | None = None
    entry_classes: np.ndarray | None = None
    entry_scores: np.ndarray | None = None
    num_classes: int
    score_floor: float | None = None
    first_row: int = 0

    def votes(self, rule: str | None = None, *, vote_threshold: float | None = None) -> np.ndarray:
        """Votes by one of the two rules.

        Args:
            rule: "top_class": one vote a view, for its top class.
            vote_threshold: or: every class whose stored score reaches this gets a vote (none, one or several a view).

        Returns:
            For top classes int64 (N, V); for a threshold bool (N, V, K).

        Raises:
            VoteTableError: a threshold below the score floor, or a table without scores.
        """
        if rule == "top_class" and vote_threshold is None:
            return self.top_classes_NV.astype(np.int64)
        if rule is not None or vote_threshold is None:
            raise VoteTableError(f"votes are asked for by rule 'top_class' or by a vote_threshold, not by {rule!r}.")
        if self.score_floor is None or self.entry_scores is None:
            raise VoteTableError(
                f"this vote table stores top classes only; vote_threshold {vote_threshold} needs scores.\n"
                "  Vote again with --prediction.score-floor at or below the threshold."
            )
        if rounded_score(vote_threshold) < rounded_score(self.score_floor):
            raise VoteTableError(
                f"vote_threshold {vote_threshold} lies below the table's score floor {self.score_floor}.\n"
                "  Vote again with a lower --prediction.score-floor, or ask for a higher threshold."
            )
        return self._unpacked(self.entry_scores >= rounded_score(vote_threshold))

    def stored_scores(self) -> np.ndarray:
        """Scores as they are stored, for judging how near they lie to a threshold.

        Returns:
            uint16 (N, V, K), in units of 1 / SCORE_SCALE; 0 for scores below the score floor.

        Raises:
            VoteTableError: a table without scores.
        """
        if self.entry_scores is None:
            raise VoteTableError(
                "this vote table stores top classes only, but its scores are asked for.\n"
                "  Vote again with --prediction.score-floor."
            )
        return self._unpacked(self.entry_scores)

    def rows(self, start: int, stop: int) -> "VotePart":
        """Return the votes of the images from ``start`` to ``stop``, counted within the part."""
        entries: dict[str, Any] = {}
        if self.num_entries_NV is not None and self.entry_classes is not None and self.entry_scores is not None:
            taken = slice(self._first_entries[start], self._first_entries[stop])
            entries = {
                "num_entries_NV": self.num_entries_NV[start:stop],
                "entry_classes": self.entry_classes[taken],
                "entry_scores": self.entry_scores[taken],
            }
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[start:stop],
            labels_N=self.labels_N[start:stop],
            top_classes_NV=self.top_classes_NV[start:stop],
            first_row=self.first_row + start,
            **entries,
        )

    @functools.cached_property
    def _first_entries(self) -> np.ndarray:
        """Where the stored scores of each image begin, and where those of the last one end."""
        assert self.num_entries_NV is not None
        return np.concatenate([[0], np.cumsum(self.num_entries_NV.sum(axis=1, dtype=np.int64))])

    def _unpacked(self, values: np.ndarray) -> np.ndarray:
        """One value of each stored entry at its view and class, shape (N, V, K)."""
        assert self.num_entries_NV is not None and self.entry_classes is not None
        num_images, num_views = self.top_classes_NV.shape
        unpacked = np.zeros((num_images * num_views, self.num_classes), dtype=values.dtype)
        view_of_entry = np.repeat(np.arange(num_images * num_views), self.num_entries_NV.ravel())
        unpacked[view_of_entry, self.entry_classes] = values
        return unpacked.reshape(num_images, num_views, self.num_classes)
