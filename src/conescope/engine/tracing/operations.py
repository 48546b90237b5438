"""What an operation does to its arguments: picks by an index, writes, is part of a transform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_PICKING = {
    "gather", "index_add", "index_copy", "index_put", "index_select", "masked_scatter",
    "masked_select", "scatter", "scatter_add", "take", "take_along_dim",
}  # fmt: skip


def inside_a_transform() -> bool:
    """Return whether a transform of torch.func is at work, whose tensors have their own graph."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    return level is not None


def picks(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Return whether an operation picks or places entries by a tensor of indices."""
    name = getattr(func, "__name__", "").strip("_")
    if name in ("getitem", "setitem"):
        return next(tensors_in(args[1]), None) is not None
    return name in _PICKING and next(tensors_in((args[1:], kwargs)), None) is not None


def writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation writes to one of its arguments."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__setitem__", "__set__") or kwargs.get("out") is not None


def replaced(nested: Any, others: Mapping[int, Any]) -> Any:
    """Return nested arguments with other tensors in the places of some."""
    if isinstance(nested, Tensor):
        return others.get(id(nested), nested)
    if isinstance(nested, (tuple, list)):
        items = [replaced(item, others) for item in nested]
        return items if isinstance(nested, list) else tuple(items)
    if isinstance(nested, dict):
        return {key: replaced(item, others) for key, item in nested.items()}
    return nested


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from tensors_in(item)
    elif isinstance(nested, dict):
        yield from tensors_in(tuple(nested.values()))
