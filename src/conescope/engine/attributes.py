"""The attributes of a model's modules, and what is in them, at one moment."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_OBJECT_DEPTH = 3
"""How many objects one inside the other are looked into for what a forward pass may write."""
_OPAQUE = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType,
           MethodType, nn.Module, torch.dtype, torch.device)  # fmt: skip
_OPAQUE_PACKAGES = ("torch", "lightning", "pytorch_lightning")


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of all modules, and what is in the containers among them."""
    attributes = Attributes(model)
    try:
        yield
    finally:
        attributes.restore()


class Attributes:
    """The attributes of a model's modules at one moment.

    Attributes:
        tensors: all tensors found on the way, parameters and buffers among them.
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
        """Put everything back that has changed."""
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
    """Give a container its content back, unless it has it still."""
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
