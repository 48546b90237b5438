"""The 1,797 handwritten digits that come with scikit-learn: 8 × 8 grey images of ten classes."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split

_ORDER = Path(__file__).with_name("digits_order.txt")
"""The images to train on, then those to test on, by their places in scikit-learn's file.

`train_test_split(numpy.arange(1797), test_size=360, stratify=labels, random_state=0)` gives them.
"""

_TRAIN = 1437


def load() -> Dataset:
    """Load the digits: 1,437 to train on, and 360 to test on, as many of each class as can be.

    The library itself is not imported, which takes as long as all of torch.

    Raises:
        DataError: if scikit-learn is not installed, or its file is not where it was.
    """
    found = find_spec("sklearn")
    file = Path(found.origin if found and found.origin else "") / "../datasets/data/digits.csv.gz"
    try:
        with gzip.open(file.resolve(), "rt", encoding="ascii") as opened:
            rows = np.loadtxt(opened, delimiter=",", dtype=np.int64)
    except OSError as error:
        raise DataError(
            f"the digits are not in scikit-learn ({error}); pip install 'scikit-learn>=1.4,<2'"
        ) from None
    pixels, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1]
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    order = [int(place) for place in _ORDER.read_text(encoding="ascii").split()]
    train, test = (
        Split(torch.from_numpy(images[part]), torch.from_numpy(labels[part]))
        for part in (order[:_TRAIN], order[_TRAIN:])
    )
    return Dataset("digits", train, test, classes=10)
