"""Suites: everything that recomputes a paper's tables and figures, by name. Settings only, no torch, no pandas."""

from patchcert.suites import derandomized_smoothing, randomized_cropping
from patchcert.suites.registry import SUITES, Experiment, Networks, Suite, SuiteSpec, find_suite, names_suite

__all__ = [
    "SUITES",
    "Experiment",
    "Networks",
    "Suite",
    "SuiteSpec",
    "derandomized_smoothing",
    "find_suite",
    "names_suite",
    "randomized_cropping",
]
