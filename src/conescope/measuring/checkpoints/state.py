"""A state dict as torch has it: values by name, and what each module noted about its version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

EXTRA_STATE = "_extra_state"
"""The last part of the name under which a module stores what `get_extra_state` returns."""


class StateDict(OrderedDict[str, Any]):
    """Values by name, and for each module, by its path, the format version that it was saved in.

    Modules read the versions when they load: BatchNorm knows by them that an old file has no
    `num_batches_tracked`. torch keeps them in an attribute of this name, too.
    """

    _metadata: dict[str, dict[str, Any]]

    def __init__(self, values: Mapping[str, Any], metadata: Any = None) -> None:
        super().__init__(values)
        given = metadata if isinstance(metadata, Mapping) else {}
        self._metadata = {
            path: {k: v for k, v in noted.items() if k != "assign_to_params_buffers"}
            for path, noted in given.items()
            if isinstance(path, str) and isinstance(noted, Mapping)
        }

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Module path → what the module noted, usually its version."""
        return self._metadata


def state_dict(values: Mapping[str, Any]) -> StateDict:
    """A state dict with its metadata, if it has any."""
    return StateDict(values, getattr(values, "_metadata", None))


def is_extra_state(name: str) -> bool:
    """Whether a name in a state dict is that of a module's extra state, which is no weight."""
    return name.rpartition(".")[2] == EXTRA_STATE


def bytes_of(
    value: Any, inside: tuple[int, ...] = (), is_attribute: bool = False
) -> Iterator[bytes | memoryview]:
    """A value as bytes that are equal for equal values, in every process.

    Covered are None, numbers, texts, bytes, tensors and arrays, and whatever lists, tuples, sets
    and dicts (in any order) hold of them. Of another object the type is covered, and the attributes
    as far as they are such values. Left out is what it holds beside its attributes, and what the
    objects among its attributes hold.

    Args:
        value: anything that a state dict may hold.
        inside: the ids of the containers around it, so that one that holds itself ends.
        is_attribute: whether one of them is an object with attributes.
    """
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}(".encode()
    within = (*inside, id(value))
    if id(value) in inside:
        yield b"itself"
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        yield tensor_bytes(value)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    elif value is None or isinstance(value, str | bytes | bytearray | int | float | complex):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, torch.dtype | torch.device | torch.Size):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        yield from sorted(_whole((k, v), within, is_attribute) for k, v in value.items())
    elif isinstance(value, list | tuple):
        yield from (_whole(item, within, is_attribute) for item in value)
    elif isinstance(value, set | frozenset):
        yield from sorted(_whole(item, within, is_attribute) for item in value)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif hasattr(value, "__dict__") and not is_attribute:
        yield _whole(vars(value), within, True)
    yield b")"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, in their order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _whole(value: Any, inside: tuple[int, ...], is_attribute: bool) -> bytes:
    return b"".join(bytes_of(value, inside, is_attribute)) + b","
