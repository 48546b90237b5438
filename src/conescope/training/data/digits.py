"""The 1,797 handwritten digits that come with scikit-learn: 8 × 8 grey images of ten classes."""

from __future__ import annotations

import numpy as np
import torch

from conescope.training.data.dataset import Dataset, Split


def load() -> Dataset:
    """Load the digits: 1,437 to train on, and 360 to test on, as many of each class as can be."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = targets.astype(np.int64)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    train, test = Split(train_images, train_labels), Split(test_images, test_labels)
    return Dataset("digits", train, test, classes=10)
