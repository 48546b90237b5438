"""Weights in folders of torch.distributed.checkpoint, read without unpickling anything unguarded.

What such a folder holds is listed in `.metadata`, a pickle of torch's own classes, which torch
loads by a plain unpickler. Here the pickle is only taken apart: `pickletools` yields its
instructions, and those that build plain values are followed. Where an instruction would import or
call something, a record of the name and the arguments is made instead, so nothing of the file can
run. The values of the tensors are in other files, each a part that `torch.save` wrote, and are read
by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from conescope.errors import CheckpointError

METADATA = ".metadata"
"""The name of the list of contents, by which such a folder is known."""

MALFORMED = (  # what torch's reader lets through when it meets bytes that are no checkpoint
    pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    ArithmeticError, AttributeError, AssertionError, struct.error, MemoryError,
)  # fmt: skip
"""The errors by which damaged files are known."""

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class _Record:
    """An object that a pickle would build: the name of its class, and what it is built from."""

    kind: str
    arguments: Sequence[Any] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """A part of a tensor: where it begins and what it spans, and the bytes that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    begin: int
    length: int


class DistributedFiles:
    """The tensors of a folder of torch.distributed.checkpoint.

    Args:
        folder: the folder that holds `.metadata`.

    Attributes:
        content: nested dictionaries as they were saved, with tensors on the meta device in place
            of tensors, without values that are no tensors, and without the outermost dictionaries
            that hold but one other.

    Raises:
        CheckpointError: if the folder's list of contents is damaged, or of an unknown layout.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[int, list[_Part]] = {}
        self.content: dict[Any, Any] = {}
        try:
            self._list(_taken_apart((folder / METADATA).read_bytes()))
        except MALFORMED as error:
            self._refuse(f"its list of contents, {METADATA}, is not understood ({error})")

    def read(self, tensor: Tensor) -> Tensor:
        """Read the values of a tensor of `content`.

        Raises:
            CheckpointError: if a file is missing, damaged or holds something else.
        """
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        for part in self._parts[id(tensor)]:
            places = tuple(slice(o, o + s) for o, s in zip(part.offsets, part.sizes, strict=True))
            whole[places] = self._values(part)
        return whole

    def _values(self, part: _Part) -> Tensor:
        try:
            with part.file.open("rb") as file:
                file.seek(part.begin)
                data = io.BytesIO(file.read(part.length))
            values = torch.load(data, map_location="cpu", weights_only=True)
        except MALFORMED as error:
            self._refuse(f"a part in {part.file.name} cannot be read ({error})")
        if not isinstance(values, Tensor) or values.shape != part.sizes:
            self._refuse(f"a part in {part.file.name} is no tensor of shape {list(part.sizes)}")
        return values

    def _list(self, metadata: Any) -> None:
        """Fill `content` from the list of contents."""
        stored = {
            (index.state["fqn"], _sizes(index.state.get("offset"))): info.state
            for index, info in metadata.state["storage_data"].items()
        }
        paths = metadata.state.get("planner_data") or {}
        for name, what in metadata.state["state_dict_metadata"].items():
            if not what.kind.endswith(".TensorStorageMetadata"):
                continue
            shape = _sizes(what.state["size"]) or ()
            dtype = getattr(torch, what.state["properties"].state["dtype"].kind.split(".")[-1])
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            parts = []
            for chunk in what.state["chunks"]:
                offsets = _sizes(chunk.state["offsets"]) or ()
                info = stored.get((name, offsets)) or stored[name, None]
                parts.append(self._part(offsets, _sizes(chunk.state["sizes"]) or (), info))
            if sum(math.prod(part.sizes) for part in parts) != math.prod(shape):
                raise ValueError(f"the parts of {name} are not all of it")
            self._parts[id(tensor)] = parts
            path = paths.get(name) or (name,)
            place = self.content
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = tensor
        while len(self.content) == 1 and isinstance(
            only := next(iter(self.content.values())), dict
        ):
            self.content = only

    def _part(self, offsets: Any, sizes: Any, info: Mapping[str, Any]) -> _Part:
        name = info["relative_path"]
        if Path(name).name != name or info.get("transform_descriptors"):
            raise ValueError(f"{name} is transformed, or not beside it")
        return _Part(offsets, sizes, self._folder / name, int(info["offset"]), int(info["length"]))

    def _refuse(self, why: str) -> NoReturn:
        raise CheckpointError(
            f"{self._folder} is a folder of torch.distributed.checkpoint that cannot be read: "
            f"{why}. If you trust where it is from, convert it, and take the result: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {self._folder} "
            f"{self._folder}.pt"
        ) from None


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return the numbers of a `torch.Size`; None for None."""
    if value is None:
        return None
    return tuple(int(number) for number in value.arguments[0])


def _taken_apart(data: bytes) -> Any:
    """Follow the instructions of a pickle without importing or calling anything.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: if it is damaged, or has other
            instructions than pickles of plain values and objects have.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []

    def since_mark() -> list[Any]:
        begin = marks.pop()
        items = stack[begin:]
        del stack[begin:]
        return items

    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            stack.append(memo[argument])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Record(f"{stack[-2]}.{stack[-1]}")]
        elif name in ("NEWOBJ", "REDUCE"):
            called, arguments = stack[-2:]
            stack[-2:] = [_Record(called.kind, arguments)]
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state if isinstance(state, dict) else _of_properties(state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it has no end")


def _of_properties(state: Sequence[Any]) -> dict[str, Any]:
    """Return the state of `TensorProperties`, which is a tuple that begins with the type."""
    return {"dtype": state[0]}
