"""The 1,797 handwritten digits that come with scikit-learn: 8 × 8 grey images of ten classes.

Its file is read, and split as `sklearn.model_selection.train_test_split` does, without loading
scikit-learn, which takes a process as long as loading torch.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split

_TEST = 360
"""Number of samples to test on."""


def load() -> Dataset:
    """Load the digits: 1,437 to train on, and 360 to test on, as many of each class as can be.

    Raises:
        DataError: if scikit-learn is not installed, or has no such file.
    """
    rows = _rows()
    images = np.rint(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    train, test = (
        Split(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))
        for chosen in _stratified(labels)
    )
    return Dataset("digits", train, test, classes=10)


def _rows() -> np.ndarray:
    """Return the pixels, from 0 to 16, and the class of each sample; [1797, 65]."""
    found = find_spec("sklearn")
    folder = Path(found.origin).parent if found is not None and found.origin else Path("sklearn")
    try:
        with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            return np.loadtxt(file, delimiter=",")
    except OSError as error:
        raise DataError(
            f"cannot read scikit-learn's digits: {error}; install it: pip install scikit-learn"
        ) from error


def _stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples to train on, and those to test on; no sample is left.

    It is scikit-learn's algorithm with `random_state=0`: the stream of `RandomState` never changes.
    """
    draws = np.random.RandomState(0)
    counts = np.bincount(labels)
    training = _shares(counts, len(labels) - _TEST, draws)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for kind, count in enumerate(counts):
        shuffled = np.flatnonzero(labels == kind)[draws.permutation(count)]
        train.append(shuffled[: training[kind]])
        test.append(shuffled[training[kind] :])
    return draws.permutation(np.concatenate(train)), draws.permutation(np.concatenate(test))


def _shares(counts: np.ndarray, total: int, draws: np.random.RandomState) -> np.ndarray:
    """Return how many of each class make up a total, in proportion; ties are broken at random."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    missing = int(total - shares.sum())
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (tied,) = np.where(remainders == remainder)
        chosen = draws.choice(tied, size=min(len(tied), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)
