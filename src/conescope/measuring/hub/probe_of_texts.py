"""Turn texts into the probe of a language model, and say how."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conescope.errors import CheckpointError, DataError, ModelError
from conescope.measuring.adapt import Pool
from conescope.measuring.checkpoints.weight_files import some_of
from conescope.measuring.hub import SCHEME
from conescope.measuring.hub.repositories import Repositories
from conescope.measuring.probe import Probe
from conescope.measuring.text_files import READERS
from conescope.measuring.texts import Texts, Tokens, tokenise
from conescope.runs.foreign import shorten

DATASETS = f"{SCHEME}datasets/"

BEGINNING = 200
"""Letters of a text that a run stores, to show which texts moved the kernel."""

_MAIN, _IDS = "main", "input_ids"


@dataclass(frozen=True)
class ProbeOfTexts:
    """Texts as a model's inputs.

    Attributes:
        inputs: name → tensor [n, T], for those inputs that the model takes.
        pool: which token's outputs are measured, see `adapt`.
        words: the same for people, such as "64 texts of 32 tokens (2 cut)".
        labels: the classes of the texts, if they are known.
        beginnings: how each text begins; None if the inputs are no texts.
    """

    inputs: Probe
    pool: Pool | Tensor | None
    words: str
    labels: Tensor | Sequence[int] | None
    beginnings: list[str] | None = None


def probe_of(
    texts: Texts,
    tokenizer: Any,
    model: nn.Module,
    pool: Pool | Tensor | Literal["mask"] | None,
    *,
    length: int | None,
    context: int | None,
) -> ProbeOfTexts:
    """Turn texts into a model's inputs.

    Args:
        texts: the texts.
        tokenizer: the model's tokenizer.
        model: the model, whose `forward` names its inputs.
        pool: "last", "mean" or None, see `adapt`; or "mask", to put the mask token in the place of
            the last token of each text, and measure there.
        length: see `tokenise`.
        context: see `tokenise`.

    Raises:
        DataError: as `tokenise`; or if a token is to be masked, and the tokenizer has no mask.
        ModelError: if the model does not take these inputs.
    """
    tokens = tokenise(texts.texts, tokenizer, length, context=context)
    inputs = dict(tokens.inputs)
    if isinstance(pool, str) and pool == "mask":
        inputs["input_ids"], pool = _masked(inputs, tokenizer)
    inputs = _taken(inputs, model, has_padding=tokens.padding > 0)
    beginnings = [shorten(text, BEGINNING) for text in texts.texts]
    words = _words(len(texts.texts), tokens)
    return ProbeOfTexts(inputs, pool, words, texts.labels, beginnings)


def _taken(inputs: Mapping[str, Tensor], model: nn.Module, *, has_padding: bool) -> Probe:
    """Return those of the inputs that the model's `forward` takes by name."""
    reads = getattr(model, "main_input_name", _IDS)
    if reads != _IDS:
        raise ModelError(
            f"{type(model).__name__} reads {reads}, and no texts; build it by --model "
            f"package.module:build, and give its inputs by --probe"
        )
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if _IDS in parameters:
        taken = {name: value for name, value in inputs.items() if name in parameters}
    elif takes_all:
        taken = dict(inputs)
    else:
        raise ModelError("the model's forward takes no input_ids, as texts become; give --probe")
    if has_padding and "attention_mask" not in taken:
        raise ModelError(
            "the model's forward takes no attention_mask, so that padding would count; cut all "
            "texts to the length of the shortest by --length"
        )
    return taken


def _masked(inputs: Mapping[str, Tensor], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Put the mask token in the place of the last token of each text that is no special one."""
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the tokenizer has no mask token, at which a masked language model is measured; take "
            "the mean over tokens instead: --pool mean"
        )
    ids = inputs["input_ids"].clone()
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    is_text = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor([*special]))
    if not bool(is_text.any(dim=1).all()):
        number = int((~is_text.any(dim=1)).nonzero()[0]) + 1
        raise DataError(f"text {number} has special tokens only, and none to mask; leave it out")
    places = (torch.arange(ids.shape[1]) * is_text).argmax(dim=1)
    ids[torch.arange(len(ids)), places] = tokenizer.mask_token_id
    return ids, places


def _words(count: int, tokens: Tokens) -> str:
    notes = []
    if tokens.truncated:
        notes.append(f"{tokens.truncated:,} cut")
    if tokens.padding:
        notes.append(f"{tokens.padding:,} tokens of padding, {tokens.padded_with}, masked out")
    about = f" ({'; '.join(notes)})" if notes else ""
    return f"{count:,} text{'' if count == 1 else 's'} of {tokens.length:,} tokens{about}"


def dataset_file(address: str, where: Repositories, folder: Path) -> Path:
    """Fetch the file of texts that an address on the Hub stands for.

    Args:
        address: `hf://datasets/org/name`, if the data set is one file, or with the file's path in
            it behind: `hf://datasets/org/name/data/test.parquet`; main is taken.
        where: the Hub, or a folder in its layout.
        folder: where to put the file.

    Raises:
        CheckpointError: if there is no such data set, or it cannot be fetched.
        DataError: if it holds no such file of texts, or several.
    """
    parts = address.removeprefix(DATASETS).strip("/").split("/")
    name, path = "/".join(parts[:2]), "/".join(parts[2:])
    if len(parts) < 2:
        raise CheckpointError(f"{address} names no data set; write {DATASETS}ORGANISATION/NAME")
    refs = where.refs(name, "dataset")
    if _MAIN not in refs:
        raise CheckpointError(f"the data set {name} has no revision {_MAIN}; download it by hand")
    files = [file for file in where.files(refs[_MAIN]) if Path(file).suffix in READERS]
    chosen = [file for file in files if not path or file == path]
    if len(chosen) != 1:
        has = f"it has {some_of(files, 6)}" if files else f"it has none of {', '.join(READERS)}"
        raise DataError(
            f"say which file of {name} holds the texts, as {DATASETS}{name}/FILE; {has}"
        )
    return where.fetch(refs[_MAIN], chosen, folder) / chosen[0]


def first(texts: Texts, count: int | None) -> Texts:
    """Return the first texts, with their classes.

    Raises:
        DataError: if there are not so many.
    """
    if count is None:
        return texts
    if not 1 <= count <= len(texts.texts):
        raise DataError(
            f"{count} texts are asked for, and there are {len(texts.texts)}; ask for as many"
        )
    labels = None if texts.labels is None else texts.labels[:count]
    return Texts(texts.texts[:count], labels, texts.classes)


def as_texts(texts: Sequence[str]) -> Texts:
    """Check texts that are given in Python.

    Raises:
        DataError: if there is none, or one is empty.
    """
    if len(texts) == 0:
        raise DataError("there are no texts; give at least one")
    for place, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {place} is {text!r}, and has nothing to read; leave it out")
    return Texts(tuple(texts))
