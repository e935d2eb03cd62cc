"""Base classifiers, one file per family, and their checkpoints."""
