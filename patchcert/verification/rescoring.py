"""Scores images again with the checkpoint that a vote table or study names, and compares votes with the new scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from patchcert.data.storage import Folder
from patchcert.errors import CheckpointError, ContradictionError
from patchcert.geometry import SampledViews
from patchcert.models.checkpoint_config import read_checkpoint_config
from patchcert.models.config import ClassifierConfig
from patchcert.verification.claims import Claim, TableClaim
from patchcert.verification.images import Split
from patchcert.verification.kinds import CHECKPOINT, things_in
from patchcert.votes import SCORE_SCALE, VotePart, rounded_score

TOLERANCES = {"float32": 0.00025, "tf32": 0.01, "bfloat16": 0.1}
"""How far a score may be off on another device or by another way to compute it, by the precision of the network.

On the device and with the settings that voted, scores repeat exactly. Between ways to compute one network they differ
by up to 3 units of 1/65535 in float32, and by up to 0.1 in bfloat16 (``tests/prediction/test_scoring.py``).
"""
# Every score that is not stored as 0 anyway.
_LEAST_FLOOR = 1e-6
_MOST_SCORES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rescored:
    """One image, scored again.

    Attributes:
        votes: of this one image, as a table with the score floor of the claim would hold them.
        scores_VK: its scores in stored units, int64, shape (V, K); 0: below one unit.
    """

    votes: VotePart
    scores_VK: np.ndarray

    def favouring(self, label: int, tolerance: int) -> VotePart:
        """Return votes that no scores within a tolerance could make more favourable to a class.

        Every view whose top class is in doubt votes for it. By a threshold it gets each vote that it may get, and other
        classes get those only that they must get.

        Args:
            label: the class.
            tolerance: in stored units.
        """
        favoured_VK = np.maximum(self.scores_VK - tolerance, 0)
        favoured_VK[:, label] = np.minimum(self.scores_VK[:, label] + tolerance, SCORE_SCALE)
        top_classes_V = np.where(self._ties(tolerance), label, self.votes.top_classes_NV[0]).astype(np.uint16)
        return _with_floor(dataclasses.replace(self.votes, top_classes_NV=top_classes_V[None]), favoured_VK)

    def is_doubtful(self, tolerance: int, thresholds: tuple[int, ...] = ()) -> bool:
        """Return whether any vote of the image changes when every score may be off by a tolerance.

        Args:
            tolerance: in stored units.
            thresholds: stored scores from which a class gets a vote, beside the votes for top classes.
        """
        near = (np.abs(self.scores_VK - least) <= tolerance + 1 for least in thresholds)
        return bool(self._ties(tolerance).any()) or any(near_VK.any() for near_VK in near)

    def _ties(self, tolerance: int) -> np.ndarray:
        """Which views have two classes that may both be the top class, bool, shape (V,)."""
        top_two_V2 = np.partition(self.scores_VK, -2, axis=1)[:, -2:]
        return np.asarray(top_two_V2[:, 1] - top_two_V2[:, 0] <= 2 * tolerance)


class Model:
    """The checkpoint that a claim names, found in a folder of one or several."""

    def __init__(self, location: str, network: str | None, device: str) -> None:
        """Finds the checkpoints; none is loaded.

        Args:
            location: a checkpoint, or a folder that holds some.
            network: name of the code that a checkpoint may import; None: it may not.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            DatasetError: there is none.
            CheckpointError: a record is damaged, or none has the network that is named.
        """
        self._location, self._network, self._device = location, network, device
        self._configs = {folder: read_checkpoint_config(folder) for _, folder in things_in([location], (CHECKPOINT,))}
        networks = [config["classifier"]["network"] for config in self._configs.values()]
        if network is not None and network not in networks:
            raise CheckpointError(
                f"{location} holds a model of the network {networks[0]!r}, but --classifier.network is {network!r}.\n"
                "  Name the network of the checkpoint, or leave the option out where it is one of patchcert's own."
            )

    def named_by(self, claim: Claim) -> Folder:
        """Return the checkpoint with the digest that a claim names; its bytes are compared with that digest.

        Raises:
            ContradictionError: another model voted.
            CheckpointError: it is damaged.
        """
        from patchcert.models.checkpoint import verify_checkpoint

        said = str(claim.identity["model"])
        for folder, config in self._configs.items():
            if config["digest"] == said:
                verify_checkpoint(folder)
                return folder
        there = ", ".join(str(config["digest"])[:12] for config in self._configs.values())
        raise ContradictionError(
            f"{claim.folder}: the model with digest {said[:12]} voted, but {self._location} has digest {there}.\n"
            "  Name the checkpoint that voted:  --checkpoint FOLDER"
        )

    def scores(self, claim: Claim, split: Split, rows: np.ndarray) -> Iterator[Rescored]:
        """Yield images, scored again by the checkpoint that a claim names, on its views and with its precision.

        Args:
            claim: whose votes are to be compared.
            split: its images.
            rows: which of them, ascending.

        Raises:
            ContradictionError: the classes of the model have other names than those of the images.
            CheckpointError: the model was made for something else, or names code that may not be imported.
            ModelError: the claim's precision does not exist here.
        """
        from patchcert.models.checkpoint import class_names_problem, load_checkpoint
        from patchcert.prediction.config import PredictionConfig
        from patchcert.prediction.devices import find_device
        from patchcert.prediction.scoring import ViewScorer

        folder, dataset, views = self.named_by(claim), split.dataset, claim.views
        config = self._configs[folder]
        if problem := class_names_problem(config, dataset.class_names):
            raise ContradictionError(f"{claim.folder}: its model {folder} was trained on {problem}.")
        is_sampled = isinstance(views, SampledViews)
        of_samples: dict[str, Any] = {"num_samples": views.num_samples, "sample_seed": views.seed} if is_sampled else {}
        settings = PredictionConfig(
            precision=claim.identity["votes"]["precision"], score_floor=_LEAST_FLOOR, **of_samples
        )
        classifier = load_checkpoint(
            folder,
            classifier=self._allowed(config),
            views=views.views if is_sampled else views,
            num_classes=dataset.num_classes,
        )
        device = find_device(self._device)
        scorer = ViewScorer(classifier.to(device), settings, device)
        # Samples of views are drawn by the row of an image, so those are scored one by one.
        step = 1 if is_sampled else max(1, _MOST_SCORES // (views.num_views * dataset.num_classes))
        for start in range(0, len(rows), step):
            some = rows[start : start + step].tolist()
            images_NHWC = np.concatenate([dataset.read(row, row + 1).images_NHWC for row in some])
            names = split.image_ids[some]
            scored = scorer.score(images_NHWC, names.tolist(), first_row=some[0])
            part = VotePart(
                image_ids=names,
                labels_N=split.labels_N[some],
                top_classes_NV=scored.top_classes_NV,
                num_entries_NV=scored.num_entries_NV,
                entry_classes=scored.entry_classes,
                entry_scores=scored.entry_scores,
                num_classes=dataset.num_classes,
                score_floor=_LEAST_FLOOR,
            )
            for index, row in enumerate(some):
                image = part.rows(index, index + 1)
                scores_VK = image.stored_scores()[0].astype(np.int64)
                image = dataclasses.replace(image, first_row=row, score_floor=claim.score_floor)
                yield Rescored(votes=_with_floor(image, scores_VK), scores_VK=scores_VK)

    def _allowed(self, config: dict[str, Any]) -> ClassifierConfig | None:
        """What the user asked for, if it is this checkpoint's network: only then its code may be imported."""
        made_with = config["classifier"]
        return ClassifierConfig.from_json(made_with) if made_with["network"] == self._network else None


def _with_floor(image: VotePart, scores_VK: np.ndarray) -> VotePart:
    """The votes of one image, with those of these scores that its score floor keeps."""
    if image.score_floor is None:
        return dataclasses.replace(image, num_entries_NV=None, entry_classes=None, entry_scores=None)
    kept_VK = scores_VK >= rounded_score(image.score_floor)
    return dataclasses.replace(
        image,
        num_entries_NV=kept_VK.sum(axis=1, dtype=np.uint16)[None],
        entry_classes=np.nonzero(kept_VK)[1].astype(np.uint16),
        entry_scores=scores_VK[kept_VK].astype(np.uint16),
    )


def tolerance_of(claim: Claim) -> int:
    """How far a score of a claim may be off, in stored units."""
    return round(TOLERANCES[claim.identity["votes"]["precision"]] * SCORE_SCALE)


def compare_votes(claim: TableClaim, rows: np.ndarray, rescored: Iterator[Rescored]) -> str:
    """Compare the votes of a table with new ones of the same images.

    Args:
        claim: the table.
        rows: rows of the images in the data set, ascending.
        rescored: the same images, scored again.

    Returns:
        In words, what agrees and how many votes differ within the tolerance of scores.

    Raises:
        ContradictionError: votes or scores differ by more; names the first image and how many differ.
    """
    tolerance, num_votes, num_near, problems = tolerance_of(claim), 0, 0, []
    for stored, new in zip(claim.votes_of(rows), rescored, strict=True):
        near, problem = _compare_image(stored, new, tolerance)
        num_votes, num_near = num_votes + stored.top_classes_NV.size, num_near + near
        if problem:
            problems.append(problem)
    if problems:
        raise ContradictionError(
            f"{claim.folder}: {problems[0]} ({len(problems)} of {len(rows)} images scored again differ)."
        )
    if not num_near:
        return "all their votes agree"
    units = f"{tolerance / SCORE_SCALE:.5f}"
    return f"all their votes agree, {num_near:,} of {num_votes:,} after a change of scores within {units}"


def _compare_image(stored: VotePart, new: Rescored, tolerance: int) -> tuple[int, str]:
    """How many votes of an image differ within the tolerance, and in words what differs by more, or an empty text."""
    name, views = stored.image_ids[0], np.arange(stored.top_classes_NV.shape[1])
    said_V, found_V = stored.top_classes_NV[0], new.votes.top_classes_NV[0]
    gap_V = new.scores_VK[views, found_V] - new.scores_VK[views, said_V]
    if (wrong_V := (said_V != found_V) & (gap_V > 2 * tolerance)).any():
        view = int(wrong_V.argmax())
        classes = int(said_V[view]), int(found_V[view])
        scores = " and ".join(f"{new.scores_VK[view, label] / SCORE_SCALE:.3f}" for label in classes)
        return 0, (
            f"view {view} of image {str(name)!r} votes for class {classes[0]}, but for class {classes[1]} when the "
            f"model scores it again (scores {scores})"
        )
    num_near = int((said_V != found_V).sum())
    if stored.score_floor is None:
        return num_near, ""
    said_VK, floor = stored.stored_scores()[0].astype(np.int64), rounded_score(stored.score_floor)
    # A score that is not stored lies below the floor.
    off_VK = np.where(said_VK > 0, np.abs(said_VK - new.scores_VK), np.maximum(new.scores_VK - (floor - 1), 0))
    if (off_VK > tolerance).any():
        view, label = divmod(int(off_VK.argmax()), off_VK.shape[1])
        score, found = said_VK[view, label] / SCORE_SCALE, new.scores_VK[view, label] / SCORE_SCALE
        words = f"{score:.5f}" if score else f"below {stored.score_floor:g}"
        return 0, (
            f"view {view} of image {str(name)!r} has score {words} for class {label}, but {found:.5f} when the model "
            "scores it again"
        )
    return num_near, ""
