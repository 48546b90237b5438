"""Check that a measurement leaves a model, its inputs and the random generators as they were."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *inputs: Tensor) -> Iterator[None]:
    """Fail if anything differs after the block, whether or not the block raises."""
    before = _everything(model, inputs)
    try:
        yield
    finally:
        after = _everything(model, inputs)
        assert before.keys() == after.keys(), sorted(before.keys() ^ after.keys())
        left = [name for name, held in after.items() if "a transform's tensor" in repr(held)]
        assert not left, f"tensors of a transform left in {', '.join(left)}"
        changed = [name for name, held in before.items() if held != after[name]]
        assert not changed, f"changed: {', '.join(changed)}"


def _everything(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    _, numbers, *rest = np.random.get_state()
    held: dict[str, Any] = {
        "torch's generator": _bits(torch.get_rng_state()),
        "Python's generator": random.getstate(),
        "numpy's generator": (numbers.tobytes(), *rest),
        "contexts": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
        ),
    }
    for number, tensor in enumerate(inputs):
        held[f"input {number}"] = _held(tensor)
    for name, module in model.named_modules(remove_duplicate=False):
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                for own, part in value.items():
                    held[f"{name}.{own}"] = _held(part)
            else:
                held[f"{name}.{attribute}"] = _held(value)
    return held


def _held(value: Any) -> Any:
    """Return what must stay: identity and bits of tensors, contents of containers, or identity."""
    if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "a transform's tensor", _Same(value)
    if isinstance(value, Tensor):
        detached = value.detach()
        bits = None if value.is_meta else _bits(detached)
        grad = value.grad if value.is_leaf else None
        what = type(value), value.dtype, value.shape, value.stride(), value.requires_grad
        return "tensor", _Same(value), what, bits, None if grad is None else _held(grad)
    if isinstance(value, np.ndarray):
        return "array", value.dtype, value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return "generator", _Same(value), _bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return "generator", _Same(value), repr(value.bit_generator.state)
    if isinstance(value, Mapping):
        return "mapping", type(value), [(key, _held(part)) for key, part in value.items()]
    if isinstance(value, list | tuple | deque):
        return "sequence", type(value), [_held(part) for part in value]
    if isinstance(value, set | frozenset):
        return "set", type(value), set(value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), repr(value)
    return _Same(value)


class _Same:
    """A wrapper equal to another one only if both hold the same object, which it keeps alive."""

    def __init__(self, value: Any) -> None:
        # each access to a bound method makes another object
        self.value = getattr(value, "__func__", value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None


def _bits(tensor: Tensor) -> bytes:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
