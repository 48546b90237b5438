"""Devices that this machine lacks: tensors in the machine's memory that claim to be on a GPU.

They refuse to be mixed as those of real devices do, so that a test without a GPU finds where an
engine that serves models on several devices would fail.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

_COPIES = {"copy_", "_to_copy", "index", "index_put_", "stack"}
"""Operations that take tensors, or numbers of samples, of several devices; or, in a backward pass,
zeros that autograd makes itself, of which this module knows nothing."""


class Placed(Tensor):
    """A tensor that claims to be on a device; its numbers are in `plain`."""

    plain: Tensor
    place: torch.device

    @staticmethod
    def of(plain: Tensor, place: torch.device) -> Placed:
        """Let a plain tensor claim to be on a device."""
        placed = Tensor._make_subclass(Placed, plain.detach())
        placed.plain, placed.place = plain.detach(), place
        return placed

    @property
    def device(self) -> torch.device:
        return self.place

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        name = func._schema.name.partition("::")[2]
        many = {_place(t) for t in tensors if t.dim() > 0 or isinstance(t, Placed)}
        if len(many) > 1 and name not in _COPIES:
            raise RuntimeError(f"{name}: expected all tensors on one device, found {many}")
        result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        first = next(t for t in tensors if isinstance(t, Placed))
        written = kwargs.get("out", args[0] if name.endswith("_") else None)
        if written is not None:
            return written
        return tree_map(lambda t: Placed.of(t, first.place) if isinstance(t, Tensor) else t, result)


class _Move(torch.autograd.Function):
    """The copy of a tensor on another device."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: torch.device) -> Tensor:
        ctx.place = _place(tensor)
        return _on(_plain(tensor).clone(), place)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _on(_plain(g).clone(), ctx.place), None


class Devices(TorchFunctionMode):
    """Lets "cuda:0", "cuda:1", … be named inside, as if they were there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu") and isinstance(args[0], Tensor):
            target = torch.device("cpu") if name == "cpu" else _named(args[1:], kwargs)
            rest = [a for a in args[1:] if not isinstance(a, (str, torch.device, Tensor))]
            kwargs.pop("device", None)
            dtype = args[1].dtype if len(args) > 1 and isinstance(args[1], Tensor) else None
            moved = args[0]
            if target is not None and target != _place(moved):
                moved = _Move.apply(moved, target)
            if dtype is not None:
                rest = [dtype]
            return func(moved, *rest, **kwargs) if rest or kwargs else moved
        place = kwargs.get("device")
        if place is not None and torch.device(place).type == "cuda":
            kwargs["device"] = "cpu"
            return Placed.of(_plain(func(*args, **kwargs)), torch.device(place))
        if place is not None and name.startswith("new_"):  # on the machine
            return func(_plain(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)


def lend_gpus(monkeypatch: Any, memory: int = 2**36) -> list[int]:
    """Give torch.cuda what the engine asks of it; return the GPUs whose generators are put back."""
    put_back: list[int] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _, device: put_back.append(device))
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return put_back


def moved(module: nn.Module, place: str) -> nn.Module:
    """Move the parameters of a module to a device that is claimed."""
    for inner in module.modules():
        for name, p in inner.named_parameters(recurse=False):
            placed = Placed.of(p.detach(), torch.device(place))
            setattr(inner, name, nn.Parameter(placed, p.requires_grad))
    return module


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    for value in (*args, kwargs.get("device")):
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
        if isinstance(value, Tensor):
            return _place(value)
    return None


def _place(tensor: Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, Placed) else torch.device("cpu")


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, Placed) else value


def _on(plain: Tensor, place: torch.device) -> Tensor:
    return Placed.of(plain, place) if place.type != "cpu" else plain
