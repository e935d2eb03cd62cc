"""Votes in either of their two forms in; counts per class, and the votes for one class as a plane over views, out."""

from typing import Any

import numpy as np
import numpy.typing as npt

from patchcert.errors import CertificateError


class Ballots:
    """All votes of N images, read through the same calls whichever rule cast them.

    Doubtful votes are counted against the prediction: a doubtful vote *certainly* goes to nobody and *possibly* to any
    class that it might go to.

    Args:
        votes: bool (N, V, K), any number of votes a view; or integers (N, V), the one class that each view votes for.
        num_views: V of the view set, to be matched.
        num_classes: K; needed for integers, optional for booleans.
        doubtful: votes that rounding might change, or None. For boolean votes (N, V, K): each marked vote may be cast
            or not. For integer votes (N, V): each marked view may vote for any class.

    Raises:
        CertificateError: shapes, types or classes do not fit together.
    """

    def __init__(
        self, votes: npt.ArrayLike, num_views: int, num_classes: int | None, doubtful: npt.ArrayLike | None = None
    ) -> None:
        self._votes = np.asarray(votes)
        self.is_top_class = self._votes.ndim == 2
        if self.is_top_class:
            self.num_classes = self._checked_classes(num_classes)
            # Wide enough for every class, so that comparing with a class without votes cannot wrap around.
            wide_enough = np.result_type(self._votes.dtype, np.min_scalar_type(self.num_classes - 1))
            self._votes = self._votes.astype(wide_enough, copy=False)
        elif self._votes.ndim == 3 and self._votes.dtype == np.bool_:
            self.num_classes = self._votes.shape[2]
            if num_classes not in (None, self.num_classes):
                raise CertificateError(
                    f"num_classes is {num_classes}, but the votes have {self.num_classes} classes.\n"
                    "  Leave num_classes out for boolean votes, or give the same number."
                )
        else:
            raise CertificateError(
                f"The votes have the shape {self._votes.shape} and the type {self._votes.dtype}.\n"
                "  Give booleans (images, views, classes), or integer classes (images, views) with num_classes."
            )
        if self.num_classes < 2:
            raise CertificateError(
                f"The votes have {self.num_classes} classes, but must have at least 2.\n"
                "  A single class has no rival; there is nothing to certify."
            )
        self.num_images, self.num_views = self._votes.shape[:2]
        if self.num_views != num_views:
            raise CertificateError(
                f"The votes have {self.num_views} views, but the view set has {num_views}.\n"
                "  Certify with the view set that the votes were made with."
            )
        self._doubtful = None if doubtful is None else np.asarray(doubtful)
        if self._doubtful is not None and (
            self._doubtful.shape != self._votes.shape or self._doubtful.dtype != np.bool_
        ):
            raise CertificateError(
                f"The doubtful votes have the shape {self._doubtful.shape} and the type {self._doubtful.dtype}, but "
                f"the votes have the shape {self._votes.shape}.\n  Give booleans of the same shape."
            )

    def _checked_classes(self, num_classes: int | None) -> int:
        if not np.issubdtype(self._votes.dtype, np.integer):
            raise CertificateError(
                f"Votes of the shape {self._votes.shape} must be integer classes, but have the type "
                f"{self._votes.dtype}.\n  Give integer classes (images, views), or booleans (images, views, classes)."
            )
        if num_classes is None:
            raise CertificateError(
                "Votes given as classes do not say how many classes there are, but num_classes is None.\n"
                "  Give num_classes: a class without any vote can win too."
            )
        if self._votes.size and not (0 <= self._votes.min() and self._votes.max() < num_classes):
            raise CertificateError(
                f"The votes go to classes {self._votes.min()} to {self._votes.max()}, but num_classes is "
                f"{num_classes}.\n  Give classes from 0 to {num_classes - 1}."
            )
        return num_classes

    def counts(
        self, images_B: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the votes per class of the given images: as cast, certain, possible; int64, each of shape (B, K)."""
        votes = self._votes[images_B]
        cast_BK = self._count(votes)
        if self._doubtful is None:
            return cast_BK, cast_BK, cast_BK
        doubtful = self._doubtful[images_B]
        if not self.is_top_class:
            return cast_BK, self._count(votes & ~doubtful), self._count(votes | doubtful)
        certain_BK = self._count(votes, ~doubtful)
        return cast_BK, certain_BK, certain_BK + doubtful.sum(axis=1)[:, None]

    def _count(self, votes: npt.NDArray[Any], kept_BV: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
        if not self.is_top_class:
            return votes.sum(axis=1, dtype=np.int64)
        cells_BV = votes + np.arange(len(votes), dtype=np.int64)[:, None] * self.num_classes
        cells = cells_BV.ravel() if kept_BV is None else cells_BV[kept_BV]
        return np.bincount(cells, minlength=len(votes) * self.num_classes).reshape(-1, self.num_classes)

    def certain_planes(
        self, images_B: npt.NDArray[np.int64], classes_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which views certainly vote for the paired class, boolean, shape (B, V)."""
        planes_BV = self._planes(images_B, classes_B)
        return planes_BV if self._doubtful is None else planes_BV & ~self._doubt(images_B, classes_B)

    def possible_planes(
        self, images_B: npt.NDArray[np.int64], classes_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which views possibly vote for the paired class, boolean, shape (B, V)."""
        planes_BV = self._planes(images_B, classes_B)
        return planes_BV if self._doubtful is None else planes_BV | self._doubt(images_B, classes_B)

    def _planes(self, images_B: npt.NDArray[np.int64], classes_B: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if self.is_top_class:
            return self._votes[images_B] == classes_B.astype(self._votes.dtype)[:, None]
        return self._votes[images_B, :, classes_B]

    def _doubt(self, images_B: npt.NDArray[np.int64], classes_B: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        assert self._doubtful is not None
        return self._doubtful[images_B] if self.is_top_class else self._doubtful[images_B, :, classes_B]
