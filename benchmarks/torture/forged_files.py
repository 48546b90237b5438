"""Files of run folders that can be read, and hold something else than what belongs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Tensors = dict[str, Tensor]


def _tensors(data: bytes) -> Tensors:
    try:
        return load(data)
    except SafetensorError:
        return {"values": torch.ones(2, 2)}  # in place of text


def _each(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: change(t).contiguous() for name, t in tensors.items()}


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    """Change one of the tensors only."""

    def changed(tensors: Tensors) -> Tensors:
        name = sorted(tensors)[0]
        return tensors | {name: change(tensors[name]).contiguous()}

    return changed


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.full_like(t, value) if t.is_floating_point() else t


def _one_entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        flat = tensor.clone().reshape(-1)
        if tensor.is_floating_point() and len(flat):
            flat[len(flat) // 2] = value
        return flat.reshape(tensor.shape)

    return change


_ODD_NAMES = (
    "", ".", "a.b.c", "model", "model.", "optimizer.x.y", "optimizer.99.momentum_buffer",
    "optimizer.-1.a", "optimizer.1", "average.z", "layer.",
)  # fmt: skip

_CHANGES: Mapping[str, Callable[[Tensors], Tensors]] = {
    "no tensor": lambda _: {},
    "one tensor less": lambda t: {name: t[name] for name in sorted(t)[1:]},
    "one tensor more": lambda t: t | {"more": torch.ones(3)},
    "a name with escapes": lambda t: t | {"layer.\x1b[31m\n": next(iter(t.values())).clone()},
    "odd names": lambda t: t | {name: torch.ones(1) for name in _ODD_NAMES},
    "features": lambda t: t | {"features": torch.ones(4, 6)},
    "draws of another shape": lambda t: t | {"draws": torch.ones(2, 3, 4)},
    "draws of no number": lambda t: t | {"draws": torch.ones(0, 1, 1)},
    "draws as whole numbers": lambda t: t | {"draws": torch.ones(3, 6, 6, dtype=torch.int64)},
    "a layer of another shape": lambda t: t | {"layer.a": torch.ones(1)},
    "other names": lambda t: {f"x{name}": tensor for name, tensor in t.items()},
    "a row less": _each(lambda t: t[1:] if t.dim() else t),
    "one entry": _each(lambda _: torch.ones(1)),
    "one row": _each(lambda _: torch.ones(1, 1)),
    "no dimension": _each(lambda _: torch.tensor(1.0)),
    "four dimensions": _each(lambda _: torch.ones(2, 3, 2, 3)),
    "no rows": _each(lambda _: torch.ones(0, 0)),
    "no rows of many columns": _each(lambda _: torch.ones(0, 10**9)),
    "many rows": _each(lambda _: torch.ones(300, 300)),
    "half precision": _each(lambda t: t.half()),
    "bfloat16": _each(lambda t: t.bfloat16()),
    "double precision": _each(lambda t: t.double()),
    "whole numbers": _each(lambda t: t.to(torch.int32)),
    "truth values": _each(lambda t: t.bool()),
    "complex numbers": _each(lambda t: t.to(torch.complex64)),
    "bytes": _each(lambda t: t.to(torch.uint8)),
    "all NaN": _each(_filled(float("nan"))),
    "all zero": _each(_filled(0.0)),
    "all huge": _each(_filled(3e38)),
    "all tiny": _each(_filled(1e-45)),
    "all negative": _each(lambda t: -t.abs() if t.is_floating_point() else t),
    "one NaN": _first(_one_entry(float("nan"))),
    "one infinite": _first(_one_entry(float("inf"))),
    "not symmetric": _first(lambda t: t.roll(1, 0) if t.dim() else t),
    "one of another shape": _first(lambda t: t.reshape(-1)[:1]),
    "one of another type": _first(lambda t: t.to(torch.int64)),
}  # fmt: skip

FORGED: Mapping[str, Callable[[bytes], bytes]] = {
    **{
        name: lambda data, change=change: save(change(_tensors(data)))
        for name, change in _CHANGES.items()
    },
    "nothing": lambda _: b"",
    "text": lambda _: b"name: x\n",
    "YAML of another recipe": lambda _: b"seed: 12345\n",
    "escapes": lambda _: b"name: \x1b[31m\n",
    "a header without end": lambda _: b"\xff" * 7 + b"\x00{",
    "metadata": lambda data: save(_tensors(data), {"a": "\x1b[31m"}),
}
"""Name → returns what a file holds in place of some bytes."""
