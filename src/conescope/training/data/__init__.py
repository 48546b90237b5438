"""Data sets, the order of their samples, and augmentation."""

from conescope.training.data.dataset import Dataset, Split, load_data

__all__ = ["Dataset", "Split", "load_data"]
