"""A forward pass in which every operation that a layer rule understands leaves a record.

The rules attach to operations, not to modules: whatever code calls `F.linear(x, W)` with a
parameter W is seen, and a parameter that takes part in anything else is seen as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from conescope.engine.calls import Call
from conescope.engine.rules import RULES

_PICKING = {
    "gather", "index_add", "index_copy", "index_put", "index_select", "masked_scatter",
    "masked_select", "scatter", "scatter_add", "take", "take_along_dim",
}  # fmt: skip


class Recorder(TorchFunctionMode):
    """Records calls of known operations on known parameters while it is entered.

    Known parameters enter recorded operations detached, so that a graph of autograd that still
    reaches one of them shows a use which no rule has seen.

    Args:
        parameters: the parameters that rules may take, by name.
        anchor: a zero that requires a gradient; makes outputs of first layers part of a graph.
        attached: whether known parameters stay part of the graph, so that autograd gives their
            gradients beside those that rules take.

    Attributes:
        calls: the records, in the order of execution.
        strays: names of parameters that took part in an operation without a rule.
        picks: whether an operation picked or placed entries by an index.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], anchor: Tensor, attached: bool = False
    ) -> None:
        super().__init__()
        self.attached = attached
        self.names = {id(p): name for name, p in parameters.items()}
        self.anchor = anchor
        self.calls: list[Call] = []
        self.strays: set[str] = set()
        self.picks = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.picks |= _picks(func, args, kwargs)
        rule = RULES.get(func)
        named = {self.names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.names}
        if rule is None or not named or not torch.is_grad_enabled() or _inside_a_transform():
            result = func(*args, **kwargs)
            if named and next(_tensors(result), None) is not None:
                self.strays |= named
            return result
        return rule(self, *args, **kwargs)

    def name(self, parameter: Tensor | None) -> str | None:
        """The parameter's name, None for any other tensor."""
        return None if parameter is None else self.names.get(id(parameter))

    def known(self, parameter: Tensor | None) -> Tensor | None:
        """The parameter detached, unless they stay attached; any other tensor as it is."""
        if parameter is None or self.attached or self.name(parameter) is None:
            return parameter
        return parameter.detach()

    def stray(self, tensor: Tensor | None) -> None:
        """Note that a parameter is used as data."""
        name = self.name(tensor)
        if name is not None:
            self.strays.add(name)

    def keep(
        self,
        kind: type[Call],
        weight: Tensor | None,
        bias: Tensor | None,
        source: Tensor,
        output: Tensor,
        **geometry: Any,
    ) -> Tensor:
        """Record a call; returns the output as part of a graph of autograd."""
        if not output.requires_grad:
            output = output + self.anchor
        names = self.name(weight), self.name(bias)
        edge = get_gradient_edge(output)
        self.calls.append(kind(*names, source.detach(), edge, **geometry))
        return output


def _inside_a_transform() -> bool:
    """Whether a transform of torch.func is at work: its tensors have a graph of their own."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    return level is not None


def _picks(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether an operation picks or places entries by a tensor of indices."""
    name = getattr(func, "__name__", "").strip("_")
    if name in ("getitem", "setitem"):
        return next(_tensors(args[1]), None) is not None
    return name in _PICKING and next(_tensors((args[1:], kwargs)), None) is not None


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from _tensors(item)
    elif isinstance(nested, dict):
        yield from _tensors(tuple(nested.values()))
