"""Read texts and their classes from a file, and turn them into a language model's inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.measuring.text_files import READERS, TEXT, Columns

_UNKNOWN_LENGTH = 10**9  # transformers notes 1e30 for a tokenizer whose context is not known
_MOST_CLASSES = 2**16


@dataclass(frozen=True)
class Texts:
    """Texts, each with its class if the classes are known.

    Attributes:
        texts: n texts, none of them empty.
        labels: [n], the class of each as a whole number from 0 on; None without classes.
        classes: the name of each class; None without classes.
    """

    texts: tuple[str, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Tokens:
    """Texts as the inputs of a language model: all of one length, cut or padded on the right.

    Attributes:
        inputs: "input_ids" and "attention_mask" (1 for tokens, 0 for padding), and what else the
            tokenizer gives for each token, such as "token_type_ids"; each [n, T] int64.
        length: the number T of tokens to which every text was cut or padded.
        padding: the number of padding tokens, over all texts.
        truncated: the number of texts that were cut.
        padded_with: the token that fills the padding, which the mask leaves out.
    """

    inputs: dict[str, Tensor]
    length: int
    padding: int
    truncated: int
    padded_with: str


def read_texts(path: str | Path, column: str | None = None, labels: str | None = None) -> Texts:
    """Read texts from a file.

    Args:
        path: .jsonl (an object a line), .csv (with a first line of names), .parquet, or .txt (a
            text a line); in UTF-8.
        column: the name of the column or key that holds the texts; by default "text" or, without
            one, the only column beside `labels` (but not the only one of a .csv, whose first line
            may be a text).
        labels: the name of a column of classes: whole numbers from 0 on, or names, which are
            numbered in the order of the alphabet.

    Returns:
        The texts, in the order of the file.

    Raises:
        DataError: if the file is missing, empty, damaged or of another kind; if there is no such
            column, a text is empty or no text, or a class is missing or of another type.
    """
    path = Path(path)
    if (suffix := path.suffix.lower()) not in READERS:
        raise DataError(f"the texts {path} are of no known kind; give {', '.join(READERS)}")
    if not os.path.isfile(path):  # which is false for a name that no file can have
        raise DataError(f"the texts {path} do not exist; look for a typing mistake in the name")
    columns, names = READERS[suffix](path)
    if not columns or not any(columns.values()):
        raise DataError(f"the texts {path} hold nothing; write at least one text into the file")
    if suffix == ".txt" and (labels or column not in (None, TEXT)):
        raise DataError(
            f"the texts {path} have no columns, and so no {labels or column}; save them as .jsonl "
            f'with a line {{"text": …, "label": …}} for each'
        )
    texts = _column(columns, column or _text_column(columns, labels, path), path)
    _check_texts(texts, path)
    if labels is None:
        return Texts(tuple(texts))
    return Texts(tuple(texts), *_classes(_column(columns, labels, path), names.get(labels), path))


def tokenise(
    texts: Sequence[str],
    tokenizer: Any,
    length: int | None = None,
    *,
    context: int | None = None,
) -> Tokens:
    """Turn texts into the inputs of a language model.

    A tokenizer without a padding token pads with its end-of-text token or, without one, with its
    first token: the attention mask leaves padding out, whichever token it is.

    Args:
        texts: n texts.
        tokenizer: the model's tokenizer, of transformers; it stays as it is.
        length: the number of tokens to which every text is cut or padded; by default that of the
            longest text, or of the context if that is shorter.
        context: the most tokens that the model takes, if the tokenizer does not know.

    Raises:
        DataError: if `length` is over the context or leaves no room for a token of the text, or a
            text gives no token.
    """
    known = [c for c in (context, tokenizer.model_max_length) if c and 0 < c < _UNKNOWN_LENGTH]
    most = min(known, default=None)
    special = tokenizer.num_special_tokens_to_add()
    if length is not None and most is not None and length > most:
        raise DataError(
            f"a length of {length} tokens is over the {most} of the model's context; leave the "
            f"length out, or give at most {most}"
        )
    if length is not None and length <= special:
        raise DataError(
            f"a length of {length} tokens leaves no room beside the {special} special tokens that "
            f"the tokenizer adds; give at least {special + 1}"
        )
    _check_letters(texts)
    whole = _encoded(texts, tokenizer, None)
    lengths = [len(ids) for ids in whole["input_ids"]]
    for place, (text, count) in enumerate(zip(texts, lengths, strict=True)):
        if count == 0:
            raise DataError(
                f"text {place + 1}, {text[:40]!r}, gives no token, so the model has nothing to "
                f"read; leave it out"
            )
    limit = length or min(max(lengths), most or max(lengths))
    truncated = sum(count > limit for count in lengths)
    rows = _encoded(texts, tokenizer, limit) if truncated else whole
    padding = sum(limit - len(ids) for ids in rows["input_ids"])
    pad, padded_with = _padding_token(tokenizer)
    fills = {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    inputs = {
        name: torch.tensor([[*row, *[fills.get(name, 0)] * (limit - len(row))] for row in values])
        for name, values in rows.items()
    }
    return Tokens(inputs, limit, padding, truncated, padded_with)


def _check_letters(texts: Sequence[str]) -> None:
    for place, text in enumerate(texts, start=1):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(
                f"text {place} holds a code point of UTF-16 (a surrogate) that is no letter; mend "
                f"it or leave it out"
            )


def _encoded(texts: Sequence[str], tokenizer: Any, limit: int | None) -> dict[str, list[list[int]]]:
    is_cut = limit is not None
    encoded = tokenizer(
        list(texts),
        truncation=is_cut,
        max_length=limit,
        padding=False,
        return_attention_mask=True,
        verbose=False,
    )
    return {name: list(values) for name, values in encoded.items()}


def _padding_token(tokenizer: Any) -> tuple[int, str]:
    """Return the number and the text of the token that fills the padding."""
    for name in ("pad_token", "eos_token"):
        number = getattr(tokenizer, f"{name}_id", None)
        if number is not None:
            return number, str(getattr(tokenizer, name))
    return 0, str(tokenizer.convert_ids_to_tokens(0))


def _text_column(columns: Columns, labels: str | None, path: Path) -> str:
    if TEXT in columns:
        return TEXT
    others = [name for name in columns if name != labels]
    if len(others) == 1 and path.suffix.lower() == ".csv" and labels is None:
        raise DataError(
            f"the first line of {path} names no column {TEXT!r}, and may be a text itself: "
            f"{others[0][:40]!r}; write a first line {TEXT!r}, or name the column by --column"
        )
    if len(others) == 1:
        return others[0]
    raise DataError(
        f"the texts {path} have no column {TEXT!r}; say which one holds the texts: "
        f"{', '.join(others)}"
    )


def _column(columns: Columns, name: str, path: Path) -> Sequence[Any]:
    if name not in columns:
        raise DataError(f"the texts {path} have no column {name!r}; they have {', '.join(columns)}")
    return columns[name]


def _check_texts(texts: Sequence[Any], path: Path) -> None:
    for place, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = "missing" if text is None else f"a {type(text).__name__}"
            raise DataError(
                f"text {place} of {path} is {kind}, not a text; mend it or leave it out"
            )
    if empty := [place for place, text in enumerate(texts, start=1) if not text.strip()]:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"text {empty[0]} of {path} is empty{more}, so the model has nothing to read there; "
            f"leave empty texts out"
        )


def _classes(
    values: Sequence[Any], names: Sequence[str] | None, path: Path
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the classes of the texts as numbers, and the name of each class."""
    if all(isinstance(value, str) and value.isdecimal() and len(value) < 9 for value in values):
        values = [int(value) for value in values]
    if all(isinstance(value, str) and value.strip() for value in values):
        names = sorted(set(values))
        numbers = {name: number for number, name in enumerate(names)}
        return torch.tensor([numbers[value] for value in values]), tuple(names)
    for place, value in enumerate(values, start=1):
        if type(value) is not int or not 0 <= value < _MOST_CLASSES:
            raise DataError(
                f"the class of text {place} of {path} is {value!r}; classes are whole numbers from "
                f"0 on, or names for all texts"
            )
    count = max(values) + 1
    known = tuple(names) if names and len(names) >= count else tuple(map(str, range(count)))
    return torch.tensor(values), known
