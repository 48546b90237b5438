"""CIFAR-10: 32 × 32 colour images of ten classes, 50,000 to train on and 10,000 to test on."""

from __future__ import annotations

from conescope.training.data.dataset import Dataset
from conescope.training.data.parquet import load_images


def load(path: str | None = None, most_decoded: int | None = None) -> Dataset:
    """Load CIFAR-10.

    Args:
        path: a folder with train.parquet and test.parquet to read instead of the Hub.
        most_decoded: as for `load_images`.

    Raises:
        DataError: if it cannot be found or read, or has another layout.
    """
    return load_images("cifar10", "uoft-cs/cifar10", "img", path, 10, most_decoded)
