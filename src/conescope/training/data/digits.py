"""The 1,797 handwritten digits that come with scikit-learn: 8 × 8 grey images of ten classes."""

from __future__ import annotations

import gzip
import warnings
import zlib
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

_IMAGES, _TRAIN = 1797, 1437


def load() -> Dataset:
    """Load the digits: 1,437 to train on, and 360 to test on, as many of each class as can be.

    The library itself is not imported, which would take longer than all else here.

    Raises:
        DataError: if scikit-learn is not installed, or its file is missing or damaged.
    """
    rows = _rows()
    pixels, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1]
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    order = [int(place) for place in _ORDER.read_text(encoding="ascii").split()]
    train, test = (
        Split(torch.from_numpy(images[part]), torch.from_numpy(labels[part]))
        for part in (order[:_TRAIN], order[_TRAIN:])
    )
    return Dataset("digits", train, test, classes=10)


def _rows() -> np.ndarray:
    """Return the pixels, 0 to 16, and the class of each image, [1797, 65]."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "scikit-learn, which has the digits, is not installed; "
            "pip install 'scikit-learn>=1.4,<2'"
        )
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt", encoding="ascii") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of a file without a line
            rows = np.loadtxt(opened, delimiter=",", dtype=np.int64, ndmin=2)
        if rows.shape != (_IMAGES, 65):
            raise ValueError(f"{rows.shape} numbers")
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"scikit-learn's file of digits is damaged or missing ({error}); "
            f"pip install --force-reinstall 'scikit-learn>=1.4,<2'"
        ) from None
    return rows
