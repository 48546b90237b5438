"""Labelled samples to fine-tune on and to test with: classes counted, a test set split off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.measuring.probe import Probe, class_labels, count, digest, is_plain, items
from conescope.measuring.texts import Tokens, tokenise

Labelled = tuple[Probe, Tensor | Sequence[int] | Sequence[str]]
"""A model's inputs for n samples, and their n labels: numbers from 0 on, or texts."""

TEST_SHARE = 1 / 3
"""The share of the samples that is split off as the test set where none is given."""

_SPLIT_SEED = 0


@dataclass(frozen=True)
class Samples:
    """Samples for training and for the test.

    Attributes:
        inputs: those of all N samples, as the model takes them.
        labels: [N], int64, from 0 to c − 1.
        train: [n], the places of the training samples among the N.
        test: [m], the places of the test samples.
        classes: the names of the c classes, in the order of their numbers.
        notes: what was done to the data that its owner should know, one sentence each.
    """

    inputs: Probe
    labels: Tensor
    train: Tensor
    test: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def description(self) -> dict[str, Any]:
        """Describe the samples: equal for equal data."""
        parts = {"train": self.train, "test": self.test, "labels": self.labels}
        return {
            "samples": f"{len(self.train):,} to train on, {len(self.test):,} to test with",
            "classes": ", ".join(self.classes),
            "data": f"{digest(self.inputs)} {digest(parts)}",
        }


def samples_of(
    data: Labelled,
    test: Labelled | None = None,
    notes: Sequence[str] = (),
) -> Samples:
    """Check labelled samples and bring them into one form; nothing is computed.

    Args:
        data: inputs of n samples, and their labels.
        test: the same of the test samples; None to split off a third of `data`, chosen at random
            by a seed of its own.
        notes: what else is to be said of the data.

    Raises:
        DataError: if there are no labels, not one for each sample, one class only, a test label
            that is not trained on, or more classes than training samples.
        ModelError: if the inputs are no batch of finite numbers, or differ in kind.
    """
    inputs, labels = _pair(data, "data")
    _check_kind(inputs, "data")
    sizes = [count(inputs)]
    parts = [labels]
    if test is not None:
        more, more_labels = _pair(test, "test")
        _check_kind(more, "test")
        sizes.append(count(more))
        parts.append(more_labels)
        inputs = _joined(inputs, more)
    for name, size, part in zip(("data", "test"), sizes, parts, strict=False):
        if len(part) != size:
            raise DataError(
                f"{name}: {size} samples have {len(part)} labels; give one for each, in order"
            )
    numbers, names, said = _numbered(parts)
    labels = torch.tensor(class_labels(numbers, sum(sizes)))
    if test is None:
        train, held = _split(labels)
        share = f"{len(held):,} of {sizes[0]:,} samples"
        said.append(f"no test set was given: {share} were split off at random")
    else:
        train, held = torch.arange(sizes[0]), torch.arange(sizes[0], sum(sizes))
    said += _about_unseen(labels[train], len(names))
    found = Samples(inputs, labels, train, held, names, (*notes, *said))
    _check(found)
    return found


def _about_unseen(labels: Tensor, classes: int) -> list[str]:
    """Say how many of the classes have no training sample."""
    unseen = classes - len(labels.unique())
    if unseen == 0:
        return []
    return [
        f"{unseen} of the {classes} classes have no training sample, so training learns only that "
        f"they do not occur; classes are numbered from 0 on, without gaps"
    ]


def tokenised(
    data: Labelled, test: Labelled | None, tokenizer: Any
) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    """Turn texts into tokens, all of one length; inputs of other kinds stay as they are.

    Args:
        data: inputs of n samples, and their labels.
        test: the same of the test samples, or None.
        tokenizer: of transformers, or None.

    Returns:
        Both, and what is to be said of them.

    Raises:
        DataError: if there are texts and no tokenizer; otherwise as `tokenise`.
    """
    pairs = [_pair(data, "data")] + ([] if test is None else [_pair(test, "test")])
    if not all(_are_texts(inputs) for inputs, _ in pairs):
        return data, test, ()
    if tokenizer is None:
        raise DataError("the inputs are texts; give the model's tokenizer with tokenizer=…")
    tokens = tokenise([str(text) for texts, _ in pairs for text in texts], tokenizer)
    size = len(pairs[0][0])
    parts = [
        ({name: values[part] for name, values in tokens.inputs.items()}, labels)
        for part, (_, labels) in zip((slice(size), slice(size, None)), pairs, strict=False)
    ]
    return parts[0], parts[1] if len(parts) > 1 else None, tokens_notes(tokens)


def tokens_notes(tokens: Tokens) -> tuple[str, ...]:
    """Say what was done to texts to make tokens of them."""
    if not tokens.truncated:
        return ()
    return (f"{tokens.truncated} texts were cut at {tokens.length} tokens",)


def _are_texts(inputs: Any) -> bool:
    is_list = isinstance(inputs, list | tuple) and len(inputs) > 0
    return is_list and all(isinstance(one, str) for one in inputs)


def _pair(data: Any, name: str) -> tuple[Probe, Sequence[Any]]:
    if not isinstance(data, tuple) or len(data) != 2 or data[1] is None:
        raise DataError(
            f"{name} is a pair of inputs and labels, (x, y); labels are needed to train"
        )
    inputs, labels = data
    if isinstance(labels, Tensor):
        if not is_plain(labels):
            raise DataError(f"{name}: the labels are no plain tensor with values; give a list")
        labels = labels.tolist()
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise DataError(f"{name}: the labels are {labels!r}; give one for each sample, in order")
    return inputs, list(labels)


def _check_kind(inputs: Any, name: str) -> None:
    is_list = isinstance(inputs, list | tuple)
    if isinstance(inputs, Tensor | Mapping) or (
        is_list and inputs and isinstance(inputs[0], Tensor)
    ):
        return
    kind = type(inputs).__name__
    if is_list and inputs:
        kind += f" of {type(inputs[0]).__name__}"
    raise DataError(
        f"{name}: the inputs are a {kind}; give a tensor (torch.as_tensor makes one of numbers), "
        f"several by name, or texts both to train on and to test with"
    )


def _numbered(
    parts: Sequence[Sequence[Any]],
) -> tuple[list[int], tuple[str, ...], list[str]]:
    """Return all labels as numbers, the names of the classes, and what is to be said of it."""
    labels = [label for part in parts for label in part]
    if not labels:
        raise DataError("there are no labels; a class for each sample is needed to train")
    if all(isinstance(label, str) for label in labels):
        names = tuple(sorted(set(parts[0])))
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise DataError(
                f"test: the class {unknown[0]!r} is not among those trained on; leave its samples "
                f"out, or train on some"
            )
        listed = ", ".join(f"{name} is {k}" for k, name in enumerate(names[:10]))
        more = ", …" if len(names) > 10 else ""
        return [names.index(label) for label in labels], names, [
            f"the labels are texts, numbered in alphabetical order: {listed}{more}"
        ]  # fmt: skip
    if any(isinstance(label, str) for label in labels):
        raise DataError("some labels are names and some are not; give names or numbers to all")
    class_labels(labels, len(labels))
    _check_count(max(labels) + 1, len(labels))  # before there is a name for each
    return labels, tuple(map(str, range(max(labels) + 1))), []


def _split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places to train on and those to test with."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    held = round(len(labels) * TEST_SHARE)
    return order[held:].sort().values, order[:held].sort().values


def _check(samples: Samples) -> None:
    labels = samples.labels[samples.train]
    present = len(labels.unique())
    if present < 2:
        raise DataError(
            f"all {len(labels)} training samples are of one class, so there is nothing to learn; "
            f"give samples of at least two"
        )
    _check_count(len(samples.classes), len(labels))
    if len(samples.test) == 0:
        raise DataError("there are no test samples; give some, or more samples to split them off")


def _check_count(classes: int, labels: int) -> None:
    if classes > labels:
        raise DataError(
            f"{classes:,} classes are more than the {labels:,} training samples; is the column of "
            f"labels one of classes?"
        )


def _joined(a: Probe, b: Probe) -> Probe:
    """Return the inputs of the training samples and, behind them, of the test samples."""
    first, second = dict(items(a)), dict(items(b))
    for name, value in first.items():
        other = second.get(name)
        if name not in second:
            continue
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            if type(value) is not type(other) or value != other:
                raise DataError(
                    f"test: {name} is not what it is in the training data; both need one value, or "
                    f"a tensor of one for each sample"
                )
            continue
        if value.shape[1:] != other.shape[1:] or value.dtype != other.dtype:
            raise DataError(
                f"test: a sample {name} has shape {list(other.shape[1:])} {other.dtype}, and in "
                f"the training data {list(value.shape[1:])} {value.dtype}; prepare both alike"
            )
    if first.keys() != second.keys():
        named = [", ".join(map(str, one)) or "one tensor" for one in (second, first)]
        raise DataError(
            f"test: the inputs are {named[0]}, and not {named[1]}; give both sets the same inputs"
        )
    joined = {
        name: torch.cat([value, second[name]]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }
    if isinstance(a, Tensor):
        return joined[""]
    return joined if isinstance(a, Mapping) else tuple(joined.values())
