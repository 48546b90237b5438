"""What is known of a forward pass's parameters, and of tensors that it computes from them alone.

Slices, casts, transposes and 1 + w are such tensors, and so are embeddings of positions. A rule
takes them in the place of a parameter; autograd brings their gradients back to the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.layers.call import Pull
from conescope.engine.tracing.forward import RoutesChangedError


def _functions(*names: str) -> set[Any]:
    """Return the operations of these names, as functions and as methods."""
    places = [(place, name) for place in (torch, Tensor) for name in names]
    return {getattr(place, name) for place, name in places if hasattr(place, name)}


_TURNING = {
    *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
    *_functions("t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
}
_REARRANGING = _TURNING | _functions(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone",
    "to", "float", "double", "half", "bfloat16", "add", "sub",
)  # fmt: skip
"""Operations that keep every element, but for its dtype, and may add a number to all of them."""
_TILING = _functions("repeat", "tile")
REPEATING = _TILING | _functions("expand", "broadcast_to")

_PICKING = {
    "gather", "index_add", "index_copy", "index_put", "index_select", "masked_scatter",
    "masked_select", "scatter", "scatter_add", "take", "take_along_dim",
}  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """The arguments of an embedding of tokens that are the same for all samples."""

    input: Tensor
    weight: Tensor
    padding_idx: int | None


@dataclass(frozen=True)
class Derived:
    """A tensor that was computed from parameters alone.

    Attributes:
        tensor: the tensor, as part of autograd's graph.
        version: the number of writes to it before it was noted.
        parameters: name → the parameters that it depends on.
        arrangement: see `Pull`.
        matrix: the matrix whose transpose it is.
        tokens: the arguments of the embedding that it is.
        tiled: axes along which all slices are equal.
    """

    tensor: Tensor
    version: int
    parameters: Mapping[str, Tensor]
    arrangement: tuple[str, ...] | None = None
    matrix: Tensor | None = None
    tokens: Tokens | None = None
    tiled: tuple[int, ...] = ()

    def pulls(self) -> dict[str, Pull]:
        """Return for each parameter what turns gradients of the tensor into its gradients."""
        version = self.tensor._version
        arrangement = self.arrangement if version == self.version else None
        return {
            name: VectorJacobian(self.tensor, version, parameter, arrangement)
            for name, parameter in self.parameters.items()
        }


@dataclass(frozen=True)
class VectorJacobian:
    """Vector-Jacobian products of the operations that lead from a parameter to a tensor.

    Attributes:
        tensor: the tensor.
        version: the number of writes to the tensor before it was used.
        parameter: the parameter.
        arrangement: see `Pull`.
    """

    tensor: Tensor
    version: int
    parameter: Tensor
    arrangement: tuple[str, ...] | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return gradients of the parameter, [b, p], from those of the tensor, [b, p′].

        Raises:
            RoutesChangedError: if the tensor has been written to since it was used.
        """
        if self.tensor._version != self.version:
            raise RoutesChangedError
        cotangents = rows.view(-1, *self.tensor.shape).to(self.tensor.dtype)
        (gradients,) = torch.autograd.grad(
            self.tensor, self.parameter, cotangents,
            retain_graph=True, is_grads_batched=True, materialize_grads=True, allow_unused=True,
        )  # fmt: skip
        return gradients.reshape(len(rows), -1)


class KnownTensors:
    """The tensors that rules may take: some parameters, and what is computed from them alone.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = {id(p): (name, p) for name, p in parameters.items()}
        self._derived: dict[int, Derived] = {}  # holds the tensors, so that no id is used again

    def __contains__(self, tensor: Tensor | None) -> bool:
        return id(tensor) in self._parameters or id(tensor) in self._derived

    def name(self, tensor: Tensor | None) -> str | None:
        """Return the name of a parameter, None for other tensors."""
        return self._parameters.get(id(tensor), (None, None))[0]

    def intact(self, tensor: Tensor | None) -> Derived | None:
        """Return what is known of a derived tensor to which nothing has been written since."""
        known = self._derived.get(id(tensor))
        return known if known is not None and known.version == known.tensor._version else None

    def pulls(self, tensor: Tensor | None) -> dict[str, Pull]:
        """Return the pulls of a derived tensor by the parameters' names; none for other tensors."""
        return self._derived[id(tensor)].pulls() if id(tensor) in self._derived else {}

    def parameters_of(self, tensors: Iterable[Tensor | None]) -> dict[str, Tensor]:
        """Return the parameters on which known tensors depend, by name."""
        found: dict[str, Tensor] = {}
        for tensor in tensors:
            if id(tensor) in self._parameters:
                name, parameter = self._parameters[id(tensor)]
                found[name] = parameter
            elif id(tensor) in self._derived:
                found |= self._derived[id(tensor)].parameters
        return found

    def is_same_along(self, tensor: Tensor, axis: int) -> bool:
        """Return whether the slices of a known tensor along an axis are sure to be equal.

        Args:
            tensor: the tensor.
            axis: its axis; negative for one before its own, along which it is broadcast.
        """
        if axis < 0 or tensor.shape[axis] == 1 or tensor.stride(axis) == 0:
            return True
        known = self.intact(tensor)
        return known is not None and axis in known.tiled

    def first(self, tensor: Tensor, axis: int) -> Tensor:
        """Return the first slice of a known tensor, of size 1 along an axis; known from now on."""
        single = tensor.narrow(axis, 0, 1)
        parameters = self.parameters_of([tensor])
        self._derived[id(single)] = Derived(single, single._version, parameters)
        return single

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Take derived tensors out again, as data have been written to them."""
        for tensor in tensors:
            self._derived.pop(id(tensor), None)

    def add(
        self,
        tensor: Tensor,
        parameters: Mapping[str, Tensor],
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Take in a result of an operation on known tensors and constants.

        Args:
            tensor: the result.
            parameters: those on which it depends, by name.
            func: the operation.
            args: its positional arguments.
            kwargs: its other arguments.
        """
        if id(tensor) in self._parameters:
            return
        facts: dict[str, Any] = {}
        others = [*args[1:], *kwargs.values()]
        source = args[0] if args and not any(isinstance(o, Tensor) for o in others) else None
        if func is F.embedding:
            facts["tokens"] = _tokens(*args, **kwargs)
        elif isinstance(source, Tensor):
            if func in _REARRANGING:
                before = self._arrangement(source)
                step = repr((func, args[1:], sorted(kwargs.items())))
                facts["arrangement"] = None if before is None else (*before, step)
            if func in _TURNING and source.dim() == 2 and _is_transpose(tensor, source):
                facts["matrix"] = source
            if func in _TILING:
                sizes = (1,) * (tensor.dim() - source.dim()) + source.shape
                facts["tiled"] = tuple(axis for axis, size in enumerate(sizes) if size == 1)
        self._derived[id(tensor)] = Derived(tensor, tensor._version, parameters, **facts)

    def _arrangement(self, tensor: Tensor) -> tuple[str, ...] | None:
        if id(tensor) in self._parameters:
            return ()
        known = self.intact(tensor)
        return None if known is None else known.arrangement


def _is_transpose(tensor: Tensor, source: Tensor) -> bool:
    turned = source.t()
    return tensor.shape == turned.shape and tensor.stride() == turned.stride()


def _tokens(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001
) -> Tokens | None:
    """Return the facts of an embedding that the rule for embeddings covers; None for others."""
    if max_norm is not None or scale_grad_by_freq:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return Tokens(input, weight, padding_idx)


def repeated_axes(source: Tensor, result: Tensor) -> list[int]:
    """Return along which of the first two axes all slices of a repeated tensor are equal."""
    sizes = (1,) * (result.dim() - source.dim()) + source.shape
    return [axis for axis in range(min(result.dim(), 2)) if sizes[axis] == 1]


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
