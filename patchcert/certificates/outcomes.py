"""Vote counts in, predictions and verdicts out: what every certificate returns, and the one rule for ties."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from patchcert.errors import CertificateError

Guarantee = Literal["deterministic", "probabilistic", "heuristic"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The verdict of one certificate on N images.

    Raises:
        CertificateError: an array has another length than the predictions, or the guarantee is unknown.
    """

    predictions_N: npt.NDArray[np.int64]
    """Class that the defense predicts for each image."""

    certified_N: npt.NDArray[np.bool_]
    """Whether the prediction, right or wrong, cannot change under the threat model."""

    guarantee: Guarantee
    """What ``certified`` rests on: a theorem, a theorem up to a stated probability, or a formula without proof."""

    confidence_N: npt.NDArray[np.float64] | None = None
    """Confidence in each verdict, in [0, 1]; None for deterministic certificates."""

    margin_N: npt.NDArray[np.int64] | None = None
    """Votes to spare at the worst placement, against the strongest rival there: certified iff >= 0. A margin of 0 falls
    with the next vote that the attacker gains; -1 lacks a single one. None where the verdict is no count of votes."""

    def __post_init__(self) -> None:
        num_images = len(self.predictions_N)
        for name in ("certified_N", "confidence_N", "margin_N"):
            values = getattr(self, name)
            if values is not None and values.shape != (num_images,):
                raise CertificateError(
                    f"{name} has the shape {values.shape}, but there are {num_images} predictions.\n"
                    f"  Give one value per image."
                )
        if self.guarantee not in get_args(Guarantee):
            raise CertificateError(
                f"The guarantee is {self.guarantee!r}, but only {', '.join(get_args(Guarantee))} exist.\n"
                "  Choose the one that the certificate's proof supports."
            )

    def clean_accuracy(self, labels_N: npt.ArrayLike) -> float:
        """Return the share of all images whose prediction is the label, in [0, 1]."""
        return float(self._correct(labels_N).mean())

    def certified_accuracy(self, labels_N: npt.ArrayLike) -> float:
        """Return the share of all images whose prediction is the label and certified, in [0, 1]."""
        return float((self._correct(labels_N) & self.certified_N).mean())

    def _correct(self, labels_N: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        labels = np.asarray(labels_N)
        if labels.shape != self.predictions_N.shape or not labels.size:
            raise CertificateError(
                f"The labels have the shape {labels.shape}, but there are {len(self.predictions_N)} predictions.\n"
                "  Give one label per image, and at least one image."
            )
        return labels == self.predictions_N


def predict(counts_NK: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the class with the most votes; a tie goes to the lower class, here and in every certificate.

    Args:
        counts_NK: votes per image and class, integers >= 0, shape (num_images, num_classes >= 2).

    Returns:
        int64, shape (num_images,).

    Raises:
        CertificateError: the counts are no such array.
    """
    return checked_counts(counts_NK).argmax(axis=1).astype(np.int64)


def checked_counts(counts_NK: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return vote counts as int64.

    Raises:
        CertificateError: not two-dimensional, fewer than two classes, no integers, or a negative count.
    """
    counts = np.asarray(counts_NK)
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise CertificateError(
            f"The vote counts have the shape {counts.shape}, but must be (images, classes) with at least 2 classes.\n"
            "  Sum the votes over the views of each image."
        )
    if not np.issubdtype(counts.dtype, np.integer):
        raise CertificateError(
            f"The vote counts have the type {counts.dtype}, but must be integers.\n"
            "  Count votes; scores and shares cannot be certified by counting."
        )
    if counts.size and counts.min() < 0:
        raise CertificateError(f"A vote count is {counts.min()}, but must be at least 0.\n  Count votes per class.")
    return counts.astype(np.int64)


def checked_share(value: float, what: str) -> float:
    """Return a confidence or probability as a float.

    Raises:
        CertificateError: it does not lie strictly between 0 and 1.
    """
    if not 0 < value < 1:
        raise CertificateError(f"{what} is {value}, but must lie between 0 and 1.\n  Give a fraction such as 0.95.")
    return float(value)
