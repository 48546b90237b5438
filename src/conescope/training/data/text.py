"""The bytes of a text, cut into sequences whose classes are the next bytes."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import torch

from conescope.errors import DataError
from conescope.runs.foreign import GIGABYTE, read_bounded
from conescope.training.data.dataset import Dataset, Split

_OWN = "pydoc_data.topics"
_BYTES = 256
_LARGEST = 4 * GIGABYTE


def load(path: str | None = None, context: int = 64, test: float = 0.1) -> Dataset:
    """Cut a text into sequences of bytes one after the other; the class of each is the next byte.

    Args:
        path: a file; None for the text behind Python's `help()`: the topics of `pydoc_data`, from
            Python's reference manual, which every Python has and which differs between versions.
        context: number of bytes of a sequence.
        test: share of the text, at its end, that is not trained on, above 0 and below 1.

    Raises:
        DataError: if there is no such text, or it is too short for a sequence in each split.
    """
    name, text = _python_topics() if path is None else _read(path)
    if context < 1:
        raise DataError(f"data.context must be at least 1, not {context}")
    if not 0 < test < 1:
        raise DataError(f"data.test is a share of the text, above 0 and below 1, not {test}")
    border = len(text) - round(test * len(text))
    parts = text[:border], text[border:]
    if min(map(len, parts)) <= context:
        raise DataError(
            f"data.context is {context}, but of {name}, {len(text):,} bytes, there are "
            f"{len(parts[0]):,} to train on and {len(parts[1]):,} to test on, and each split needs "
            f"one more than data.context; choose a shorter context, or a longer text"
        )
    train, held_out = (_sequences(part, context) for part in parts)
    digest = f"{name}, {len(text):,} bytes, sha256 {hashlib.sha256(text).hexdigest()[:16]}"
    return Dataset("text", train, held_out, classes=_BYTES, vocabulary=_BYTES, digest=digest)


def _sequences(text: bytes, context: int) -> Split:
    count = (len(text) - 1) // context
    whole = bytearray(text[: count * context + 1])  # a buffer that torch may write to
    values = torch.frombuffer(whole, dtype=torch.uint8).long()
    return Split(values[:-1].view(count, context), values[1:].view(count, context))


def _python_topics() -> tuple[str, bytes]:
    try:
        topics: dict[str, str] = importlib.import_module(_OWN).topics
    except ModuleNotFoundError:
        raise DataError(
            f"this Python comes without {_OWN}, the text behind help(); name a text of your own "
            f"with --data.path FILE"
        ) from None
    return _OWN, "\n".join(topics[name] for name in sorted(topics)).encode()


def _read(path: str) -> tuple[str, bytes]:
    return Path(path).name, read_bounded(path, DataError, _LARGEST)
