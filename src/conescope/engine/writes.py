"""The tensors that a model's forward pass writes: found when it is first tried, and put back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from conescope.engine.attributes import Attributes
from conescope.engine.failure import shown
from conescope.errors import ModelError

_SMALL = 2**20
"""Numbers in tensors that are saved each time; copies of so many cost less than a millisecond."""
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[Tensor]]] = (
    weakref.WeakKeyDictionary()
)
"""Model → the tensors of its state that its forward pass was seen to write."""


_MOVING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose forward pass was seen to put tensors of their state elsewhere in memory."""


def writes_weights(model: nn.Module) -> bool:
    """Whether a model's forward pass was seen to write parameters, or to move its state."""
    return model in _MOVING or any(isinstance(t, nn.Parameter) for t in _written(model))


@contextmanager
def watching_writes(model: nn.Module) -> Iterator[None]:
    """Find out which tensors of its state a model writes, and put their values back.

    What is found is remembered: `untouched` saves these tensors from then on.
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

    Those of which it is known are saved, and as many others as are small together: writing to them
    can go unnoticed, since neither `.data` nor NumPy counts versions.
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


class _WriteGuard(TorchDispatchMode):
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
