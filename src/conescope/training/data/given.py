"""Data sets from what a user's own function returns: tensors, or data sets of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split

_KINDS = ("train", "test")
_CONTRACT = (
    'it has to return "train" and "test", as a mapping, a pair or a Dataset, and each of them as a '
    "pair of tensors (inputs, labels) or a map-style torch.utils.data.Dataset"
)


def as_dataset(found: object, name: str) -> Dataset:
    """Return a data set from its two splits.

    Args:
        found: {"train": split, "test": split} or (train, test), where a split is (inputs [N, …],
            labels [N] or [N, T]), or a map-style torch.utils.data.Dataset of items (input, label).
            The items are read once, one after the other, into one tensor.
        name: what to call it.

    Returns:
        The data set; its number of classes is the largest label + 1.

    Raises:
        DataError: if it is something else, or these are no data that a network can train on.
    """
    if isinstance(found, Mapping) and found.keys() == {"train", "test"}:
        parts = found["train"], found["test"]
    elif isinstance(found, tuple | list) and len(found) == 2:
        parts = tuple(found)
    else:
        raise DataError(f"{name} returns {_described(found)}; {_CONTRACT}")
    train, test = (
        _split(part, f"{name}, {kind}") for part, kind in zip(parts, _KINDS, strict=True)
    )
    largest = [int(part.labels.max()) for part in (train, test)]
    classes, labels = 1 + max(largest), sum(part.labels.numel() for part in (train, test))
    if classes > labels:
        raise DataError(
            f"{name}: the largest label is {classes - 1}, but there are only {labels} labels; "
            f"number the classes from 0, or return a Dataset, which says how many there are"
        )
    return Dataset(name, train, test, classes)


def _split(found: object, where: str) -> Split:
    if isinstance(found, Split):
        return found
    if isinstance(found, TorchDataset):
        found = _items(found, where)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise DataError(f"{where}: there is {_described(found)}; {_CONTRACT}")
    inputs, labels = (_tensor(part, where) for part in found)
    try:
        return Split(inputs, _whole(labels))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _items(data: TorchDataset[Any], where: str) -> tuple[Tensor, Tensor]:
    """Read all items of a map-style data set, and stack them."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise DataError(f"{where}: {_described(data)} is no map-style data set; {_CONTRACT}")
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    for number in range(len(data)):  # type: ignore[arg-type]
        item = data[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"{where}: item {number} is {_described(item)}, not (input, label); return pairs"
            )
        inputs.append(_tensor(item[0], f"{where}, item {number}"))
        labels.append(_tensor(item[1], f"{where}, item {number}"))
        label, first = labels[-1], labels[0]
        is_label = label.numel() == 1 or label.shape == inputs[0].shape == first.shape
        if inputs[-1].shape != inputs[0].shape or not is_label:
            raise DataError(
                f"{where}: item {number} has an input {list(inputs[-1].shape)} and a label "
                f"{list(labels[-1].shape)}; all inputs need the shape of the first, "
                f"{list(inputs[0].shape)}, and a label is one number, or one for each token"
            )
    if not inputs:
        raise DataError(f"{where}: there are no samples; return at least one")
    sizes = () if labels[0].numel() == 1 else labels[0].shape
    return torch.stack(inputs), torch.stack([label.reshape(sizes) for label in labels])


def _tensor(found: object, where: str) -> Tensor:
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, np.ndarray | np.generic | int | float):
        array = np.asarray(found, order="C")
        if array.dtype.kind not in "biufc":
            raise DataError(
                f"{where}: there is an array of {array.dtype} instead of numbers; convert it"
            )
        try:
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise DataError(f"{where}: {str(error).partition('. ')[0]}; convert it") from None
    raise DataError(
        f"{where}: there is {_described(found)} instead of a tensor or a number; convert it"
    )


def _whole(labels: Tensor) -> Tensor:
    """Return labels as int64, if they are whole numbers."""
    whole = labels.to(torch.int64)
    if not labels.is_floating_point() and not labels.is_complex():
        return whole
    if labels.is_complex() or not bool((whole == labels).all()):
        raise DataError("labels are whole numbers from 0, and some are not; number the classes")
    return whole


def _described(found: object) -> str:
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} with {', '.join(map(repr, found)) or 'nothing in it'}"
    return f"a {type(found).__name__}"
