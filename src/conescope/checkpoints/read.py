"""Reading weights that somebody else wrote: tensors only, and nothing in a file is ever run.

safetensors holds no code. torch's own format is a pickle, which is read by
`torch.load(weights_only=True)`: it knows how to build tensors and plain containers, and refuses
whatever else a pickle asks for before anything is called.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conescope.errors import CheckpointError

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)
"""The kinds of file that can be read."""

_STATE_DICTS = ("state_dict", "model_state_dict", "model")
_MALFORMED = (  # what torch's reader lets through when it meets bytes that are no checkpoint
    pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    ArithmeticError, AttributeError, AssertionError, struct.error, MemoryError,
)  # fmt: skip
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The weights that a file or several shards hold, by name, on the CPU.

    The tensors are views of the files where the format allows it: their values are read from disk
    when they are used.

    Raises:
        CheckpointError: if a file is missing, empty, truncated or of another kind, asks for
            anything but tensors (a malicious pickle does), holds some that are not plain, or two
            shards hold the same name.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        found = read_tensors(file)
        if doubled := weights.keys() & found.keys():
            raise CheckpointError(f"{file} holds {min(doubled)}, which another shard holds, too")
        weights |= found
    return weights


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file.

    Raises:
        CheckpointError: as `read_weights`.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    if not start:
        raise CheckpointError(f"{file} is empty; copy it again, or leave it out")
    is_safetensors = file.suffix == ".safetensors"
    tensors = _read_safetensors(file, start) if is_safetensors else _read_torch(file)
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"{file}: {name} is a meta, sparse or quantised tensor; save it as a plain one"
            )
    return tensors


def _read_safetensors(file: Path, start: bytes) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        if start.startswith(_PICKLE_STARTS):
            raise CheckpointError(
                f"{file} is no safetensors file but a pickle, and was not opened; if you trust "
                f"where it is from, name it .pt: its weights are then read, and nothing else"
            ) from None
        raise CheckpointError(
            f"{file} is truncated or no safetensors file ({error}); copy it again, or leave it out"
        ) from None


def _read_torch(file: Path) -> dict[str, Tensor]:
    content = load_torch(file)
    if isinstance(content, Mapping):
        held = [content[name] for name in _STATE_DICTS if _is_state_dict(content.get(name))]
        for candidate in [content, *held]:
            if _is_state_dict(candidate):
                return dict(candidate)
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise CheckpointError(
        f"{file} holds no state dict but a {type(content).__name__}"
        f"{f' with the keys {keys}' if keys else ''}; save model.state_dict(), alone or under "
        f"one of the keys {', '.join(_STATE_DICTS)}"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items())
    )


def load_torch(file: Path) -> Any:
    """What a file of torch's own format holds: tensors in plain containers.

    Raises:
        CheckpointError: if it asks for anything else, or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a TorchScript archive is warned of, then refused
        try:
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except _MALFORMED as error:
            reason = str(error)
    if asked := re.search(r"\bGLOBAL ([\w.]+)", reason):
        raise CheckpointError(
            f"{file} was refused, and nothing in it was run: it asks for {asked[1]}, and weights "
            f"need no such thing. If it is yours, save the state dict alone: "
            f"torch.save(model.state_dict(), …)"
        )
    raise CheckpointError(
        f"{file} is truncated, or no file of weights that torch.save wrote; copy it again, leave "
        f"it out, or save model.state_dict() anew"
    )
