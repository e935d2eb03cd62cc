"""Whether an attack can win: votes and geometry in, verdicts with their guarantee out; one file per theorem."""

from patchcert.certificates.counting import certify_counting, votes_to_flip
from patchcert.certificates.intervals import wilson_interval
from patchcert.certificates.outcomes import Outcome, predict
from patchcert.certificates.placement import certify_placement
from patchcert.certificates.reported_crops import Feasibility, certify_random_crops_reported, reported_feasibility
from patchcert.certificates.squares import certified_accuracy_by_side, largest_certified_square
from patchcert.errors import CertificateError

__all__ = [
    "CertificateError",
    "Feasibility",
    "Outcome",
    "certified_accuracy_by_side",
    "certify_counting",
    "certify_placement",
    "certify_random_crops_reported",
    "largest_certified_square",
    "predict",
    "reported_feasibility",
    "votes_to_flip",
    "wilson_interval",
]
