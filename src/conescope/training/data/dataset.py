"""Data sets of samples and classes, by name.

A whole data set is in memory, as one tensor of inputs and one of labels for each split, so that
batches are indexed, normalised and augmented on the device, and no iteration ever waits for data.

A data set is loaded by a function, in a file of its own, that is given `path` if it names this
argument; its other arguments are its options in a recipe. It returns a `Dataset`, or what
`conescope.training.data.given` makes one of. Those of `DATASETS` are given `most_decoded` too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.training.parts import Part, find_part
from conescope.training.recipe_fields import DataRecipe

DATASETS = {
    "modular-addition": "conescope.training.data.modular_addition:load",
    "text": "conescope.training.data.text:load",
    "digits": "conescope.training.data.digits:load",
    "mnist": "conescope.training.data.mnist:load",
    "cifar10": "conescope.training.data.cifar10:load",
}
"""Name in a recipe → what loads the data set."""

_TYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Samples and their classes.

    Attributes:
        inputs: [N, …]: uint8 images [N, channels, height, width], floating-point numbers, or
            other whole numbers such as token ids.
        labels: int64, each at least 0: [N], or, for token ids [N, T], [N, T]: the class of every
            position, such as the next token.

    Raises:
        DataError: if these are no such tensors, hold nothing, or hold NaN or infinite numbers.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        inputs, labels = self.inputs, self.labels
        for tensor in (inputs, labels):
            if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
                raise DataError(
                    "samples are plain dense tensors, not sparse, nested or meta ones; convert "
                    "them with to_dense() or padding"
                )
        if inputs.dim() < 1 or labels.dtype != torch.int64 or labels.dim() not in (1, 2):
            raise DataError(
                f"a split has inputs [N, …] and labels [N] of torch.int64, not {_of(inputs)} and "
                f"{_of(labels)}"
            )
        if labels.dim() == 2 and not (is_tokens(inputs) and inputs.shape == labels.shape):
            raise DataError(
                f"labels [N, T] of every position are for token ids [N, T] of torch.int64, as many "
                f"of each, not {_of(inputs)} and {_of(labels)}"
            )
        if len(inputs) != len(labels):
            raise DataError(
                f"there are {len(inputs)} inputs, but {len(labels)} labels; give each its label"
            )
        if not len(labels):
            raise DataError("there are no samples; give at least one in each split")
        if not inputs.numel():
            raise DataError(
                f"the samples hold no numbers: inputs are {_of(inputs)}; look at how they are made"
            )
        if inputs.dtype == torch.uint8 and inputs.dim() != 4:
            raise DataError(
                f"inputs of torch.uint8 are images [N, channels, height, width], not "
                f"{list(inputs.shape)}; give token ids as torch.int64, and numbers as torch.float32"
            )
        if inputs.dtype not in _TYPES:
            raise DataError(
                f"inputs are whole or floating-point numbers, not {inputs.dtype}; give them as "
                f"torch.int64 or torch.float32"
            )
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise DataError(
                "inputs hold NaN or infinite numbers; leave these samples out, or mend them"
            )
        if int(labels.min()) < 0:
            raise DataError(
                f"labels are whole numbers from 0, and one is {int(labels.min())}; number the "
                f"classes from 0 on"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def last_labels(self) -> Tensor:
        """The class of each sample, or of its last position, whose kernel is taken; [N]."""
        return self.labels if self.labels.dim() == 1 else self.labels[:, -1]

    def to(self, device: str) -> Split:
        """Return the same samples on another device."""
        return Split(self.inputs.detach().to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set of samples and their classes.

    Attributes:
        name: what it is called.
        train: the samples to train on.
        test: the samples to evaluate on.
        classes: number of classes.
        vocabulary: number of token ids that samples may hold, if they are token ids [N, T]; the
            largest of both splits + 1 unless it is given. None for other samples.
        digest: what identifies the data, such as a sha256, if they may differ between machines;
            a run notes it, and goes on with the same data only.

    Raises:
        DataError: if these are no splits that fit each other, `classes` or `vocabulary` is no int,
            or a label or token id is not below it.
    """

    name: str
    train: Split
    test: Split
    classes: int
    vocabulary: int | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.train, Split) and isinstance(self.test, Split)):
            raise DataError(
                f"{self.name}: train and test have to be of the class Split; wrap inputs and "
                f"labels by conescope.training.data.Split"
            )
        if type(self.classes) is not int:
            raise DataError(
                f"{self.name}: classes has to be an int, not {self.classes!r}; give their number"
            )
        train, test = self.train.inputs, self.test.inputs
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(
                f"{self.name}: training inputs are {_of(train)}, test inputs {_of(test)}; both "
                f"need samples of one shape and type"
            )
        if self.train.labels.dim() != self.test.labels.dim():
            raise DataError(
                f"{self.name}: one split has a label for each sample, the other for each position; "
                f"label both alike"
            )
        largest = max(int(split.labels.max()) for split in (self.train, self.test))
        if largest >= self.classes:
            raise DataError(
                f"{self.name}: labels must lie in 0 … {self.classes - 1}, and one is {largest}; "
                f"set classes to {largest + 1} or more, or leave the sample out"
            )
        object.__setattr__(self, "vocabulary", self._checked_vocabulary())

    def _checked_vocabulary(self) -> int | None:
        samples = self.train.inputs, self.test.inputs
        if not is_tokens(samples[0]):
            if self.vocabulary is not None:
                raise DataError(
                    f"{self.name}: a vocabulary is for token ids [N, T] of torch.int64, not for "
                    f"{_of(samples[0])}; leave it out"
                )
            return None
        smallest, largest = min(int(s.min()) for s in samples), max(int(s.max()) for s in samples)
        if self.vocabulary is None:
            return largest + 1 if smallest >= 0 else None
        if type(self.vocabulary) is not int or not 0 <= smallest <= largest < self.vocabulary:
            raise DataError(
                f"{self.name}: token ids must lie in 0 … vocabulary − 1, and they lie in "
                f"{smallest} … {largest} while vocabulary is {self.vocabulary!r}; set "
                f"vocabulary to the number of token ids"
            )
        return self.vocabulary

    def split(self, name: str) -> Split:
        """Return the split called "train" or "test"."""
        return {"train": self.train, "test": self.test}[name]

    def to(self, device: str) -> Dataset:
        """Return the same data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def is_tokens(inputs: Tensor) -> bool:
    """Return whether inputs are token ids, [N, T]: whole numbers other than uint8."""
    return not inputs.is_floating_point() and inputs.dtype != torch.uint8 and inputs.dim() == 2


def find_dataset(recipe: DataRecipe) -> Part:
    """Find what loads the data set that a recipe names: one of `DATASETS`, or a user's own.

    Raises:
        RecipeError: if there is none of this name.
    """
    filled = {"path", "most_decoded"} if recipe.name.lower() in DATASETS else {"path"}
    return find_part("data", recipe.name, DATASETS, filled=frozenset(filled))


def load_data(recipe: DataRecipe, most_decoded: int | None = None) -> Dataset:
    """Load a whole data set into memory; the newest one stays there for the next call.

    Fields that choose from the data set or change it, such as `label_noise`, are not looked at.

    Args:
        recipe: which data set.
        most_decoded: if images are stored encoded, how many of a split are decoded at most; they
            are repeated for the others, which is enough to time a training. None for all of them.

    What a user's own code raises comes through as it is; random numbers that it draws from torch's
    global generator are the same each time.

    Raises:
        RecipeError: if there is no such data set, or it has no such option.
        DataError: if the data cannot be found or read, are none that a network can train on, or
            the recipe gives a path to a data set that takes none.
    """
    part = find_dataset(recipe)
    if not ("most_decoded" in part.filled and part.takes("most_decoded")):
        most_decoded = None
    return _load(DataRecipe(recipe.name, recipe.path, options=recipe.options), most_decoded)


@lru_cache(maxsize=1)
def _load(recipe: DataRecipe, most_decoded: int | None) -> Dataset:
    part = find_dataset(recipe)
    if recipe.path is not None and not part.takes("path"):
        raise DataError(f"data.path is {recipe.path}, and {recipe.name} takes none; set it to null")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = {"path": recipe.path, "most_decoded": most_decoded}
        available = {name: values[name] for name in part.filled}
        found = part(available=available, options=recipe.options)
    if isinstance(found, Dataset):
        return found
    from conescope.training.data.given import as_dataset  # which imports this file

    return as_dataset(found, recipe.name)


def is_at_hand(recipe: DataRecipe) -> bool:
    """Return whether a data set loads without a download, and without a user's own code."""
    is_within = recipe.name in ("digits", "modular-addition", "text")
    return is_within or (recipe.name in DATASETS and recipe.path is not None)


def _of(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}"
