"""Reading weights that somebody else wrote: plain values only, and nothing in a file is run.

safetensors holds no code. torch's own format is a pickle, which is read by
`torch.load(weights_only=True)`: it knows how to build tensors and plain containers, and refuses
whatever else a pickle asks for before anything is called.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.state import StateDict
from conescope.measuring.checkpoints.trainers import state_dict_in

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_ARCHIVES = tuple(f"{suffix}.tar" for suffix in _TORCH_SUFFIXES)  # named so, though no archives
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES, *_ARCHIVES)
"""The kinds of file that can be read."""

_MALFORMED = (  # what torch's reader lets through when it meets bytes that are no checkpoint
    pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    ArithmeticError, AttributeError, AssertionError, struct.error, MemoryError,
)  # fmt: skip
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


def suffix_of(path: Path) -> str:
    """The end of a name that tells the kind of file, such as `.pt` or `.pth.tar`."""
    return next((s for s in _ARCHIVES if path.name.endswith(s) and path.name != s), path.suffix)


def read_weights(files: Sequence[Path]) -> StateDict:
    """The state dict that a file or several shards hold, on the CPU.

    These are tensors by name; beside them, modules may have stored plain values, such as the extra
    state of `get_extra_state`. The tensors are views of the files where the format allows it: their
    values are read from disk when they are used.

    Raises:
        CheckpointError: if a file is missing, empty, truncated or of another kind, asks for
            anything but plain values (a malicious pickle does), holds tensors that are not plain,
            no state dict or several, or two shards hold the same name.
    """
    weights = StateDict({})
    for file in files:
        found = read_tensors(file)
        if doubled := weights.keys() & found.keys():
            raise CheckpointError(
                f"{file} holds {min(doubled)}, which another shard holds, too; if these are no "
                f"shards of one checkpoint, rename them, so that no name ends in -00001-of-00003"
            )
        weights.update(found)
        weights.metadata.update(found.metadata)
    return weights


def read_tensors(file: Path) -> StateDict:
    """The state dict of one file.

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
    weights = StateDict(_read_safetensors(file, start)) if is_safetensors else _read_torch(file)
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"{file}: {name} is a meta, sparse or quantised tensor; save it as a plain one"
            )
    return weights


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


def _read_torch(file: Path) -> StateDict:
    return state_dict_in(load_torch(file), file)


def load_torch(file: Path) -> Any:
    """What a file of torch's own format holds: tensors and plain values in plain containers.

    Types that the user allowed by `torch.serialization.add_safe_globals` are read, too.

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
    asked = re.search(r"\bGLOBAL ([\w.]+)|but got <class '([\w.]+)'>", reason)
    if asked is None:
        raise CheckpointError(
            f"{file} is truncated, or no file of weights that torch.save wrote; copy it again, "
            f"leave it out, or save model.state_dict() anew"
        )
    name = asked[1] or asked[2]
    raise CheckpointError(
        f"{file} was refused, and nothing in it was run: it asks for {name}, and weights need no "
        f"such thing. If it is yours, save the state dict alone: torch.save(model.state_dict(), …)"
        f"{_allowing(name)}"
    )


def _allowing(name: str) -> str:
    """Say how to allow a type of one's own; nothing for what is known to be no type."""
    module, _, attribute = name.rpartition(".")
    known = getattr(sys.modules.get(module or "builtins"), attribute, None)
    if known is not None and not isinstance(known, type):
        return ""
    return (
        f". Or, only if you trust where the file is from, allow the type before you measure: "
        f"torch.serialization.add_safe_globals([{attribute}]), or with "
        f"torch.serialization.safe_globals([{attribute}]): …; for the command line write it in "
        f"the module that --model names"
    )
