"""Cutting views out of image batches on the device, and encoding what was removed."""
