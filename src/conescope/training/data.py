"""Data: a name or a folder → a whole data set as tensors; batches, augmentation, the probe.

A set of small images fits in memory as one uint8 tensor, so batches are indexed, normalised and
augmented on the device and no training step ever waits for data. Every random choice is a
function of the seed and of what it is for, never of a generator's state: a run that is resumed
or measured sees the same images in the same order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.errors import DataError
from conescope.training.recipe_fields import DataRecipe, ProbeRecipe

CLASSES = 10
"""Number of classes, of every data set here."""

_HUB = {"mnist": ("ylecun/mnist", "image"), "cifar10": ("uoft-cs/cifar10", "img")}
_CROP_PADDING = 4


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    Attributes:
        images: [N, channels, height, width], uint8.
        labels: [N], int64, each in [0, classes).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> Split:
        """The same images on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set for classification.

    Attributes:
        name: what it is called.
        train: the images to train on.
        test: the images to evaluate on.
        classes: number of classes.
    """

    name: str
    train: Split
    test: Split
    classes: int

    def split(self, name: str) -> Split:
        """The split called "train" or "test"."""
        return {"train": self.train, "test": self.test}[name]

    def to(self, device: str) -> Dataset:
        """The same data on another device."""
        return Dataset(self.name, self.train.to(device), self.test.to(device), self.classes)


class Normalizer:
    """Turns uint8 images into network inputs of mean 0 and deviation 1 in each channel.

    Args:
        images: [N, channels, height, width], uint8: where mean and deviation are taken from.
        dtype: floating-point type of the inputs.
    """

    def __init__(self, images: Tensor, dtype: torch.dtype) -> None:
        values = torch.arange(256, dtype=torch.float64)
        rows = []
        for channel in images.cpu().transpose(0, 1).flatten(1):
            share = torch.bincount(channel, minlength=256).double() / channel.numel()
            mean = (share * values).sum()
            rows.append((values - mean) / (share * (values - mean).square()).sum().sqrt())
        self._table = torch.stack(rows).to(images.device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Inputs of shape [N, channels, height, width] from uint8 images of that shape."""
        channels = [row[images[:, c].int()] for c, row in enumerate(self._table)]
        return torch.stack(channels, dim=1)


def seed_for(seed: int, purpose: str, index: int = 0) -> int:
    """A seed of its own for each purpose and index, the same on every machine; in [0, 2⁶³)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=1)
def load_data(recipe: DataRecipe) -> Dataset:
    """Load a whole data set into memory; the newest one stays there for the next call.

    Raises:
        DataError: if the data cannot be found or read, or have another layout.
    """
    if recipe.name == "digits":
        return _load_digits(recipe)
    hub_name, column = _HUB[recipe.name]
    train, test = (_load_parquet(recipe, hub_name, column, split) for split in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{recipe.path or hub_name}: training images have shape "
            f"{tuple(train.images.shape[1:])}, test images {tuple(test.images.shape[1:])}"
        )
    return Dataset(recipe.name, train, test, CLASSES)


class BatchOrder:
    """The training images of each iteration: every epoch is a new permutation.

    Args:
        count: number of training images.
        batch_size: images an iteration; an epoch's last batch may be smaller.
        seed: the recipe's seed.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if batch_size > count:
            raise DataError(
                f"training.batch_size is {batch_size}, but there are only {count} training images"
            )
        self.iterations_per_epoch = -(-count // batch_size)
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._permutation = lru_cache(maxsize=1)(self._permute)

    def __call__(self, step: int) -> Tensor:
        """Indices of the images of iteration `step` (0 is the first); [≤ batch_size]."""
        epoch, place = divmod(step, self.iterations_per_epoch)
        start = place * self._batch_size
        return self._permutation(epoch)[start : start + self._batch_size]

    def _permute(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self._seed, "order", epoch))
        return torch.randperm(self._count, generator=generator)


def flip_and_crop(images: Tensor, seed: int) -> Tensor:
    """Flip each image left-right with probability ½, shift it by up to 4 pixels, fill with 0.

    Args:
        images: [N, channels, height, width], uint8.
        seed: decides every flip and shift.

    Returns:
        New images of the same shape and type.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 2 * _CROP_PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    rows = (draw[0] + torch.arange(height)).to(images.device)
    columns = torch.arange(width).expand(count, width)
    columns = (draw[1] + torch.where(flips, columns.flip(1), columns)).to(images.device)
    padded = F.pad(images, [_CROP_PADDING] * 4)
    picked = torch.arange(count, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def choose_probe(split: Split, recipe: ProbeRecipe, classes: int, seed: int) -> Tensor:
    """The images on which the kernel is taken.

    Args:
        split: where they come from.
        recipe: how many, and whether stratified by class.
        classes: number of classes.
        seed: the recipe's seed.

    Returns:
        Rising indices into the split, [size].

    Raises:
        DataError: if the split, or one of its classes, has too few images.
    """
    if recipe.size > len(split):
        raise DataError(
            f"probe.size is {recipe.size}, but the {recipe.split} split has only {len(split)} "
            f"images; choose a smaller probe"
        )
    generator = torch.Generator().manual_seed(seed_for(seed, "probe"))
    order = torch.randperm(len(split), generator=generator)
    if not recipe.stratified:
        return order[: recipe.size].sort().values
    labels = split.labels.cpu()[order]
    wanted = [recipe.size // classes + (c < recipe.size % classes) for c in range(classes)]
    chosen = []
    for label, size in enumerate(wanted):
        members = order[labels == label]
        if len(members) < size:
            raise DataError(
                f"a stratified probe of {recipe.size} needs {size} images of class {label}, but "
                f"the {recipe.split} split has {len(members)}; choose a smaller probe, or set "
                f"probe.stratified to false"
            )
        chosen.append(members[:size])
    return torch.cat(chosen).sort().values


def _load_digits(recipe: DataRecipe) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if recipe.path is not None:
        raise DataError("data.path is for mnist and cifar10; digits come with scikit-learn")
    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = targets.astype(np.int64)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    train, test = Split(train_images, train_labels), Split(test_images, test_labels)
    return Dataset("digits", train, test, CLASSES)


def _load_parquet(recipe: DataRecipe, hub_name: str, column: str, split: str) -> Split:
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    source = hub_name if recipe.path is None else str(Path(recipe.path) / f"{split}.parquet")
    layout = f"train.parquet and test.parquet, laid out as {hub_name} on the Hugging Face Hub"
    try:
        if recipe.path is None:
            rows = datasets.load_dataset(hub_name, split=split)
        elif Path(source).is_file():
            rows = datasets.load_dataset("parquet", data_files={split: source}, split=split)
        else:
            raise DataError(f"{source} does not exist; data.path is a folder that holds {layout}")
        missing = {column, "label"} - set(rows.column_names)
        if missing:
            raise DataError(
                f"{source} has the columns {', '.join(rows.column_names)}, but {recipe.name} "
                f"needs {column} and label; data.path is a folder that holds {layout}"
            )
        pictures = rows.cast_column(column, datasets.Image())[column]
        return _to_split([np.asarray(picture) for picture in pictures], rows["label"][:], source)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        cure = "offline, give --data.path DIR," if recipe.path is None else "data.path is"
        raise DataError(f"cannot load {source}: {reason}; {cure} a folder with {layout}") from error


def _to_split(arrays: list[np.ndarray], labels: list[int], source: str) -> Split:
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise DataError(f"{source}: images must have one size, found {len(shapes)} different ones")
    images = torch.from_numpy(np.stack(arrays))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    classes = torch.tensor(labels, dtype=torch.int64)
    if classes.min() < 0 or classes.max() >= CLASSES:
        raise DataError(f"{source}: labels must lie in 0 … {CLASSES - 1}; the file holds others")
    return Split(images, classes)
