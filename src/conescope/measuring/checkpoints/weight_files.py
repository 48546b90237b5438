"""Weights in files that another program wrote: plain values only, and no code of a file is run.

A safetensors file holds no code. torch's own format is a pickle, which is read by
`torch.load(weights_only=True)`: it knows how to build tensors and plain containers, and refuses
whatever else a pickle asks for before anything is called.
"""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.distributed_files import MALFORMED, METADATA, DistributedFiles
from conescope.runs.foreign import check_regular

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_ARCHIVES = tuple(f"{suffix}.tar" for suffix in _TORCH_SUFFIXES)  # named so, though no archives
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES, *_ARCHIVES)
"""The kinds of file that can be read."""

_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "model_state",
         "net_state_dict")  # fmt: skip
_VAGUE_KEYS = ("params", "weights")
_AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema",
             "model_ema_state_dict", "params_ema")  # fmt: skip

_MOST_EXPANDED = 2**24  # bytes up to which a tensor may be more than what its file holds
_EXTRA_STATE = "_extra_state"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


class StateDict(OrderedDict[str, Any]):
    """A state dict as torch has it: values by name, and the format version of each module.

    Modules read the versions when they load: BatchNorm knows by them that an old file has no
    `num_batches_tracked`. torch keeps them in the attribute `_metadata`, too.

    Args:
        values: name → value.
        metadata: module path → what the module noted; by default that of `values`, if any.
    """

    _metadata: dict[str, dict[str, Any]]

    def __init__(self, values: Mapping[str, Any], metadata: Any = None) -> None:
        super().__init__(values)
        noted = getattr(values, "_metadata", None) if metadata is None else metadata
        self._metadata = {
            path: {k: v for k, v in each.items() if k != "assign_to_params_buffers"}
            for path, each in (noted if isinstance(noted, Mapping) else {}).items()
            if isinstance(path, str) and isinstance(each, Mapping)
        }

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Module path → what the module noted, usually its version."""
        return self._metadata


def is_extra_state(name: str) -> bool:
    """Return whether a name belongs to what a module's `get_extra_state` gave: no weight."""
    return name.rpartition(".")[2] == _EXTRA_STATE


def suffix_of(path: Path) -> str:
    """Return the end of a name that tells the kind of file, such as `.pt` or `.pth.tar`."""
    return next((s for s in _ARCHIVES if path.name.endswith(s) and path.name != s), path.suffix)


def some_of(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of some names, and how many more there are, for a message."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def read_weights(files: Sequence[Path]) -> StateDict:
    """Read the state dict that a file or several shards hold, onto the CPU.

    Beside tensors, modules may have stored plain values, such as the extra state of
    `get_extra_state`. The tensors are views of the files where the format allows it: their values
    are read from disk when they are used.

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
    """Read the state dict of one file.

    Raises:
        CheckpointError: as `read_weights`.
    """
    check_regular(file, CheckpointError)
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check the path") from None
    if not start:
        raise CheckpointError(f"{file} is empty; copy it again, or leave it out")
    if file.name == METADATA:
        distributed = DistributedFiles(file.parent)
        chosen = _chosen(distributed.content, file.parent)
        return StateDict({name: distributed.read(v) for name, v in chosen.items()}, {})
    is_safetensors = file.suffix == ".safetensors"
    weights = _read_safetensors(file, start) if is_safetensors else _chosen(load_torch(file), file)
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"{file}: {name} is a meta, sparse or quantised tensor; save it as a plain one"
            )
        if tensor.nbytes > max(tensor.untyped_storage().nbytes(), _MOST_EXPANDED):
            raise CheckpointError(
                f"{file}: {name} stands for {tensor.nbytes:,} bytes, of which the file holds few: "
                f"the same values many times over; save it as {name}.contiguous()"
            )
    return weights


def load_torch(file: Path) -> Any:
    """Read a file of torch's own format: tensors and plain values in plain containers.

    Types that the user allowed by `torch.serialization.add_safe_globals` are read, too.

    Raises:
        CheckpointError: if it asks for anything else, or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a TorchScript archive is warned of, then refused
        try:
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except MALFORMED as error:
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
        f"such thing; if it is yours, save the state dict alone: torch.save(model.state_dict(), …)"
        f"{_allowing(name)}"
    )


def _allowing(name: str) -> str:
    """Say how to allow a type of the user's own; return "" for what is known to be no type."""
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


def _read_safetensors(file: Path, start: bytes) -> StateDict:
    try:
        return StateDict(load_file(file))
    except SafetensorError as error:
        if start.startswith(_PICKLE_STARTS):
            raise CheckpointError(
                f"{file} is no safetensors file but a pickle, and was not opened; if you trust "
                f"where it is from, name it .pt: its weights are then read, and nothing else"
            ) from None
        raise CheckpointError(
            f"{file} is truncated or no safetensors file ({error}); copy it again, or leave it out"
        ) from None


def _chosen(content: Any, file: Path) -> StateDict:
    """Find the state dict that a file's content is, or holds under one of the usual keys.

    Where averaged weights of the model are beside those that it trains, the latter are taken.
    """
    if _is_state_dict(content) and all(isinstance(value, Tensor) for value in content.values()):
        return StateDict(content)
    for keys in (_KEYS, _VAGUE_KEYS, _AVERAGES) if isinstance(content, Mapping) else ():
        held = [key for key in keys if _is_state_dict(content.get(key))]
        if len(held) > 1:
            raise CheckpointError(
                f"{file} holds several state dicts, under the keys {', '.join(held)}; save the one "
                f"that is to be measured alone: torch.save(content[{held[0]!r}], …)"
            )
        if held:
            return StateDict(content[held[0]])
    if _is_state_dict(content):
        return StateDict(content)
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise CheckpointError(
        f"{file} holds no state dict but a {type(content).__name__}"
        f"{f' with the keys {keys}' if keys else ''}; save model.state_dict(), alone or under "
        f"one of the keys {', '.join((*_KEYS, *_VAGUE_KEYS))}"
    )


def _is_state_dict(content: Any) -> bool:
    """Return whether this is tensors by name, among which a module may have put other values.

    What `state_dict()` returned is known by its attribute `_metadata`.
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    has_versions = isinstance(getattr(content, "_metadata", None), Mapping)
    return any(isinstance(value, Tensor) for value in content.values()) and (
        has_versions
        or not any(_holds_tensors(v) for name, v in content.items() if _is_a_trainers(name))
    )


def _is_a_trainers(name: str) -> bool:
    """Return whether a trainer may have chosen a name, rather than a module of a model."""
    return "." not in name and not is_extra_state(name)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(inner, Tensor | Mapping) for inner in value.values()
    )
