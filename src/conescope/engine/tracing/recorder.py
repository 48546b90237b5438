"""Record, during a forward pass, every operation that a layer rule understands.

The rules attach to operations, not to modules: a call of `F.linear(x, W)` with a parameter W is
recorded whichever code makes it, and a parameter used by any other operation is noted as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from conescope.engine.layers.call import INTERCEPTIONS, Call
from conescope.engine.tracing.forward import forward

_PICKING = {
    "gather", "index_add", "index_copy", "index_put", "index_select", "masked_scatter",
    "masked_select", "scatter", "scatter_add", "take", "take_along_dim",
}  # fmt: skip


class Recorder(TorchFunctionMode):
    """Records calls of known operations on known parameters while it is entered.

    Known parameters enter recorded operations detached, so that a graph of autograd that still
    reaches one of them shows a use that was not recorded.

    Args:
        parameters: the parameters that rules may take, by name.
        anchor: a zero that requires a gradient; added to outputs that are part of no graph yet.
        attached: whether known parameters stay part of the graph, so that autograd gives their
            gradients beside those that rules take.

    Attributes:
        calls: the records, in the order of execution.
        uncovered: names of parameters that are used in a way that no rule covers.
        picks: whether an operation picked or placed entries by a tensor of indices.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], anchor: Tensor, attached: bool = False
    ) -> None:
        super().__init__()
        self.attached = attached
        self.names = {id(p): name for name, p in parameters.items()}
        self.anchor = anchor
        self.calls: list[Call] = []
        self.uncovered: set[str] = set()
        self.picks = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.picks |= _picks(func, args, kwargs)
        rule = INTERCEPTIONS.get(func)
        named = {self.names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.names}
        if rule is None or not named or not torch.is_grad_enabled() or _inside_a_transform():
            result = func(*args, **kwargs)
            if named and next(_tensors(result), None) is not None:
                self.uncovered |= named
            return result
        return rule(self, *args, **kwargs)

    def name(self, parameter: Tensor | None) -> str | None:
        """Return the name of a parameter that rules may take; None for any other tensor."""
        return None if parameter is None else self.names.get(id(parameter))

    def detached(self, parameter: Tensor | None) -> Any:
        """Return such a parameter detached, unless `attached`; any other tensor as it is."""
        if parameter is None or self.attached or self.name(parameter) is None:
            return parameter
        return parameter.detach()

    def note_uncovered(self, *tensors: Tensor | None) -> None:
        """Note that tensors, parameters perhaps, are used in a way that the rule does not cover."""
        self.uncovered |= {name for t in tensors if (name := self.name(t)) is not None}

    def keep(
        self,
        kind: type[Call],
        weight: Tensor | None,
        bias: Tensor | None,
        source: Tensor,
        output: Tensor,
        **geometry: Any,
    ) -> Tensor:
        """Record a call, and return its output as part of autograd's graph."""
        if not output.requires_grad:
            output = output + self.anchor.to(output.device)
        names = self.name(weight), self.name(bias)
        edge = get_gradient_edge(output)
        self.calls.append(kind(*names, source.detach(), edge, **geometry))
        return output


def record(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, attached: bool = False
) -> tuple[Tensor, Recorder]:
    """Run a forward pass; return outputs [b, c] in autograd's graph, and the recorded calls."""
    anchor = torch.zeros((), device=x.device, requires_grad=True)
    inputs = x.detach() + anchor.to(x.dtype) if x.is_floating_point() else x.clone()
    with Recorder(parameters, anchor, attached) as recorder:
        outputs = forward(model, inputs)
    return outputs, recorder


def _inside_a_transform() -> bool:
    """Return whether a transform of torch.func is at work, whose tensors have their own graph."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    return level is not None


def _picks(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Return whether an operation picks or places entries by a tensor of indices."""
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
