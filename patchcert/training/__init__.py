"""The training loop of one process."""
