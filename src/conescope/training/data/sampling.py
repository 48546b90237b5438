"""Which samples are taken, to train on, in each iteration and as the probe, and as what inputs.

Every random choice is a function of the seed and of what it is for, never of a generator's state:
a run that goes on later, or is measured, sees the same samples in the same order.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split, load_data
from conescope.training.recipe_fields import DataRecipe, ProbeRecipe


def seed_for(seed: int, purpose: str, index: int = 0) -> int:
    """Return a seed for a purpose and index: the same on every machine, in [0, 2⁶³)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python, from which own networks may draw."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same, without three formatted stacks that torch keeps for accelerators to come
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def load_chosen(recipe: DataRecipe, seed: int, most_decoded: int | None = None) -> Dataset:
    """Load a recipe's data, with the training samples and labels that it asks for.

    Each sample's noise depends on its place in the whole data set, and a smaller choice of
    samples is part of a larger one.

    Args:
        recipe: what to load; see `label_noise` and `train_size`.
        seed: the recipe's seed.
        most_decoded: as for `load_data`.

    Raises:
        DataError: if they cannot be loaded, or are fewer than `train_size`.
    """
    data = load_data(recipe, most_decoded)
    inputs, labels = data.train.inputs, data.train.labels
    if recipe.label_noise:
        generator = torch.Generator().manual_seed(seed_for(seed, "label noise"))
        is_drawn = torch.rand(labels.shape, generator=generator) < recipe.label_noise
        drawn = torch.randint(data.classes, labels.shape, generator=generator)
        labels = torch.where(is_drawn, drawn, labels)
    if recipe.train_size is not None:
        if recipe.train_size > len(labels):
            raise DataError(
                f"data.train_size is {recipe.train_size:,}, but {recipe.name} has only "
                f"{len(labels):,} training samples; set it to at most {len(labels)}, or to null"
            )
        generator = torch.Generator().manual_seed(seed_for(seed, "training samples"))
        order = torch.randperm(len(labels), generator=generator)
        chosen = order[: recipe.train_size].sort().values
        inputs, labels = inputs[chosen], labels[chosen]
    return data if labels is data.train.labels else replace(data, train=Split(inputs, labels))


class BatchOrder:
    """The training samples of each iteration: of a new permutation every epoch, or drawn anew.

    Args:
        count: number of training samples.
        batch_size: samples an iteration; the last batch of a permutation may be smaller.
        seed: the recipe's seed.
        replacement: whether the samples of each batch are drawn with replacement from all, and
            there are no permutations.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, *, replacement: bool = False
    ) -> None:
        if batch_size > count:
            raise DataError(
                f"training.batch_size is {batch_size}, but there are only {count} training "
                f"samples; set it to at most {count}"
            )
        self.iterations_per_epoch = -(-count // batch_size)
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._replacement = replacement
        self._permutation = lru_cache(maxsize=1)(self._permute)

    def smallest(self, steps: int) -> int:
        """Return the size of the smallest batch of the first `steps` iterations."""
        rest = 0 if self._replacement else self._count % self._batch_size
        return rest if rest and steps >= self.iterations_per_epoch else self._batch_size

    def __call__(self, step: int) -> Tensor:
        """Return the indices of the samples of iteration `step`, from 0 on; [≤ batch_size]."""
        if self._replacement:
            generator = torch.Generator().manual_seed(seed_for(self._seed, "replacement", step))
            return torch.randint(self._count, (self._batch_size,), generator=generator)
        epoch, place = divmod(step, self.iterations_per_epoch)
        start = place * self._batch_size
        return self._permutation(epoch)[start : start + self._batch_size]

    def _permute(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self._seed, "order", epoch))
        return torch.randperm(self._count, generator=generator)


def choose_probe(split: Split, recipe: ProbeRecipe, classes: int, seed: int) -> Tensor:
    """Choose the samples on which the kernel is taken.

    Args:
        split: where they come from.
        recipe: how many, and whether stratified by class.
        classes: number of classes.
        seed: the recipe's seed.

    Returns:
        Rising indices into the split, [size].

    Raises:
        DataError: if the split, or one of its classes, has too few samples.
    """
    if recipe.size > len(split):
        raise DataError(
            f"probe.size is {recipe.size}, but the {recipe.split} split has only {len(split)} "
            f"samples; choose a smaller probe"
        )
    generator = torch.Generator().manual_seed(seed_for(seed, "probe"))
    order = torch.randperm(len(split), generator=generator)
    if not recipe.stratified:
        return order[: recipe.size].sort().values
    labels = split.last_labels.cpu()[order]
    wanted = [recipe.size // classes + (c < recipe.size % classes) for c in range(classes)]
    chosen = []
    for label, size in enumerate(wanted):
        members = order[labels == label]
        if len(members) < size:
            raise DataError(
                f"a stratified probe of {recipe.size} needs {size} samples of class {label}, but "
                f"the {recipe.split} split has {len(members)}; choose a smaller probe, or set "
                f"probe.stratified to false"
            )
        chosen.append(members[:size])
    return torch.cat(chosen).sort().values


class Normalizer:
    """Turns a data set's samples into a network's inputs.

    uint8 images get mean 0 and deviation 1 in each channel, floating-point samples the network's
    floating-point type; other whole numbers, such as token ids, stay as they are.

    Args:
        samples: [N, …], those of training: where mean and deviation are taken from.
        dtype: floating-point type of the network.

    Raises:
        DataError: if all images have one value throughout a channel.
    """

    def __init__(self, samples: Tensor, dtype: torch.dtype) -> None:
        self._dtype = dtype
        if samples.dtype != torch.uint8:
            return
        values = torch.arange(256, dtype=torch.float64)
        rows = []
        for number, channel in enumerate(samples.cpu().transpose(0, 1).flatten(1)):
            share = torch.bincount(channel, minlength=256).double() / channel.numel()
            mean = (share * values).sum()
            deviation = (share * (values - mean).square()).sum().sqrt()
            if not deviation > 0:
                raise DataError(
                    f"all training images have the value {channel[0]} throughout channel {number}, "
                    f"which cannot be normalised; leave the channel out"
                )
            rows.append((values - mean) / deviation)
        self._table = torch.stack(rows).to(samples.device, dtype)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return a network's inputs [n, …] from samples [n, …]."""
        if samples.dtype == torch.uint8:
            channels = [row[samples[:, c].int()] for c, row in enumerate(self._table)]
            return torch.stack(channels, dim=1)
        return samples.to(self._dtype) if samples.is_floating_point() else samples


def every_value(samples: Tensor) -> Tensor:
    """Return images [256, channels, 1, 1] of all values instead of images; others as they are.

    They stand for images of which a few are known only, which say nothing of mean and deviation.
    """
    if samples.dtype != torch.uint8:
        return samples
    values = torch.arange(256, dtype=torch.uint8, device=samples.device)
    return values.view(-1, 1, 1, 1).expand(-1, samples.shape[1], -1, -1)
