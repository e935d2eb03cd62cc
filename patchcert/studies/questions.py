"""A grid of settings and a view set in, the list of questions that one vote table answers out."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from patchcert.certificates import clopper_pearson_lower, reported_feasibility
from patchcert.errors import StudyError
from patchcert.geometry import Patch
from patchcert.studies.config import CERTIFICATES, CertificateKind, StudyConfig
from patchcert.votes import SCORE_SCALE, rounded_score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question: can this patch, anywhere, change predictions made by this rule?

    Attributes:
        certificate: name in ``CERTIFICATES``.
        patch: the footprint.
        affected: most views that one placement touches.
        num_views: views of an image.
        vote_threshold: score from which a class gets a vote; None for the top-class rule.
        score_tolerance: votes whose score lies within this of the threshold count for the attacker; 0 for none.
        takes_closer_look: whether to find the largest square that each image withstands, and where patches succeed.
        keeps_score_margin: whether to find how far scores may be off before each verdict might change.
        replacement: whether views are drawn with replacement; None when all views vote.
        num_draws: views that are drawn, or all views; of samples those that estimate.
        num_selection: samples that choose the class beforehand; 0 where nothing is sampled.
        min_confidence: confidence from which an image counts as certified; None for theorems.
        repeats: independent draws.
        seed: of the draws.
        feasible: whether any votes at all could be certified.
        note: what a reader must know about the answer, or empty.
    """

    certificate: str
    patch: Patch
    affected: int
    num_views: int
    vote_threshold: float | None = None
    score_tolerance: float = 0.0
    takes_closer_look: bool = False
    keeps_score_margin: bool = False
    replacement: bool | None = None
    num_draws: int
    num_selection: int = 0
    min_confidence: float | None = None
    repeats: int = 1
    seed: int = 0
    feasible: bool = True
    note: str = ""

    @property
    def kind(self) -> CertificateKind:
        """What the certificate is."""
        return CERTIFICATES[self.certificate]

    @property
    def vote_rule(self) -> Literal["top_class", "threshold"]:
        """How views vote."""
        return "top_class" if self.vote_threshold is None else "threshold"

    @property
    def draws(self) -> str:
        """Which views vote, in words."""
        return "all" if self.replacement is None else f"with{'' if self.replacement else 'out'} replacement"

    @property
    def samples(self) -> bool:
        """Whether only the votes of drawn views are counted."""
        return self.kind.law is not None

    @property
    def ballot_key(self) -> str:
        """Names the votes that are counted; questions that share it share their predictions."""
        rule = "top_class" if self.vote_threshold is None else f"threshold={self.vote_threshold:g}"
        if not self.samples:
            return f"{rule}/all"
        repeats = f",repeats={self.repeats}" if self.repeats > 1 else ""
        first = f"{self.num_selection}+" if self.num_selection else ""
        return f"{rule}/{first}{self.num_draws} {self.draws},seed={self.seed}{repeats}"

    @property
    def confidence_key(self) -> str:
        """Names the confidences; questions that share it differ in ``min_confidence`` only."""
        drawn = "" if self.samples or self.replacement is None else f"/{self.num_draws} {self.draws}"
        return f"{self.certificate}/{self.patch.label}/{self.ballot_key}{drawn}"

    @property
    def key(self) -> str:
        """Names the question within a study; the same settings give the same key for ever."""
        least = "" if self.min_confidence is None else f"/confidence>={self.min_confidence:g}"
        doubt = "" if self.score_tolerance == 0 else f"/tolerance={self.score_tolerance:g}"
        return f"{self.confidence_key}{least}{doubt}"


def doubtful_scores(vote_threshold: float, tolerance: float | Fraction) -> tuple[int, int]:
    """The stored scores that lie within a tolerance of a threshold.

    Both are taken as the decimal numbers they print as, as ``rounded_score`` does.

    Args:
        vote_threshold: score from which a class gets a vote.
        tolerance: largest distance from it, as a score, >= 0.

    Returns:
        The least and the greatest of them, in units of 1 / SCORE_SCALE; may lie outside [0, SCORE_SCALE].
    """
    at = Fraction(repr(float(vote_threshold)))
    within = tolerance if isinstance(tolerance, Fraction) else Fraction(repr(float(tolerance)))
    return math.ceil((at - within) * SCORE_SCALE), math.floor((at + within) * SCORE_SCALE)


def questions(
    config: StudyConfig,
    views: Any,
    score_floor: float | None,
    *,
    on_warning: Callable[[str], object] = warnings.warn,
) -> list[Question]:
    """Expands a study into its questions, in the order in which settings are listed.

    Args:
        config: the grid.
        views: view set of the vote table.
        score_floor: lowest threshold the table answers; None when it stores top classes only.
        on_warning: called with one text for each setting that changes nothing.

    Returns:
        Questions with distinct keys. Threshold rules come before the top-class rule.

    Raises:
        StudyError: a threshold, or what lies within the tolerance of one, below the score floor, random crops of a view
            set that is not made of crops, more views than there are drawn without replacement, certificates of all
            views or too many samples where samples were voted on.
        GeometryError: a patch that cannot be read or does not fit inside the image.
    """
    _check_thresholds(config, score_floor)
    drawn = [name for name in config.certificates if CERTIFICATES[name].drawn]
    for_crops = [name for name in drawn if CERTIFICATES[name].law in ("reported", "exact")]
    if views.kind == "sampled":
        config.check_samples(views.num_views)
    elif for_crops and views.kind != "crop":
        raise StudyError(
            f"study: {for_crops[0]} certifies random crops, but the votes are those of {views.describe()}.\n"
            f"  Drop {for_crops[0]} here; counting, placement, fresh_draw and sampled hold for every view set."
        )
    _warn_of_idle_settings(config, views, on_warning)
    if any("num_draws" in CERTIFICATES[name].settings for name in drawn) and (
        "without" in config.replacement and max(config.num_draws) > views.num_views
    ):
        raise StudyError(
            f"study: {max(config.num_draws)} views cannot be drawn without replacement from {views.num_views}.\n"
            f"  Draw at most {views.num_views}, or with replacement only."
        )
    patches = _patches(config, views, on_warning)
    asked = []
    for threshold in (*config.vote_thresholds, *([None] if config.top_class else [])):
        for name in config.certificates:
            if not CERTIFICATES[name].drawn:
                asked += [
                    _of_all_views(name, patch, views, affected, threshold, config)
                    for patch, affected in patches.items()
                ]
    if config.score_tolerance and not any(question.score_tolerance for question in asked):
        on_warning("study: score_tolerance has no effect: no counting or placement by a vote threshold is asked.")
    if not config.score_margins and not (config.vote_thresholds and "placement" in config.certificates):
        on_warning("study: score_margins has no effect: no placement by a vote threshold is asked.")
    for name in drawn:
        if name == "sampled":
            asked += [
                _of_samples(patch, views, affected, num_estimation, confidence, config)
                for num_estimation in config.num_estimation
                for confidence in config.min_confidences
                for patch, affected in patches.items()
            ]
            continue
        for mode in config.replacement:
            if name == "random_crops_exact" and mode == "with":
                continue
            for num_draws in config.num_draws:
                for confidence in config.min_confidences:
                    asked += [
                        _of_drawn_views(name, patch, views, affected, num_draws, mode == "with", confidence, config)
                        for patch, affected in patches.items()
                    ]
    return asked


def headline_patch(config: StudyConfig, image_size: tuple[int, int]) -> str:
    """Label of the patch of the headline numbers.

    Raises:
        GeometryError: a patch that cannot be read or does not fit inside the image.
    """
    wanted = Patch.parse(config.headline_patch, image_size)
    patches = [Patch.parse(text, image_size) for text in config.patches]
    return min(patches, key=lambda patch: (patch != wanted, abs(patch.area - wanted.area))).label


def _check_thresholds(config: StudyConfig, score_floor: float | None) -> None:
    if not config.vote_thresholds:
        return
    if score_floor is None:
        raise StudyError(
            f"study: vote_threshold {config.vote_thresholds[0]} needs scores, the vote table stores top classes only.\n"
            "  Vote again with a --prediction.score-floor at or below it, or leave vote_thresholds out."
        )
    low = [value for value in config.vote_thresholds if rounded_score(value) < rounded_score(score_floor)]
    if low:
        raise StudyError(
            f"study: vote_threshold {min(low)} lies below the vote table's score floor {score_floor}.\n"
            f"  Vote again with --prediction.score-floor {min(low)}, or ask for {score_floor} and above."
        )
    lowest = min(config.vote_thresholds)
    if config.score_tolerance and doubtful_scores(lowest, config.score_tolerance)[0] < rounded_score(score_floor):
        raise StudyError(
            f"study: scores within score_tolerance {config.score_tolerance} of vote_threshold {lowest} reach below the "
            f"vote table's score floor {score_floor}, where none are stored.\n"
            "  Vote again with a lower --prediction.score-floor, or lower the tolerance."
        )


def _warn_of_idle_settings(config: StudyConfig, views: Any, on_warning: Callable[[str], object]) -> None:
    """Says which settings of draws none of the certificates looks at."""
    in_use = {name for certificate in config.certificates for name in CERTIFICATES[certificate].settings}
    of_draws = {name for kind in CERTIFICATES.values() for name in kind.settings}
    for field in dataclasses.fields(config):
        if field.name in of_draws - in_use and getattr(config, field.name) != field.default:
            on_warning(
                f"study: {field.name} has no effect: no certificate of {', '.join(config.certificates)} uses it."
            )
    if views.kind == "sampled" and config.seed:
        on_warning(f"study: seed has no effect: the views were sampled with seed {views.seed} when they were voted on.")


def _patches(config: StudyConfig, views: Any, on_warning: Callable[[str], object]) -> dict[Patch, int]:
    """The distinct patches, each with the most views that one placement affects."""
    texts: dict[Patch, str] = {}
    for text in config.patches:
        patch = Patch.parse(text, views.image_size)
        if patch in texts:
            on_warning(f"study: patches {texts[patch]} and {text} are both {patch.label} pixels here; asked once.")
        else:
            texts[patch] = text
    return {patch: views.affected(patch) for patch in texts}


def _of_all_views(
    name: str, patch: Patch, views: Any, affected: int, threshold: float | None, config: StudyConfig
) -> Question:
    # The largest lead there can be is one vote a view for the winner and none for a rival.
    feasible = 2 * affected <= views.num_views
    notes = [] if feasible else [f"infeasible: needs a lead of {2 * affected} votes, there are {views.num_views} views"]
    tolerance = 0.0 if threshold is None else config.score_tolerance
    if tolerance:
        notes.append(f"scores within {tolerance:g} of the threshold count for the attacker")
    is_headline = (
        name == "placement"
        and threshold == next(iter(config.vote_thresholds), None)
        and patch.label == headline_patch(config, views.image_size)
    )
    return Question(
        certificate=name,
        patch=patch,
        affected=affected,
        num_views=views.num_views,
        num_draws=views.num_views,
        vote_threshold=threshold,
        score_tolerance=tolerance,
        takes_closer_look=is_headline and config.closer_look,
        keeps_score_margin=is_headline and threshold is not None and config.score_margins,
        feasible=feasible,
        note="; ".join(notes),
    )


def _of_drawn_views(
    name: str,
    patch: Patch,
    views: Any,
    affected: int,
    num_draws: int,
    replacement: bool,
    min_confidence: float,
    config: StudyConfig,
) -> Question:
    law, feasible, repeats = CERTIFICATES[name].law, True, 1
    if law is None:
        notes = ["clean: the prediction of all views"]
    else:
        possible = reported_feasibility(
            num_draws, affected, views.num_views, min_confidence, replacement=replacement, law=law
        )
        feasible, repeats = possible.feasible, config.repeats
        notes = ["heuristic, not a theorem"]
        if not feasible:
            notes.append(f"infeasible: needs a lead of {possible.needed_margin} votes, {num_draws} are drawn")
        if repeats > 1:
            notes.append(f"mean of {repeats} draws, interval of a single one")
    return Question(
        certificate=name,
        patch=patch,
        affected=affected,
        num_views=views.num_views,
        num_draws=num_draws,
        replacement=replacement,
        min_confidence=min_confidence,
        repeats=repeats,
        seed=config.seed,
        feasible=feasible,
        note="; ".join(notes),
    )


def _of_samples(
    patch: Patch, views: Any, affected: int, num_estimation: int, min_confidence: float, config: StudyConfig
) -> Question:
    share = 0.5 + views.affected_probability(patch)
    feasible = bool(clopper_pearson_lower(num_estimation, num_estimation, min_confidence) > share)
    notes = [f"{config.num_selection} samples choose the class, {num_estimation} others estimate its share"]
    if not feasible:
        notes.append(f"infeasible: needs a share above {share:.4g}, which {num_estimation} equal votes do not prove")
    return Question(
        certificate="sampled",
        patch=patch,
        affected=affected,
        num_views=views.num_views,
        num_draws=num_estimation,
        num_selection=config.num_selection,
        replacement=True,
        min_confidence=min_confidence,
        seed=views.seed if views.kind == "sampled" else config.seed,
        feasible=feasible,
        note="; ".join(notes),
    )
