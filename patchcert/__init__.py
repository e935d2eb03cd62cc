"""Trains image classifiers and proves how many images no adversarial patch can flip."""

__version__ = "0.1.0"
