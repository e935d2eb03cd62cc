"""Answers the questions of a study image by image, one part of a vote table at a time, and sums up their accuracies."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from patchcert.certificates import (
    certify_counting,
    certify_fresh_draw,
    certify_placement,
    certify_random_crops_reported,
    certify_sampled,
    failing_placements,
    largest_certified_square,
    predict,
    score_margins,
    wilson_interval,
)
from patchcert.errors import StudyError
from patchcert.studies.questions import Question, doubtful_scores
from patchcert.studies.subject import Subject
from patchcert.votes import SCORE_SCALE, VotePart, draw_views, rounded_score

CHUNK_BYTES = 2**26
FARTHEST = 2**12
"""Score margins are searched for up to this many stored units (1/16 of the range of scores)."""
_ONE_UNIT = Fraction(1, SCORE_SCALE)

ANSWER_COLUMNS = (
    "defense",
    "dataset",
    "split",
    "split_digest",
    "num_images",
    "certificate",
    "guarantee",
    "patch",
    "patch_height",
    "patch_width",
    "patch_area",
    "patch_fraction",
    "tensor",
    "affected",
    "num_views",
    "vote_rule",
    "vote_threshold",
    "score_tolerance",
    "draws",
    "num_draws",
    "min_confidence",
    "feasible",
    "note",
    "base_accuracy",
    "clean_accuracy",
    "certified_accuracy",
    "certified_low",
    "certified_high",
    "clean_low",
    "clean_high",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartAnswers:
    """The answers for consecutive images.

    Attributes:
        first_row: row number of the first image in its dataset.
        columns: arrays of equal length, by name: ``image_id``, ``label``, ``base_correct`` (number of views whose top
            class is the label), and for the questions
            ``prediction/<ballot key>`` uint16, ``certified/<key>`` bool (whether the prediction is right or wrong),
            ``margin/<key>`` int32 (deterministic ones: votes to spare), ``confidence/<confidence key>`` float64. By a
            threshold, ``near_threshold/<key>`` bool (whether certified only because no score within one stored unit of
            the threshold is counted for the attacker), and where the question asks for it ``score_margin/<key>``
            float64 (how far all scores may be off with the verdict of the plain rule unchanged, in whole stored units).
            Questions with several repeats have ``correct/<ballot key>`` and ``certified_correct/<key>`` instead of the
            first two: the share of repeats, float32, whose prediction is the label, and is certified besides; their
            confidence is the mean. The question that takes a closer look has ``largest_square/<ballot key>`` int16
            (side in pixels, 0: none), ``failing_placements/<key>`` int32 (at how many places its patch can change the
            prediction) and ``worst_placement/<key>`` int32 (the one with the least margin; places of the patch's box in
            row-major order).
        failures_P: how many of the images that are predicted right the patch of that question can change at each place,
            int64; None when no question takes a closer look.
    """

    first_row: int
    columns: dict[str, np.ndarray]
    failures_P: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns["label"])


def answer_part(
    part: VotePart, views: Any, questions: Sequence[Question], *, chunk_bytes: int = CHUNK_BYTES
) -> PartAnswers:
    """Answers questions for the images of one part.

    Votes and counts are made once for each vote rule, drawn counts once for each draw, whatever is asked of them.

    Args:
        part: votes of consecutive images.
        views: view set that they were cast on.
        questions: as ``questions()`` made them for this view set.
        chunk_bytes: bound on the votes that are held unpacked at a time; one image's worth is always used.

    Returns:
        Answers that do not depend on the borders of parts and chunks.

    Raises:
        StudyError: the part has another number of views than the view set.
        VoteTableError: a threshold below the score floor.
    """
    if part.top_classes_NV.shape[1] != views.num_views:
        raise StudyError(
            f"the votes are those of {part.top_classes_NV.shape[1]} views, the study asks about {views.describe()}.\n"
            "  Use the view set of the vote table."
        )
    looked_at = [question for question in questions if question.takes_closer_look]
    pieces, failures_P = [], None
    for rows in _chunks(part, questions, chunk_bytes):
        columns = _answer(rows, views, questions)
        for question in looked_at:
            more, failures = _closer_look(rows, views, question, columns[f"prediction/{question.ballot_key}"])
            columns |= more
            failures_P = failures if failures_P is None else failures_P + failures
        pieces.append(columns)
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return PartAnswers(first_row=part.first_row, columns=columns, failures_P=failures_P)


def per_image_table(parts: Sequence[PartAnswers]) -> pa.Table:
    """Joins parts, in any order, into one table with a row for each image, in dataset order.

    Raises:
        StudyError: no part, or parts that answer different questions.
    """
    if not parts:
        raise StudyError("a study needs the answers of at least one part of the vote table, not of 0.\n  Answer one.")
    ordered = sorted(parts, key=lambda part: part.first_row)
    for part in ordered:
        if list(part.columns) != list(ordered[0].columns):
            different = sorted(set(part.columns) ^ set(ordered[0].columns)) or ["the order of questions"]
            raise StudyError(
                f"the parts at rows {ordered[0].first_row} and {part.first_row} answer different questions "
                f"({different[0]}).\n  Answer all parts with the same questions."
            )
    return pa.table({name: np.concatenate([part.columns[name] for part in ordered]) for name in ordered[0].columns})


def placement_failures(
    parts: Sequence[PartAnswers], questions: Sequence[Question], image_size: tuple[int, int]
) -> pd.DataFrame | None:
    """Adds up where the patch of the closer look breaks images.

    Args:
        parts: all parts, in any order.
        questions: the questions that were answered.
        image_size: (height, width) in pixels.

    Returns:
        One row for each place of the patch's box: ``row`` and ``column`` of its upper left corner, and ``images``, the
        number of rightly predicted images that it can change there. None when no question takes a closer look.
    """
    patch = next((question.patch for question in questions if question.takes_closer_look), None)
    if patch is None:
        return None
    rows, columns = np.indices(patch.placements(image_size)).reshape(2, -1)
    images = np.sum([part.failures_P for part in parts], axis=0)
    return pd.DataFrame({"row": rows, "column": columns, "images": images})


def summarise(
    per_image: pa.Table | Sequence[PartAnswers], questions: Sequence[Question], subject: Subject
) -> pd.DataFrame:
    """Turns per-image answers into one row for each question.

    Args:
        per_image: table of ``per_image_table``, or the parts themselves.
        questions: the questions that were answered.
        subject: what was attacked; its quarantined images count as wrong.

    Returns:
        Columns ``ANSWER_COLUMNS``. Accuracies in [0, 1] over all evaluated images, with 95 % Wilson intervals.

    Raises:
        StudyError: images are missing, doubled or from another split than the subject names.
    """
    if not isinstance(per_image, pa.Table):
        per_image = per_image_table(per_image)
    _check_images(per_image, subject)
    labels_N = np.asarray(per_image["label"])
    base_accuracy = int(np.asarray(per_image["base_correct"]).sum()) / (subject.evaluated * questions[0].num_views)
    rows = []
    for question in questions:
        clean, certified = _successes(per_image, question, labels_N)
        clean_low, clean_high = (float(bound) for bound in wilson_interval(clean, subject.evaluated))
        certified_low, certified_high = (float(bound) for bound in wilson_interval(certified, subject.evaluated))
        rows.append(
            {
                "defense": subject.defense,
                "dataset": subject.dataset,
                "split": subject.split,
                "split_digest": subject.split_digest,
                "num_images": subject.evaluated,
                "certificate": question.certificate,
                "guarantee": question.kind.guarantee,
                "patch": question.patch.label,
                "patch_height": question.patch.height,
                "patch_width": question.patch.width,
                "patch_area": question.patch.area,
                "patch_fraction": question.patch.area_fraction(subject.image_size),
                "tensor": subject.tensor,
                "affected": question.affected,
                "num_views": question.num_views,
                "vote_rule": question.vote_rule,
                "vote_threshold": np.nan if question.vote_threshold is None else question.vote_threshold,
                "score_tolerance": question.score_tolerance,
                "draws": question.draws,
                "num_draws": question.num_draws,
                "min_confidence": np.nan if question.min_confidence is None else question.min_confidence,
                "feasible": question.feasible,
                "note": "; ".join(
                    text for text in (question.note, _hanging(per_image, question, labels_N), subject.set_apart) if text
                ),
                "base_accuracy": base_accuracy,
                "clean_accuracy": clean / subject.evaluated,
                "certified_accuracy": certified / subject.evaluated,
                "certified_low": certified_low,
                "certified_high": certified_high,
                "clean_low": clean_low,
                "clean_high": clean_high,
            }
        )
    return pd.DataFrame(rows, columns=list(ANSWER_COLUMNS))


def combine(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Puts the rows of several studies under each other and marks what must not be compared.

    Rows measured on other images than the first row get a warning in ``note``.

    Raises:
        StudyError: no frame, or patches that act on native pixels beside patches that act on the network input.
    """
    if not frames:
        raise StudyError("a comparison needs at least one study, not 0.\n  Name a result folder.")
    combined = pd.concat(frames, ignore_index=True)
    tensors = combined.groupby(["dataset"])["tensor"].unique()
    for dataset, names in tensors.items():
        if len(names) > 1:
            raise StudyError(
                f"on {dataset} some patches act on the {names[0]} tensor and some on the {names[1]} tensor: these are "
                "different threat models.\n  Compare studies of the same tensor only."
            )
    images = combined[["dataset", "split", "split_digest", "num_images"]]
    differs = (images != images.iloc[0]).any(axis=1)
    if differs.any():
        first = images.iloc[0]
        warning = (
            f"not comparable: other images than {first['dataset']} {first['split']} "
            f"({first['num_images']} images, {first['split_digest'][:12]})"
        )
        combined["note"] = [
            "; ".join(text for text in (note, warning) if text) if other else note
            for note, other in zip(combined["note"], differs, strict=True)
        ]
    return combined


def _chunks(part: VotePart, questions: Sequence[Question], chunk_bytes: int) -> Iterator[VotePart]:
    """The part in runs of images whose unpacked votes stay within ``chunk_bytes``."""
    num_images = len(part.labels_N)
    step = max(1, chunk_bytes // max(_bytes_per_image(part.num_classes, question) for question in questions))
    if step >= num_images:
        yield part
        return
    for start in range(0, num_images, step):
        yield part.rows(start, min(start + step, num_images))


def _bytes_per_image(num_classes: int, question: Question) -> int:
    if question.samples:
        num_draws = question.num_selection + question.num_draws
        return 8 * (3 * question.repeats * num_classes + 4 * max(num_draws, question.num_views))
    if question.vote_threshold is None:
        return question.num_views * 8
    # Beside the votes: stored scores and doubts, and for margins several arrays of floats.
    return question.num_views * num_classes * (40 if question.keeps_score_margin else 8)


def _answer(part: VotePart, views: Any, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {
        "image_id": np.asarray(part.image_ids, dtype=object),
        "label": part.labels_N,
        "base_correct": (part.top_classes_NV == part.labels_N[:, None]).sum(axis=1, dtype=np.int32),
    }
    by_ballot: dict[str, list[Question]] = {}
    for question in questions:
        by_ballot.setdefault(question.ballot_key, []).append(question)
    for asked in by_ballot.values():
        if asked[0].num_selection:
            columns |= _sampled_views(part, views, asked)
        else:
            columns |= _drawn_views(part, asked) if asked[0].samples else _all_views(part, views, asked)
    return columns


def _all_views(part: VotePart, views: Any, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Answers of questions that share a vote rule and count the votes of all views."""
    threshold = questions[0].vote_threshold
    if threshold is not None:
        return _by_threshold(part, views, questions, threshold)
    votes = part.votes("top_class")
    counts_NK = _count(votes, part.num_classes)
    columns = {f"prediction/{questions[0].ballot_key}": predict(counts_NK).astype(np.uint16)}
    for question in questions:
        if question.certificate == "fresh_draw":
            confidence = f"confidence/{question.confidence_key}"
            if confidence not in columns:
                columns[confidence] = _fresh_draw_confidence(votes, views, question, part.num_classes)
            columns[f"certified/{question.key}"] = columns[confidence] >= question.min_confidence
            continue
        if question.certificate == "counting":
            margin_N = certify_counting(counts_NK, question.affected).margin_N
        else:
            margin_N = certify_placement(votes, views, question.patch, num_classes=part.num_classes).margin_N
        columns |= _verdicts(question, margin_N)
    return columns


def _by_threshold(part: VotePart, views: Any, questions: Sequence[Question], threshold: float) -> dict[str, np.ndarray]:
    """Answers of questions that share a threshold, with what an error of the scores could do to them."""
    scores_NVK = part.stored_scores()
    votes_NVK = part.votes(vote_threshold=threshold)
    counts_NK = votes_NVK.sum(axis=1, dtype=np.int64)
    predictions_N = predict(counts_NK)
    columns = {f"prediction/{questions[0].ballot_key}": predictions_N.astype(np.uint16)}

    def margins(question: Question, doubtful_NVK: np.ndarray | None, rows: Any = slice(None)) -> np.ndarray:
        doubtful = None if doubtful_NVK is None else doubtful_NVK[rows]
        if question.certificate == "placement":
            return np.asarray(certify_placement(votes_NVK[rows], views, question.patch, doubtful=doubtful).margin_N)
        if doubtful is None:
            return np.asarray(certify_counting(counts_NK[rows], question.affected).margin_N)
        certain_NVK, possible_NVK = votes_NVK[rows] & ~doubtful, votes_NVK[rows] | doubtful
        certain_NK, possible_NK = (votes.sum(axis=1, dtype=np.int64) for votes in (certain_NVK, possible_NVK))
        outcome = certify_counting(counts_NK[rows], question.affected, doubtful=(certain_NK, possible_NK))
        return np.asarray(outcome.margin_N)

    near_NVK = _within(scores_NVK, threshold, _ONE_UNIT)
    for tolerance in dict.fromkeys(question.score_tolerance for question in questions):
        doubtful_NVK, more_NVK, both_NVK = None, near_NVK, near_NVK
        if tolerance:
            doubtful_NVK = _within(scores_NVK, threshold, tolerance)
            more_NVK, both_NVK = near_NVK & ~doubtful_NVK, doubtful_NVK | near_NVK
        num_more_N = np.bincount(
            np.flatnonzero(more_NVK) // math.prod(more_NVK.shape[1:]), minlength=len(predictions_N)
        )
        for question in (question for question in questions if question.score_tolerance == tolerance):
            margin_N = margins(question, doubtful_NVK)
            columns |= _verdicts(question, margin_N)
            # A doubtful vote takes at most one vote from a margin: few images need a second look.
            rows = np.flatnonzero((margin_N >= 0) & (num_more_N > margin_N))
            hangs_N = np.zeros(len(margin_N), dtype=bool)
            hangs_N[rows] = margins(question, both_NVK, rows) < 0
            columns[f"near_threshold/{question.key}"] = hangs_N
            if question.keeps_score_margin and part.score_floor is not None:
                columns |= _score_margins(scores_NVK, views, question, threshold, part.score_floor)
    return columns


def _verdicts(question: Question, margin_N: np.ndarray | None) -> dict[str, np.ndarray]:
    margins = np.asarray(margin_N, dtype=np.int32)
    return {f"certified/{question.key}": margins >= 0, f"margin/{question.key}": margins}


def _within(scores_NVK: np.ndarray, threshold: float, tolerance: float | Fraction) -> np.ndarray:
    """Which stored scores lie within a tolerance of the threshold; those below the score floor are not stored."""
    lowest, highest = doubtful_scores(threshold, tolerance)
    return (scores_NVK >= max(lowest, 1)) & (scores_NVK <= highest)


def _score_margins(
    scores_NVK: np.ndarray, views: Any, question: Question, threshold: float, score_floor: float
) -> dict[str, np.ndarray]:
    """The column of score margins, or none if no score below the threshold is stored."""
    # Further down than the score floor nothing is known; a power of two makes the search end on whole units.
    room = math.floor(Fraction(repr(threshold)) * SCORE_SCALE) - rounded_score(score_floor)
    if room < 1:
        return {}
    halvings = min(FARTHEST, room).bit_length() - 1
    units = float(Fraction(repr(threshold)) * SCORE_SCALE)
    if math.ceil(units) < rounded_score(threshold):
        units = math.nextafter(units, math.inf)
    margin_N = score_margins(
        scores_NVK,
        views,
        question.patch,
        vote_threshold=units,
        max_tolerance=2.0**halvings,
        num_halvings=max(halvings, 1),
    )
    return {f"score_margin/{question.key}": np.floor(margin_N) / SCORE_SCALE}


def _closer_look(
    part: VotePart, views: Any, question: Question, predictions_N: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of the question that takes a closer look, and the failures of right predictions at each placement."""
    threshold, doubtful = question.vote_threshold, None
    votes = part.votes("top_class") if threshold is None else part.votes(vote_threshold=threshold)
    if question.score_tolerance and threshold is not None:
        doubtful = _within(part.stored_scores(), threshold, question.score_tolerance)
    settings: dict[str, Any] = {"num_classes": part.num_classes}
    largest_N = largest_certified_square(votes, views, doubtful=doubtful, **settings)
    placements_N, worst_N = np.zeros((2, len(part.labels_N)), dtype=np.int32)
    right_N = predictions_N == part.labels_N
    # The wrong ones first: what is left over are the failures of the right ones.
    for rows_N in (~right_N, right_N):
        of_rows = None if doubtful is None else doubtful[rows_N]
        failures = failing_placements(votes[rows_N], views, question.patch, doubtful=of_rows, **settings)
        placements_N[rows_N], worst_N[rows_N] = failures.placements_N, failures.worst_N
    columns = {
        f"largest_square/{question.ballot_key}": largest_N.astype(np.int16),
        f"failing_placements/{question.key}": placements_N,
        f"worst_placement/{question.key}": worst_N,
    }
    return columns, failures.images_P


def _fresh_draw_confidence(votes_NV: np.ndarray, views: Any, question: Question, num_classes: int) -> np.ndarray:
    outcome = certify_fresh_draw(
        votes_NV,
        views,
        question.patch,
        num_classes=num_classes,
        num_draws=question.num_draws,
        min_confidence=question.min_confidence,
        replacement=bool(question.replacement),
    )
    return np.asarray(outcome.confidence_N)


def _drawn_views(part: VotePart, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Answers of questions that share a draw (or several repeats of it)."""
    draw, num_images = questions[0], len(part.labels_N)
    rows = range(part.first_row, part.first_row + num_images)
    top_classes_NV = part.top_classes_NV.astype(np.int64)
    counts_RNK = np.empty((draw.repeats, num_images, part.num_classes), dtype=np.int64)
    for repeat in range(draw.repeats):
        drawn_ND = draw_views(
            draw.num_views, draw.num_draws, rows, replacement=bool(draw.replacement), seed=draw.seed, repeat=repeat
        )
        counts_RNK[repeat] = _count(np.take_along_axis(top_classes_NV, drawn_ND, axis=1), part.num_classes)
    counts_MK = counts_RNK.reshape(-1, part.num_classes)
    predictions_RN = predict(counts_MK).reshape(draw.repeats, num_images)
    correct_RN = predictions_RN == part.labels_N
    columns: dict[str, np.ndarray] = {}
    if draw.repeats == 1:
        columns[f"prediction/{draw.ballot_key}"] = predictions_RN[0].astype(np.uint16)
    else:
        columns[f"correct/{draw.ballot_key}"] = correct_RN.mean(axis=0, dtype=np.float32)
    for question in questions:
        outcome = certify_random_crops_reported(
            counts_MK,
            num_draws=question.num_draws,
            affected=question.affected,
            num_views=question.num_views,
            min_confidence=question.min_confidence,
            replacement=bool(question.replacement),
            law=question.kind.law,
        )
        certified_RN = outcome.certified_N.reshape(correct_RN.shape)
        if draw.repeats == 1:
            columns[f"certified/{question.key}"] = certified_RN[0]
        else:
            columns[f"certified_correct/{question.key}"] = (certified_RN & correct_RN).mean(axis=0, dtype=np.float32)
        confidence_RN = outcome.confidence_N.reshape(correct_RN.shape)
        columns[f"confidence/{question.confidence_key}"] = confidence_RN.mean(axis=0)
    return columns


def _sampled_views(part: VotePart, views: Any, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Answers of questions that share their samples: those that were voted on, or drawn from the votes of all views."""
    draw = questions[0]
    num_samples = draw.num_selection + draw.num_draws
    classes_NS = part.top_classes_NV[:, :num_samples]
    if views.kind != "sampled":
        rows = range(part.first_row, part.first_row + len(part.labels_N))
        drawn_NS = draw_views(views.num_views, num_samples, rows, replacement=True, seed=draw.seed)
        classes_NS = np.take_along_axis(part.top_classes_NV, drawn_NS, axis=1)
    selection_NK = _count(classes_NS[:, : draw.num_selection], part.num_classes)
    estimation_NK = _count(classes_NS[:, draw.num_selection :], part.num_classes)
    columns = {f"prediction/{draw.ballot_key}": predict(selection_NK).astype(np.uint16)}
    for question in questions:
        outcome = certify_sampled(
            selection_NK,
            estimation_NK,
            num_samples=question.num_draws,
            affected_probability=views.affected_probability(question.patch),
            min_confidence=question.min_confidence,
        )
        columns[f"certified/{question.key}"] = outcome.certified_N
        columns[f"confidence/{question.confidence_key}"] = outcome.confidence_N
    return columns


def _count(classes_NV: np.ndarray, num_classes: int) -> np.ndarray:
    """Votes per image and class, int64, shape (N, K), of one class a vote."""
    num_images = len(classes_NV)
    cells_NV = classes_NV + np.arange(num_images)[:, None] * num_classes
    return np.bincount(cells_NV.ravel(), minlength=num_images * num_classes).reshape(num_images, num_classes)


def _successes(per_image: pa.Table, question: Question, labels_N: np.ndarray) -> tuple[float, float]:
    """How many images are classified right, and how many certified besides; means over repeats."""
    if question.repeats > 1:
        correct = np.asarray(per_image[f"correct/{question.ballot_key}"])
        certified = np.asarray(per_image[f"certified_correct/{question.key}"])
        return float(correct.sum(dtype=np.float64)), float(certified.sum(dtype=np.float64))
    correct_N = np.asarray(per_image[f"prediction/{question.ballot_key}"]) == labels_N
    certified_N = np.asarray(per_image[f"certified/{question.key}"])
    return int(correct_N.sum()), int((correct_N & certified_N).sum())


def _hanging(per_image: pa.Table, question: Question, labels_N: np.ndarray) -> str:
    """Says how many images of the certified accuracy would fall with a single vote, or with a score's last digit."""
    if f"margin/{question.key}" not in per_image.column_names:
        return ""
    correct_N = np.asarray(per_image[f"prediction/{question.ballot_key}"]) == labels_N
    counted_N = correct_N & np.asarray(per_image[f"certified/{question.key}"])
    if not counted_N.any():
        return ""
    margin_N = np.asarray(per_image[f"margin/{question.key}"])
    text = f"{(counted_N & (margin_N == 0)).sum()} of {counted_N.sum()} certified images hang on one vote"
    if question.vote_threshold is None:
        return text
    near_N = np.asarray(per_image[f"near_threshold/{question.key}"])
    return f"{text}, {(counted_N & near_N).sum()} on scores within 1/{SCORE_SCALE} of the threshold"


def _check_images(per_image: pa.Table, subject: Subject) -> None:
    num_names = len(per_image["image_id"].unique())
    if per_image.num_rows != subject.num_images or num_names != subject.num_images:
        raise StudyError(
            f"the answers hold {per_image.num_rows} images ({num_names} different ones), the split "
            f"{subject.dataset}/{subject.split} has {subject.num_images}.\n  Answer every part of the vote table once."
        )
