"""Whether an attack can win: votes and geometry in, verdicts with their guarantee out; one file per theorem."""

from patchcert.certificates.counting import certify_counting, votes_to_flip
from patchcert.certificates.fresh_draws import certify_fresh_draw
from patchcert.certificates.intervals import clopper_pearson_lower, wilson_interval
from patchcert.certificates.near_ties import cast_votes, doubtful_votes, score_margins
from patchcert.certificates.outcomes import Outcome, predict
from patchcert.certificates.paired import PairedComparison, compare_paired
from patchcert.certificates.placement import PlacementFailures, certify_placement, failing_placements
from patchcert.certificates.reported_crops import (
    Feasibility,
    certify_random_crops_reported,
    reported_confidences,
    reported_feasibility,
)
from patchcert.certificates.sampled_views import certify_sampled
from patchcert.certificates.squares import certified_accuracy_by_side, largest_certified_square
from patchcert.errors import CertificateError

__all__ = [
    "CertificateError",
    "Feasibility",
    "Outcome",
    "PairedComparison",
    "PlacementFailures",
    "cast_votes",
    "certified_accuracy_by_side",
    "certify_counting",
    "certify_fresh_draw",
    "certify_placement",
    "certify_random_crops_reported",
    "certify_sampled",
    "clopper_pearson_lower",
    "compare_paired",
    "doubtful_votes",
    "failing_placements",
    "largest_certified_square",
    "predict",
    "reported_confidences",
    "reported_feasibility",
    "score_margins",
    "votes_to_flip",
    "wilson_interval",
]
