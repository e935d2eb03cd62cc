"""What a study asks: certificates by name and the grid of settings. Settings only; nothing heavy is imported."""

import dataclasses
import difflib
from typing import Any, Literal

from patchcert.checks import check_numbers
from patchcert.errors import StudyError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificateKind:
    """What a study can ask of votes.

    Attributes:
        guarantee: "deterministic", "probabilistic" or "heuristic".
        drawn: whether it is about a random draw of the views instead of all of them.
        law: distribution that certificates of one drawn tally assume: "reported" and "exact" as
            ``certify_random_crops_reported`` names them, "binomial" for samples; None for certificates of the votes of
            all views.
        settings: fields of ``StudyConfig`` that matter to it but not to certificates of all views.
        meaning: one sentence for readers of a report.
    """

    guarantee: Literal["deterministic", "probabilistic", "heuristic"]
    drawn: bool
    law: Literal["reported", "exact", "binomial"] | None = None
    settings: tuple[str, ...] = ()
    meaning: str


_CROP_SETTINGS = ("num_draws", "replacement", "min_confidences", "repeats", "seed")

CERTIFICATES: dict[str, CertificateKind] = {
    "counting": CertificateKind(
        guarantee="deterministic",
        drawn=False,
        meaning="A theorem: the lead in votes exceeds what a patch can change, from the number of views it touches.",
    ),
    "placement": CertificateKind(
        guarantee="deterministic",
        drawn=False,
        meaning="A theorem: at every placement, votes that the patch cannot touch decide. Never weaker than counting.",
    ),
    "random_crops_reported": CertificateKind(
        guarantee="heuristic",
        drawn=True,
        law="reported",
        settings=_CROP_SETTINGS,
        meaning=(
            "The confidence p_c of the randomized-cropping paper, as published. A heuristic: it ignores ties and takes "
            "the drawn crops as independent of their votes; an attacker may succeed more often than it says."
        ),
    ),
    "random_crops_exact": CertificateKind(
        guarantee="heuristic",
        drawn=True,
        law="exact",
        settings=_CROP_SETTINGS,
        meaning=(
            "The same p_c with the exact law of a draw without replacement (hypergeometric). Still a heuristic, for "
            "the same reasons."
        ),
    ),
    "fresh_draw": CertificateKind(
        guarantee="probabilistic",
        drawn=True,
        settings=("num_draws", "replacement", "min_confidences"),
        meaning=(
            "A theorem about a defense that draws its views anew for every answer: with at least the stated confidence "
            "a draw predicts under attack what all views predict without one."
        ),
    ),
    "sampled": CertificateKind(
        guarantee="probabilistic",
        drawn=True,
        law="binomial",
        settings=("num_selection", "num_estimation", "min_confidences", "seed"),
        meaning=(
            "A theorem with at least the stated confidence over the samples: the sampled class keeps more than half of "
            "all views under attack. For views that are too many to list, and to see what sampling costs elsewhere."
        ),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Questions to ask of one vote table: the grid of all settings below.

    Of each list the first entry is the setting behind headline numbers and the figure over patch areas: it is chosen
    here, before any test image is seen.
    """

    patches: tuple[str, ...] = ("1x1", "2x2", "3x3", "4x4", "5x5")
    """Each anywhere in the image: 5x5 (height x width), 2%, 2.4%@6:1 (height:width), 5x5@45deg, 5x5@45deg-exact."""
    headline_patch: str = "2.4%"
    """Headline numbers are those of the patch in patches that this is, or that is nearest to it in area."""
    certificates: tuple[str, ...] = ("counting", "placement")
    """counting, placement, fresh_draw, sampled (theorems); random_crops_reported, random_crops_exact (heuristics, for
    crops)."""
    vote_thresholds: tuple[float, ...] = ()
    """A view votes for every class whose score reaches this; each in (0, 1] and at least the table's score floor."""
    score_tolerance: float = 0.0
    """Above 0: every vote by a threshold whose score lies within this of the threshold counts for the attacker."""
    score_margins: bool = True
    """Keep per image how far scores may be off, for placement at the headline setting of a threshold rule."""
    closer_look: bool = True
    """Find for every image the largest square it withstands and the worst place of the headline patch."""
    top_class: bool = True
    """Ask under the top-class rule too: each view votes for its best class."""
    num_draws: tuple[int, ...] = ()
    """Numbers of views that are drawn, for fresh_draw and random_crops."""
    num_selection: int = 1_000
    """Samples that choose the class, for sampled."""
    num_estimation: tuple[int, ...] = (10_000,)
    """Further samples that bound the share of that class from below, for sampled."""
    replacement: tuple[Literal["with", "without"], ...] = ("with",)
    """Draw with replacement, without, or both."""
    min_confidences: tuple[float, ...] = (0.95,)
    """Confidence from which a certificate of draws counts, each in (0, 1)."""
    repeats: int = 1
    """Independent draws of every random_crops question; accuracies are means over them."""
    seed: int = 0
    """Of the draws; views that were sampled when they were voted on keep the seed of their vote table."""
    split: str = "test"
    """Split whose votes are asked: test, or validation to choose settings."""

    def __post_init__(self) -> None:
        """Checks ranges, repetitions and certificates that lack what they need."""
        for name in ("patches", "certificates", "num_estimation", "replacement", "min_confidences"):
            if not getattr(self, name):
                raise StudyError(f"study: {name} is empty, so nothing is asked.\n  Name at least one, or leave it out.")
        lists = ("patches", "certificates", "vote_thresholds", "num_draws", "num_estimation", "replacement")
        for name in (*lists, "min_confidences"):
            values = getattr(self, name)
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            if twice:
                raise StudyError(f"study: {name} names {', '.join(twice)} twice.\n  Name each value once.")
        for name in self.certificates:
            if name not in CERTIFICATES:
                nearest = difflib.get_close_matches(name, CERTIFICATES, n=1)
                hint = f"Did you mean {nearest[0]!r}?  " if nearest else ""
                raise StudyError(f"study: unknown certificate {name!r}.\n  {hint}Known: {', '.join(CERTIFICATES)}.")
        for name, low_open in (("vote_thresholds", False), ("min_confidences", True)):
            for value in getattr(self, name):
                if not 0 < value <= 1 or (low_open and value == 1):
                    bounds = "(0, 1)" if low_open else "(0, 1]"
                    raise StudyError(f"study: {name} holds {value}, outside {bounds}.\n  Give fractions such as 0.3.")
        if not 0 <= self.score_tolerance < 1:
            raise StudyError(
                f"study: score_tolerance is {self.score_tolerance}, outside [0, 1).\n"
                "  Give an error of scores such as 0.001, or 0 for none."
            )
        for value in (*self.num_draws, self.repeats, self.num_selection, *self.num_estimation):
            if value < 1:
                raise StudyError(
                    f"study: num_draws, num_selection, num_estimation and repeats must be at least 1, not {value}.\n"
                    "  Draw at least once."
                )
        if self.seed < 0:
            raise StudyError(f"study: seed must be >= 0, not {self.seed}.\n  Give a whole number from 0 up.")
        if any(mode not in ("with", "without") for mode in self.replacement):
            raise StudyError(f"study: replacement is {self.replacement}.\n  Use 'with', 'without' or both.")
        if not self.top_class and not self.vote_thresholds:
            raise StudyError(
                "study: top_class is off and vote_thresholds is empty, so no view votes.\n"
                "  Give a vote threshold, or leave top_class on."
            )
        drawn = [name for name in self.certificates if CERTIFICATES[name].drawn]
        needy = [name for name in drawn if "num_draws" in CERTIFICATES[name].settings]
        if needy and not self.num_draws:
            raise StudyError(f"study: {needy[0]} draws views, but num_draws is empty.\n  Give num_draws, such as 128.")
        if drawn and not self.top_class:
            raise StudyError(
                f"study: {drawn[0]} is defined for top-class votes, but top_class is off.\n"
                f"  Leave top_class on, or drop {drawn[0]}."
            )
        if "random_crops_exact" in self.certificates and "without" not in self.replacement:
            raise StudyError(
                "study: random_crops_exact differs from random_crops_reported only without replacement, but "
                f"replacement is {', '.join(self.replacement)}.\n"
                "  Add 'without' to replacement, or drop the certificate."
            )
        check_numbers(self, "study", StudyError)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "StudyConfig":
        """Reads the settings that a study's identity holds.

        Raises:
            TypeError: fields are unknown, or it is no object.
            StudyError: a value is out of range.
        """
        return cls(**_with_tuples(values))

    def check_samples(self, num_samples: int) -> None:
        """Checks that views which were sampled when they were voted on are enough, and all that is asked about them.

        Raises:
            StudyError: certificates of all views, or more samples than each image has.
        """
        others = [name for name in self.certificates if name != "sampled"]
        if others:
            raise StudyError(
                f"study: {others[0]} needs the votes of all views, but only samples of them were voted on.\n"
                "  Ask --study.certificates sampled."
            )
        wanted = self.num_selection + max(self.num_estimation)
        if wanted > num_samples:
            raise StudyError(
                f"study: {self.num_selection} samples choose the class and {max(self.num_estimation)} estimate its "
                f"share, but {num_samples} views of each image are sampled.\n"
                f"  Set --prediction.num-samples {wanted}, or lower --study.num-estimation."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceConfig:
    """How often views are drawn, and what is certified from each draw."""

    repeats: int = 200
    """Independent draws of the views of every image, at least 2."""
    num_draws: tuple[int, ...] = (64, 128, 256, 512)
    """Numbers of views that are drawn."""
    replacement: tuple[Literal["with", "without"], ...] = ("with", "without")
    """Draw with replacement, without, or both."""
    patches: tuple[str, ...] = ()
    """Patches, written as those of a study; unset: those of the recipe's study."""
    certificates: tuple[str, ...] = ("random_crops_reported",)
    """random_crops_reported, random_crops_exact (the latter differs without replacement only)."""
    min_confidence: float = 0.95
    """Confidence p_c from which an image counts as certified, in (0, 1)."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Checks ranges and repetitions."""
        for name in ("num_draws", "replacement", "patches", "certificates"):
            values = getattr(self, name)
            if not values and name != "patches":
                raise StudyError(f"variance: {name} is empty, so nothing is drawn.\n  Name at least one.")
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise StudyError(f"variance: {name} names {', '.join(twice)} twice.\n  Name each value once.")
        if self.repeats < 2:
            raise StudyError(f"variance: repeats is {self.repeats}; a spread needs at least 2.\n  Draw 200 times.")
        if min(self.num_draws) < 1:
            raise StudyError(f"variance: num_draws holds {min(self.num_draws)}.\n  Draw at least 1 view.")
        if self.seed < 0:
            raise StudyError(f"variance: seed must be >= 0, not {self.seed}.\n  Give a whole number from 0 up.")
        if any(mode not in ("with", "without") for mode in self.replacement):
            raise StudyError(f"variance: replacement is {self.replacement}.\n  Use 'with', 'without' or both.")
        if not 0 < self.min_confidence < 1:
            raise StudyError(
                f"variance: min_confidence is {self.min_confidence}, outside (0, 1).\n  Give a fraction such as 0.95."
            )
        sampling = [name for name, kind in CERTIFICATES.items() if kind.law in ("reported", "exact")]
        for name in self.certificates:
            if name not in sampling:
                raise StudyError(f"variance: {name!r} certifies no random crops.\n  Known: {', '.join(sampling)}.")
        if "random_crops_reported" not in self.certificates and "without" not in self.replacement:
            raise StudyError(
                "variance: random_crops_exact differs from random_crops_reported only without replacement, but "
                "replacement is 'with'.\n  Add 'without', or ask for random_crops_reported."
            )
        check_numbers(self, "variance", StudyError)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "VarianceConfig":
        """Reads the settings that a variance study's identity holds.

        Raises:
            TypeError: fields are unknown, or it is no object.
            StudyError: a value is out of range.
        """
        return cls(**_with_tuples(values))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were before they became JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
