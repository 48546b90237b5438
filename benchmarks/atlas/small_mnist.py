"""The first images of MNIST as one file of arrays, which a run reads at once.

    python -m benchmarks.atlas.small_mnist data/mnist data/small-mnist.npz

A recipe names it as `benchmarks.atlas.small_mnist:load`, with the file as `data.path`. Decoding the
whole of MNIST would take most of the time of a small run.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split
from conescope.training.data.mnist import load as load_mnist

SIZES = {"train": 10_000, "test": 1_000}
"""Split → the number of its first images that are taken."""


def load(path: str | None = None) -> Dataset:
    """Load the first images of each split.

    Args:
        path: the file that `main` has written.

    Raises:
        DataError: if no file is given, or it cannot be read.
    """
    if path is None or not Path(path).is_file():
        raise DataError(f"data.path is {path}; write the file by benchmarks.atlas.small_mnist")
    with np.load(path, allow_pickle=False) as held:
        splits = {
            name: Split(
                torch.from_numpy(held[f"{name}_images"]), torch.from_numpy(held[f"{name}_labels"])
            )
            for name in SIZES
        }
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return Dataset("small-mnist", splits["train"], splits["test"], classes=10, digest=digest)


def main() -> None:
    """Write the file from the folder of MNIST."""
    folder, file = sys.argv[1:]
    data = load_mnist(folder)
    arrays = {}
    for name, size in SIZES.items():
        split = data.split(name)
        arrays[f"{name}_images"] = split.inputs[:size].numpy()
        arrays[f"{name}_labels"] = split.labels[:size].numpy()
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main()
