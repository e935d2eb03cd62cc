"""Per-image answers in; which classes suffer, which images hang by a vote, and how two defenses differ out."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from patchcert.certificates import compare_paired, wilson_interval
from patchcert.studies.headline import DEFENSE_COLUMNS, strongest_theorem
from patchcert.studies.wording import certificate_words, rule_words


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageOutcomes:
    """What one theorem says about every image of a study.

    Attributes:
        defense: name of the defense.
        dataset: name of the dataset.
        split_digest: digest of its images.
        patch: label of the patch.
        words: certificate and rule, for readers.
        image_ids: names of the images, shape (N,).
        labels_N: true classes.
        predictions_N: predictions of the defense.
        margin_N: votes to spare at the worst placement; certified iff >= 0.
        largest_square_N: side of the largest square that cannot change the prediction, in pixels; or None.
        worst_placement_N: place of the patch with the least margin, row-major; or None.
    """

    defense: str
    dataset: str
    split_digest: str
    patch: str
    words: str
    image_ids: npt.NDArray[np.object_]
    labels_N: npt.NDArray[np.int64]
    predictions_N: npt.NDArray[np.int64]
    margin_N: npt.NDArray[np.int64]
    largest_square_N: npt.NDArray[np.int64] | None = None
    worst_placement_N: npt.NDArray[np.int64] | None = None

    @property
    def correct_N(self) -> npt.NDArray[np.bool_]:
        """Whether the prediction is the label."""
        return self.predictions_N == self.labels_N

    @property
    def certified_N(self) -> npt.NDArray[np.bool_]:
        """Whether the prediction is the label and certified."""
        return self.correct_N & (self.margin_N >= 0)


def image_outcomes(answers: pd.DataFrame, images: pa.Table, patch: str) -> ImageOutcomes | None:
    """The sharpest theorem of one study at a patch, image by image.

    Args:
        answers: rows of the study.
        images: its per-image answers.
        patch: label of the patch.

    Returns:
        None where the study asked for no theorem at this patch.
    """
    rows = strongest_theorem(answers, patch)
    if rows.empty:
        return None
    row = rows.iloc[0]
    ballot = "top_class/all" if row["vote_rule"] == "top_class" else f"threshold={row['vote_threshold']:g}/all"
    tolerance = f"/tolerance={row['score_tolerance']:g}" if row["score_tolerance"] else ""
    key = f"{row['certificate']}/{patch}/{ballot}{tolerance}"

    def column(name: str) -> npt.NDArray[np.int64]:
        return np.asarray(images[name], dtype=np.int64)

    def optional(name: str) -> npt.NDArray[np.int64] | None:
        return column(name) if name in images.column_names else None

    return ImageOutcomes(
        **{name: row[name] for name in DEFENSE_COLUMNS},
        patch=patch,
        words=f"{certificate_words(row)}, {rule_words(row)}",
        image_ids=np.asarray(images["image_id"], dtype=object),
        labels_N=column("label"),
        predictions_N=column(f"prediction/{ballot}"),
        margin_N=column(f"margin/{key}"),
        largest_square_N=optional(f"largest_square/{ballot}"),
        worst_placement_N=optional(f"worst_placement/{key}"),
    )


def accuracy_by_class(outcomes: ImageOutcomes) -> pd.DataFrame:
    """Clean and certified accuracy of every class that has images.

    Returns:
        One row a class: ``label``, ``num_images``, ``clean_accuracy``, ``certified_accuracy`` and their 95 % Wilson
        intervals ``clean_low``, ``clean_high``, ``certified_low``, ``certified_high``; fractions; worst
        certified first.
    """
    rows = []
    for label in np.unique(outcomes.labels_N):
        of_class_N = outcomes.labels_N == label
        num_images = int(of_class_N.sum())
        row: dict[str, Any] = {"label": int(label), "num_images": num_images}
        for name, success_N in (("clean", outcomes.correct_N), ("certified", outcomes.certified_N)):
            successes = int((success_N & of_class_N).sum())
            row[f"{name}_accuracy"] = successes / num_images
            row[f"{name}_low"], row[f"{name}_high"] = wilson_interval(successes, num_images)
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["certified_accuracy", "label"], kind="stable", ignore_index=True)


def images_at_the_edge(outcomes: ImageOutcomes, num_images: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images whose certificate hangs by the fewest votes, and those that lack the fewest.

    Args:
        outcomes: of one defense.
        num_images: at most so many of either.

    Returns:
        (closest to losing, closest to gaining): rows ``image_id``, ``label``, ``votes_to_spare``. All are predicted
        right. The first have 0 votes to spare or more and fall when the attacker gains one more than that; the second
        have -1 or fewer. Equal ones come in dataset order.
    """
    images = pd.DataFrame(
        {"image_id": outcomes.image_ids, "label": outcomes.labels_N, "votes_to_spare": outcomes.margin_N}
    )[outcomes.correct_N]
    holds = images["votes_to_spare"] >= 0
    losing = images[holds].sort_values("votes_to_spare", kind="stable")
    gaining = images[~holds].sort_values("votes_to_spare", kind="stable", ascending=False)
    return tuple(frame.head(num_images).reset_index(drop=True) for frame in (losing, gaining))


def compare_defenses(outcomes: Sequence[ImageOutcomes]) -> pd.DataFrame:
    """Every pair of defenses on the images that both saw.

    Pairs measured on different images are left out: a difference between them would mix defenses and images.

    Args:
        outcomes: of several defenses, at one patch.

    Returns:
        One row a pair: ``first``, ``second``, ``num_images``, ``both``, ``only_first``, ``only_second``, ``neither``
        (images certified and right), ``agreement`` (share on which both do or both do not), ``difference`` of certified
        accuracies with its 95 % bootstrap interval ``low``, ``high``, and ``p_value`` of the exact McNemar test.

    Source: ``compare_paired``.
    Guarantee: probabilistic over the draw of the images.
    """
    rows = []
    for first, second in itertools.combinations(outcomes, 2):
        if (first.dataset, first.split_digest) != (second.dataset, second.split_digest):
            continue
        if not np.array_equal(first.image_ids, second.image_ids):
            continue
        certified_N, others_N = first.certified_N, second.certified_N
        # The bootstrap draws from a generator of its own: a pair has the same interval in every report.
        paired = compare_paired(certified_N, others_N, np.random.default_rng(0))
        both = int((certified_N & others_N).sum())
        rows.append(
            {
                "first": first.defense,
                "second": second.defense,
                "num_images": paired.num_images,
                "both": both,
                "only_first": paired.only_first,
                "only_second": paired.only_second,
                "neither": paired.num_images - both - paired.only_first - paired.only_second,
                "agreement": 1 - (paired.only_first + paired.only_second) / paired.num_images,
                "difference": paired.difference,
                "low": paired.low,
                "high": paired.high,
                "p_value": paired.p_value,
            }
        )
    return pd.DataFrame(rows)
