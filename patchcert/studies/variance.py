"""A vote table's parts in, the spread of random-crop certificates over repeated draws out (a table, a row a repeat)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import special

from patchcert.certificates import reported_confidences, reported_feasibility
from patchcert.certificates.reported_crops import Law
from patchcert.errors import StudyError
from patchcert.geometry import Patch
from patchcert.studies.config import CERTIFICATES, VarianceConfig
from patchcert.studies.subject import Subject
from patchcert.votes import VotePart, draw_tallies

_CHUNK_BYTES = 2**25
_COVERAGE = 0.95

IntArray = npt.NDArray[np.integer[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """One way to draw views.

    Attributes:
        num_draws: views drawn for each image, n.
        replacement: whether a view can come twice.
    """

    num_draws: int
    replacement: bool

    @property
    def words(self) -> str:
        """How views are drawn: "with replacement"."""
        return f"with{'' if self.replacement else 'out'} replacement"

    @property
    def key(self) -> str:
        """Names the draw within a study: "128 with replacement"."""
        return f"{self.num_draws} {self.words}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DrawQuestion:
    """One certificate of the tallies of one way to draw.

    Attributes:
        draw: the way.
        certificate: name in ``CERTIFICATES``.
        patch: the footprint.
        affected: most views that one placement touches.
        num_views: views of an image.
        min_confidence: p_c from which an image counts as certified.
        confidences: p_c for every lead n_1 - n_2 = 0 ... n, shape (n + 1,).
        feasible: whether any tally could be certified.
        note: what a reader must know about the answer.
    """

    draw: Draw
    certificate: str
    patch: Patch
    affected: int
    num_views: int
    min_confidence: float
    confidences: npt.NDArray[np.float64]
    feasible: bool
    note: str

    @property
    def key(self) -> str:
        """Names the question within a study."""
        return f"{self.certificate}/{self.patch.label}/{self.draw.key}"


def draw_questions(config: VarianceConfig, views: Any) -> list[DrawQuestion]:
    """Every certificate of every way to draw, for every patch.

    Args:
        config: the settings; patches must be named.
        views: view set of the vote table.

    Raises:
        StudyError: no patch, views that are no crops, or more draws without replacement than there are views.
        GeometryError: a patch that cannot be read or does not fit inside the image.
    """
    if views.kind != "crop":
        raise StudyError(
            f"variance: random crops are drawn, but the votes are those of {views.describe()}.\n"
            "  Choose a recipe of crops; certificates of all views do not vary."
        )
    if "without" in config.replacement and max(config.num_draws) > views.num_views:
        raise StudyError(
            f"variance: {max(config.num_draws)} views cannot be drawn without replacement from {views.num_views}.\n"
            f"  Give --variance.num-draws up to {views.num_views}, or --variance.replacement with."
        )
    patches = list(dict.fromkeys(Patch.parse(text, views.image_size) for text in config.patches))
    if not patches:
        raise StudyError("variance: no patch is named, so nothing is certified.\n  Give --variance.patches 5x5.")
    asked = []
    for mode in config.replacement:
        for num_draws in config.num_draws:
            for name in config.certificates:
                if name == "random_crops_exact" and mode == "with":
                    continue
                for patch in patches:
                    asked.append(
                        _question(name, Draw(num_draws=num_draws, replacement=mode == "with"), patch, views, config)
                    )
    return asked


def _question(name: str, draw: Draw, patch: Patch, views: Any, config: VarianceConfig) -> DrawQuestion:
    affected = views.affected(patch)
    law: Law = "exact" if name == "random_crops_exact" else "reported"
    numbers = draw.num_draws, affected, views.num_views
    possible = reported_feasibility(*numbers, config.min_confidence, replacement=draw.replacement, law=law)
    note = "heuristic, not a theorem"
    if not possible.feasible:
        note += f"; infeasible: needs a lead of {possible.needed_margin} votes, {draw.num_draws} are drawn"
    return DrawQuestion(
        draw=draw,
        certificate=name,
        patch=patch,
        affected=affected,
        num_views=views.num_views,
        min_confidence=config.min_confidence,
        confidences=reported_confidences(*numbers, replacement=draw.replacement, law=law),
        feasible=possible.feasible,
        note=note,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """Repeated draws for consecutive images, already summed where sums are all that is needed.

    Attributes:
        first_row: row number of the first image in its dataset.
        columns: arrays of equal length by name, one value an image over its R repeats: ``image_id``, ``label``; for
            each way to draw ``correct/<draw>`` (share of repeats that predict the label), ``flip_votes_mean/<draw>``,
            ``flip_votes_variance/<draw>``, ``flip_votes_spread/<draw>`` of n_2to1 / n; for each question
            ``certified_correct/<question>`` and ``confidence_mean``, ``confidence_variance``, ``confidence_spread``
            of p_c. All but the first two are float32 in [0, 1].
        images_by_lead: for each way to draw, by its key: how many images had, in each repeat, each lead n_1 - n_2 with
            a wrong (0) and a right (1) prediction; int32, shape (R, n + 1, 2).
    """

    first_row: int
    columns: dict[str, npt.NDArray[Any]]
    images_by_lead: dict[str, npt.NDArray[np.int32]]

    def __len__(self) -> int:
        return len(self.columns["label"])


def draw_part(part: VotePart, config: VarianceConfig, questions: list[DrawQuestion]) -> DrawnImages:
    """Draws views of each image of a part, again and again, and certifies every draw.

    p_c and the prediction depend on a draw only through its tally, so tallies are drawn instead of views
    (``draw_tallies``), once for all patches and certificates.

    Args:
        part: top-class votes of consecutive images.
        config: repeats and seed.
        questions: from ``draw_questions``.

    Returns:
        Figures that do not depend on the borders of parts: each row of the dataset has streams of its own.
    """
    by_draw: dict[Draw, list[DrawQuestion]] = {}
    for question in questions:
        by_draw.setdefault(question.draw, []).append(question)
    images_by_lead = {draw.key: np.zeros((config.repeats, draw.num_draws + 1, 2), dtype=np.int32) for draw in by_draw}
    pieces = []
    for start, counts_NK in _counts(part, config.repeats * len(by_draw)):
        labels_N = part.labels_N[start : start + len(counts_NK)]
        columns = {"image_id": np.asarray(part.image_ids[start : start + len(counts_NK)], dtype=object)}
        columns["label"] = labels_N
        leads_DNR, winners_DNR = _draws(counts_NK, part.first_row + start, list(by_draw), config)
        for (draw, asked), leads_NR, winners_NR in zip(by_draw.items(), leads_DNR, winners_DNR, strict=True):
            correct_NR = winners_NR == labels_N[:, None]
            images_by_lead[draw.key] += _images_by_lead(leads_NR, correct_NR, draw.num_draws)
            columns |= _per_image(leads_NR, correct_NR, draw, asked)
        pieces.append(columns)
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return DrawnImages(first_row=part.first_row, columns=columns, images_by_lead=images_by_lead)


def _counts(part: VotePart, draws_per_image: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Top-class votes by class of runs of images, as (first, counts (N, K)), within a bound on working memory."""
    num_images, num_views = part.top_classes_NV.shape
    step = max(1, _CHUNK_BYTES // (8 * (num_views + part.num_classes + 4 * draws_per_image)))
    for start in range(0, num_images, step):
        classes_NV = part.top_classes_NV[start : start + step].astype(np.int64)
        cells_NV = classes_NV + np.arange(len(classes_NV))[:, None] * part.num_classes
        counts = np.bincount(cells_NV.ravel(), minlength=len(classes_NV) * part.num_classes)
        yield start, counts.reshape(len(classes_NV), part.num_classes)


def _draws(
    counts_NK: npt.NDArray[np.int64], first_row: int, draws: list[Draw], config: VarianceConfig
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Lead and winner of every draw: n_1 - n_2, and the class with most votes, the lower of tied ones; (D, N, R)."""
    (num_images, num_classes), repeats = counts_NK.shape, config.repeats
    leads_DNR = np.empty((len(draws), num_images, repeats), dtype=np.int32)
    winners_DNR = np.empty_like(leads_DNR)
    for i, counts_K in enumerate(counts_NK):
        # Classes without votes are never drawn, and the largest first leaves little to draw for the rest.
        classes = np.argsort(-counts_K, kind="stable")[: np.count_nonzero(counts_K)]
        tallies_DRC = np.stack(
            [
                draw_tallies(
                    counts_K[classes],
                    draw.num_draws,
                    first_row + i,
                    replacement=draw.replacement,
                    seed=config.seed,
                    num_repeats=repeats,
                )
                for draw in draws
            ]
        )
        if len(classes) == 1:
            leads_DNR[:, i] = tallies_DRC[:, :, 0]
            winners_DNR[:, i] = classes[0]
            continue
        # One number orders votes first and lower classes second.
        ranks_DRC = tallies_DRC * num_classes + (num_classes - 1 - classes)
        ranks_DRC.partition(len(classes) - 2, axis=2)
        second_DR, first_DR = ranks_DRC[:, :, -2], ranks_DRC[:, :, -1]
        leads_DNR[:, i] = first_DR // num_classes - second_DR // num_classes
        winners_DNR[:, i] = num_classes - 1 - first_DR % num_classes
    return leads_DNR, winners_DNR


def _images_by_lead(leads_NR: IntArray, correct_NR: npt.NDArray[np.bool_], num_draws: int) -> npt.NDArray[np.int64]:
    repeats = leads_NR.shape[1]
    cells_NR = (np.arange(repeats) * (num_draws + 1) + leads_NR) * 2 + correct_NR
    return np.bincount(cells_NR.ravel(), minlength=repeats * (num_draws + 1) * 2).reshape(repeats, num_draws + 1, 2)


def _per_image(
    leads_NR: IntArray, correct_NR: npt.NDArray[np.bool_], draw: Draw, questions: list[DrawQuestion]
) -> dict[str, npt.NDArray[np.float32]]:
    repeats = leads_NR.shape[1]
    sorted_NR = np.sort(leads_NR, axis=1)
    # Both figures never fall with the lead, so that order statistics of the lead give theirs.
    tail = (1 - _COVERAGE) / 2
    low_N = sorted_NR[:, int(np.floor(tail * (repeats - 1)))]
    high_N = sorted_NR[:, int(np.ceil((1 - tail) * (repeats - 1)))]
    columns = {f"correct/{draw.key}": correct_NR.mean(axis=1)}

    def add(name: str, key: str, by_lead: npt.NDArray[np.float64]) -> None:
        values_NR = by_lead[leads_NR]
        columns[f"{name}_mean/{key}"] = values_NR.mean(axis=1)
        columns[f"{name}_variance/{key}"] = values_NR.var(axis=1, ddof=1)
        columns[f"{name}_spread/{key}"] = by_lead[high_N] - by_lead[low_N]

    add("flip_votes", draw.key, flip_votes_by_lead(draw.num_draws))
    for question in questions:
        certified_NR = (question.confidences >= question.min_confidence)[leads_NR]
        columns[f"certified_correct/{question.key}"] = (certified_NR & correct_NR).mean(axis=1)
        add("confidence", question.key, question.confidences)
    return {name: values.astype(np.float32) for name, values in columns.items()}


def flip_votes_by_lead(num_draws: int) -> npt.NDArray[np.float64]:
    """n_2to1 / n = (floor((n_1 - n_2) / 2) + 1) / n for every lead n_1 - n_2 = 0 ... n, shape (n + 1,)."""
    return (np.arange(num_draws + 1) // 2 + 1) / num_draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceTables:
    """What repeated draws of all images came to.

    Attributes:
        repeats: one row for each question and repeat: ``draws``, ``num_draws``, ``certificate``, ``patch``,
            ``min_confidence``, ``feasible``, ``repeat``; ``clean_accuracy``, ``certified_accuracy`` (of all evaluated
            images), ``flip_votes`` and ``confidence`` (means over the voted images of n_2to1 / n and p_c).
        per_image: one row for each image, columns of ``DrawnImages``.
        summary: one row for each question, see ``VarianceAccumulator.tables``.
    """

    repeats: pd.DataFrame
    per_image: pa.Table
    summary: pd.DataFrame


class VarianceAccumulator:
    """Takes the draws of parts in any order and holds only their sums and the figures of each image."""

    def __init__(self, questions: list[DrawQuestion]) -> None:
        """Starts empty, for the draws of these questions."""
        self._questions = questions
        self._columns: dict[int, dict[str, npt.NDArray[Any]]] = {}
        self._images_by_lead: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, drawn: DrawnImages) -> None:
        """Adds the draws of consecutive images."""
        self._columns[drawn.first_row] = drawn.columns
        for key, counts in drawn.images_by_lead.items():
            self._images_by_lead[key] = self._images_by_lead.get(key, 0) + counts.astype(np.int64)

    def tables(self, subject: Subject) -> VarianceTables:
        """Joins all parts.

        The randomized-cropping paper's Table 6 prints, for n_2to1 and p_c over 200 repeats, an "interval" and a
        "variance" in units of 1e-2 without saying how either is taken, over what it is averaged, or how n_2to1 is
        scaled. Here n_2to1 is divided by n, so that it is a fraction as p_c is, and for each image, over its R repeats,

        * variance: the unbiased sample variance;
        * interval: half the width of the 95 % interval of the mean, 1.96 * sqrt(variance / R);
        * spread: the distance between the 2.5 % and 97.5 % order statistics (outward rounded), what one draw may do;

        and each is averaged over the images that were voted on.

        Args:
            subject: what was attacked; its quarantined images count as wrong.

        Returns:
            In ``summary``, beside the settings: mean, standard deviation over repeats (``_std``), 5 % and 95 %
            quantiles (``_p05``, ``_p95``) of ``clean_accuracy`` and ``certified_accuracy``; ``_mean``, ``_interval``,
            ``_variance``, ``_spread`` of ``flip_votes`` (n_2to1 / n) and ``confidence`` (p_c). Fractions.

        Raises:
            StudyError: images are missing or doubled.

        Source: the randomized-cropping paper, Table 6.
        Guarantee: heuristic, as p_c itself.
        """
        first_rows = sorted(self._columns)
        pieces = [self._columns[row] for row in first_rows]
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}
        num_names = len(set(columns.get("image_id", ())))
        if num_names != subject.num_images or len(columns["label"]) != subject.num_images:
            raise StudyError(
                f"variance: {num_names} different images were drawn for, the split {subject.dataset}/{subject.split} "
                f"has {subject.num_images}.\n  Draw for every part of the vote table once."
            )
        repeats = pd.concat([self._repeats(question, subject) for question in self._questions], ignore_index=True)
        summary = summary_of_repeats(self._questions, repeats, columns, subject)
        return VarianceTables(repeats=repeats, per_image=pa.table(columns), summary=summary)

    def _repeats(self, question: DrawQuestion, subject: Subject) -> pd.DataFrame:
        """Rows of one question, from whole numbers of images: exact, whatever the order of the parts."""
        counts_RL2 = self._images_by_lead[question.draw.key]
        counts_RL = counts_RL2.sum(axis=2)
        certified_L = question.confidences >= question.min_confidence
        return pd.DataFrame(
            {
                **_names(question),
                "repeat": np.arange(len(counts_RL)),
                "clean_accuracy": counts_RL2[:, :, 1].sum(axis=1) / subject.evaluated,
                "certified_accuracy": counts_RL2[:, certified_L, 1].sum(axis=1) / subject.evaluated,
                "flip_votes": counts_RL @ flip_votes_by_lead(question.draw.num_draws) / subject.num_images,
                "confidence": counts_RL @ question.confidences / subject.num_images,
            }
        )


def summary_of_repeats(
    questions: Sequence[DrawQuestion], repeats: pd.DataFrame, columns: Mapping[str, Any], subject: Subject
) -> pd.DataFrame:
    """Make one row for each question from its repeats and from the figures of single images.

    Args:
        questions: what was drawn for, in the order of the repeats.
        repeats: columns of ``VarianceTables.repeats``, equally many rows for each question.
        columns: figures of the images, as ``DrawnImages`` names them, shape (N,) each.
        subject: what was attacked.

    Returns:
        Columns of ``VarianceTables.summary``.

    Raises:
        StudyError: the repeats are others than those of the questions, or tell of other images than the figures.
    """
    num_repeats, rest = divmod(len(repeats), max(len(questions), 1))
    rows = []
    for index, question in enumerate(questions):
        of_question = repeats.iloc[index * num_repeats : (index + 1) * num_repeats].reset_index(drop=True)
        if rest or of_question.empty or not _are_of(of_question, question):
            raise StudyError(f"the repeats of {question.key} are missing or mixed up.\n  Draw again.")
        _check_means(of_question, question, columns, subject)
        rows.append(_summary_row(question, of_question, columns, subject))
    return pd.DataFrame(rows)


def _names(question: DrawQuestion) -> dict[str, Any]:
    """The columns by which each repeat tells its question."""
    return {
        "draws": question.draw.words,
        "num_draws": question.draw.num_draws,
        "certificate": question.certificate,
        "patch": question.patch.label,
        "min_confidence": question.min_confidence,
        "feasible": question.feasible,
    }


def _are_of(repeats: pd.DataFrame, question: DrawQuestion) -> bool:
    is_same = all((repeats[name] == value).all() for name, value in _names(question).items())
    return is_same and repeats["repeat"].tolist() == list(range(len(repeats)))


def _check_means(repeats: pd.DataFrame, question: DrawQuestion, columns: Mapping[str, Any], subject: Subject) -> None:
    """Raises StudyError unless the mean over repeats is the mean over images: both sum the same draws."""
    share = subject.num_images / subject.evaluated
    for name, column, factor in (
        ("clean_accuracy", f"correct/{question.draw.key}", share),
        ("certified_accuracy", f"certified_correct/{question.key}", share),
        ("flip_votes", f"flip_votes_mean/{question.draw.key}", 1.0),
        ("confidence", f"confidence_mean/{question.key}", 1.0),
    ):
        of_repeats = float(repeats[name].mean())
        of_images = float(np.asarray(columns[column], dtype=np.float64).mean()) * factor
        # Figures of images are stored with seven digits.
        if not abs(of_repeats - of_images) <= 1e-5:
            raise StudyError(
                f"{name} of {question.key} is {of_repeats:.6f} over the repeats, but {of_images:.6f} over the images.\n"
                "  Draw again."
            )


def _summary_row(
    question: DrawQuestion, repeats: pd.DataFrame, columns: Mapping[str, Any], subject: Subject
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "defense": subject.defense,
        "dataset": subject.dataset,
        "split": subject.split,
        "split_digest": subject.split_digest,
        "num_images": subject.evaluated,
        "repeats": len(repeats),
        "certificate": question.certificate,
        "guarantee": CERTIFICATES[question.certificate].guarantee,
        "patch": question.patch.label,
        "patch_area": question.patch.area,
        "patch_fraction": question.patch.area_fraction(subject.image_size),
        "tensor": subject.tensor,
        "affected": question.affected,
        "num_views": question.num_views,
        "draws": question.draw.words,
        "num_draws": question.draw.num_draws,
        "min_confidence": question.min_confidence,
        "feasible": question.feasible,
        "note": question.note,
    }
    for name in ("clean_accuracy", "certified_accuracy"):
        values = repeats[name]
        row |= {name: values.mean(), f"{name}_std": values.std(ddof=1)}
        row |= {f"{name}_p05": values.quantile(0.05), f"{name}_p95": values.quantile(0.95)}
    z = special.ndtri((1 + _COVERAGE) / 2)
    for name, key in (("flip_votes", question.draw.key), ("confidence", question.key)):
        mean_N, variance_N, spread_N = (
            np.asarray(columns[f"{name}_{figure}/{key}"], dtype=np.float64) for figure in ("mean", "variance", "spread")
        )
        row |= {f"{name}_mean": mean_N.mean(), f"{name}_interval": z * np.sqrt(variance_N / len(repeats)).mean()}
        row |= {f"{name}_variance": variance_N.mean(), f"{name}_spread": spread_N.mean()}
    return row
