"""Find out what a forward pass writes to the attributes and tensors of a model, and undo it."""

from __future__ import annotations

import copy
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conescope.engine.tracing.dispatch import Watching
from conescope.engine.tracing.forward import shown
from conescope.errors import ModelError

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_OBJECT_DEPTH = 3
"""Objects inside of objects are searched to this depth for what a forward pass may write."""
_OPAQUE = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType,
           MethodType, nn.Module, torch.dtype, torch.device)  # fmt: skip
_OPAQUE_PACKAGES = ("torch", "lightning", "pytorch_lightning")
_SMALL = 2**20
"""Tensors of so many numbers in all are saved each time, which takes less than a millisecond."""
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[Tensor]]] = (
    weakref.WeakKeyDictionary()
)
"""Model → the tensors of its state that its forward pass was seen to write."""
_MOVING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose forward pass was seen to put tensors of their state elsewhere in memory."""


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Undo, on leaving, what was done to modules' attributes and the containers in them."""
    attributes = Attributes(model)
    try:
        yield
    finally:
        attributes.restore()


class Attributes:
    """The attributes of a model's modules at one moment, with what the containers in them hold.

    Attributes:
        tensors: all tensors among them, parameters and buffers included, by id.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[int, Tensor] = {}
        self._namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._put_back: list[Callable[[], object]] = []
        self._seen: set[int] = set()
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # its attributes are not Python's
                self._note_all([*module.parameters(False), *module.buffers(False)], 0)
                continue
            own = {k: v for k, v in module.__dict__.items() if k not in _OF_EVERY_MODULE}
            self._namespaces.append((module.__dict__, own))
            for name in ("_parameters", "_buffers"):
                held = module.__dict__[name]
                self._containers.append((held, dict(held)))
                self._note_all(held.values(), 0)
            self._note_all(own.values(), 0)

    def restore(self) -> None:
        """Undo every change."""
        for namespace, own in self._namespaces:
            for name in [k for k in namespace if k not in own and k not in _OF_EVERY_MODULE]:
                del namespace[name]
            for name, value in own.items():
                if namespace.get(name, self) is not value:
                    namespace[name] = value
        for container, content in self._containers:
            _refill(container, content)
        for put_back in self._put_back:
            put_back()

    def _note_all(self, values: Any, depth: int) -> None:
        for value in values:
            self._note(value, depth)

    def _note(self, value: Any, depth: int) -> None:
        if isinstance(value, _OPAQUE) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
        elif isinstance(value, np.ndarray | bytearray):
            self._containers.append((value, value.copy()))
        elif isinstance(value, torch.Generator):
            self._put_back.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._put_back.append(partial(setattr, bits, "state", copy.deepcopy(bits.state)))
        elif isinstance(value, random.Random | np.random.RandomState):
            set_state, get_state = (
                (value.setstate, value.getstate)
                if isinstance(value, random.Random)
                else (value.set_state, value.get_state)
            )
            self._put_back.append(partial(set_state, get_state()))
        elif isinstance(value, dict):
            self._containers.append((value, dict(value)))
            self._note_all(value.values(), depth)
        elif isinstance(value, list | deque | set):
            self._containers.append((value, list(value)))
            self._note_all(list(value), depth)
        elif isinstance(value, tuple):
            self._note_all(value, depth)
        elif depth < _OBJECT_DEPTH and _is_plain_object(value):
            self._namespaces.append((value.__dict__, dict(value.__dict__)))
            self._note_all(list(value.__dict__.values()), depth + 1)


def _is_plain_object(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    return package not in _OPAQUE_PACKAGES and isinstance(getattr(value, "__dict__", None), dict)


def _refill(container: Any, content: Any) -> None:
    """Give a container its content back, unless it still has it."""
    if isinstance(container, np.ndarray):
        np.copyto(container, content)
    elif isinstance(container, bytearray):
        container[:] = content
    elif isinstance(container, dict):
        if not _same_items(container, content):
            container.clear()
            container.update(content)
    elif isinstance(container, set):
        if len(container) != len(content) or not all(item in container for item in content):
            container.clear()
            container.update(content)
    elif len(container) != len(content) or any(
        a is not b for a, b in zip(container, content, strict=True)
    ):
        container.clear()
        container.extend(content)


def _same_items(left: Mapping[Any, Any], right: Mapping[Any, Any]) -> bool:
    return list(left) == list(right) and all(left[key] is right[key] for key in right)


def writes_weights(model: nn.Module) -> bool:
    """Return whether a forward pass was seen to write parameters, or to move the model's state."""
    return model in _MOVING or any(isinstance(t, nn.Parameter) for t in _written(model))


@contextmanager
def watching_writes(model: nn.Module) -> Iterator[None]:
    """Find out, inside, which tensors of its state a model writes, and put their values back.

    The tensors found are remembered: `untouched` saves them from then on.
    """
    tensors = list(Attributes(model).tensors.values())
    guard = _WriteGuard(tensors)
    places = [(t, t.data_ptr()) for t in tensors if _is_plain(t)]
    try:
        with guard:
            yield
    finally:
        if any(t.data_ptr() != place for t, place in places):
            _MOVING.add(model)
        with torch.no_grad():
            for tensor, value in guard.saved.values():
                tensor.copy_(value)
        known = _WRITTEN.setdefault(model, [])
        held = {id(reference()) for reference in known}
        known += [weakref.ref(t) for t, _ in guard.saved.values() if id(t) not in held]


class SavedValues:
    """The values of the tensors that a forward pass may write, and versions of all others.

    Saved are the tensors that were seen to be written, and the smallest others, since a write by
    way of `.data` or NumPy changes no version and would go unnoticed.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[int, Tensor]) -> None:
        self._model = model
        self._places = [(t, t.data) for t in tensors.values() if not t.is_inference()]
        saved = {id(t): t for t in _written(model)}
        numbers = 0
        for key, t in sorted(tensors.items(), key=lambda item: item[1].numel()):
            numbers += t.numel()
            if numbers > _SMALL:
                break
            if _is_plain(t):
                saved[key] = t
        self._saved = [(t, t.detach().clone()) for t in saved.values() if not t.is_inference()]
        self._others = [
            (t, t._version)
            for key, t in tensors.items()
            if key not in saved and not t.is_inference()
        ]

    def restore(self) -> None:
        """Put back what has been written."""
        with torch.no_grad():
            for tensor, data in self._places:
                if _is_plain(data) and tensor.data_ptr() != data.data_ptr():
                    tensor.data = data
            for tensor, value in self._saved:
                if not _same_bits(tensor, value):
                    tensor.copy_(value)

    def refuse_lost(self) -> None:
        """Raise `ModelError` if another tensor has been written, whose values are lost."""
        known = set(map(id, _written(self._model)))
        for tensor, version in self._others:
            if tensor._version != version and id(tensor) not in known:
                raise ModelError(
                    f"the forward pass has written {_name_of(tensor, self._model)}, which it did "
                    f"not do when it was first tried, so that its values before are lost; make "
                    f"the forward pass leave it alone"
                )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized


def _same_bits(tensor: Tensor, value: Tensor) -> bool:
    return torch.equal(tensor, value) or bool(((tensor == value) | (tensor != tensor)).all())


def _written(model: nn.Module) -> list[Tensor]:
    return [t for reference in _WRITTEN.get(model, []) if (t := reference()) is not None]


def _name_of(tensor: Tensor, model: nn.Module) -> str:
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, held in named:
            if held is tensor:
                return f"{kind} {shown(model, name)!r}"
    return f"a tensor of shape {tuple(tensor.shape)} among the model's attributes"


class _WriteGuard(Watching):
    """Saves a copy of every tensor of a model just before an operation writes to it.

    Attributes:
        saved: id → (the tensor, its values before).
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._by_storage: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.layout is torch.strided and not tensor.is_meta:
                pointer = tensor.untyped_storage().data_ptr()
                self._by_storage.setdefault(pointer, []).append(tensor)
        self._writes: dict[Any, tuple[tuple[int, str], ...]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._writes:
            self._writes[func] = tuple(
                (number, argument.name)
                for number, argument in enumerate(func._schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            )
        for number, name in self._writes[func]:
            written = args[number] if number < len(args) else kwargs.get(name)
            for tensor in written if isinstance(written, list | tuple) else [written]:
                if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                    self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, written: Tensor) -> None:
        for tensor in self._by_storage.get(written.untyped_storage().data_ptr(), []):
            if id(tensor) not in self.saved:
                self.saved[id(tensor)] = tensor, tensor.detach().clone()
