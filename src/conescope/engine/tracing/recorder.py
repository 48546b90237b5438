"""Record, during a forward pass, every operation that a layer rule understands.

The rules attach to operations, not to modules: a call of `F.linear(x, W)` with a parameter W is
recorded whichever code makes it, and a parameter used by any other operation is noted as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from conescope.engine.layers.call import INTERCEPTIONS, Call
from conescope.engine.layers.elementwise import CopiedCall
from conescope.engine.layers.embedding import EmbeddingCall
from conescope.engine.tracing.derived import (
    REPEATING,
    KnownTensors,
    inside_a_transform,
    picks,
    repeated_axes,
    replaced,
    tensors_in,
    writes,
)
from conescope.engine.tracing.forward import forward

CONSTANT, AXIS, REPEATED, UNRULED = 1, 2, 4, 8
"""The choices whether an operation on parameters and constants is the same for all samples, along
which axis a parameter has one copy for each sample, whether it is repeated for each sample, and
whether an operation without a rule is the same for all samples."""


class Recorder(TorchFunctionMode):
    """Records calls of known operations on known tensors while it is entered.

    Known are some parameters, and tensors computed from them alone. They enter recorded operations
    detached, so that a graph of autograd that still reaches one of the parameters shows a use that
    was not recorded.

    Where shapes do not tell what numbers the samples, the recorder makes a choice: whether an
    operation on a parameter and a constant, such as an embedding of positions, is one on samples,
    whether and along which axis a parameter has one copy for each sample.

    Args:
        parameters: the parameters that rules may take, by name.
        anchor: a zero that requires a gradient; added to outputs that are part of no graph yet.
        samples: b.
        attached: whether known tensors stay part of the graph, so that autograd gives their
            gradients beside those that rules take.
        unlikely: name → the sum of the kinds of choices, such as `CONSTANT`, in which the less
            likely option is taken for a parameter.
        choices: the choices of an earlier pass, which are made again.

    Attributes:
        calls: the records, in the order of execution.
        uncovered: names of parameters that are used in a way that no rule covers.
        picks: whether an operation picked or placed entries by a tensor of indices.
        chosen: the choices that were made.
        doubtful: name → the kinds of choices in which there was another option for a parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        anchor: Tensor,
        samples: int,
        attached: bool = False,
        unlikely: Mapping[str, int] = MappingProxyType({}),
        choices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.anchor = anchor
        self.samples = samples
        self.attached = attached
        self.unlikely = unlikely
        self.choices = choices
        self.known = KnownTensors(parameters)
        self.calls: list[Call] = []
        self.uncovered: set[str] = set()
        self.picks = False
        self.chosen: list[int] = []
        self.doubtful: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.picks |= picks(func, args, kwargs)
        tensors = list(tensors_in((args, kwargs)))
        known = {id(t): t for t in tensors if t in self.known}
        if not known:
            return func(*args, **kwargs)
        if not torch.is_grad_enabled() or inside_a_transform():
            return self._leave(known.values(), func, args, kwargs)
        others = [t for t in tensors if id(t) not in known]
        rule = INTERCEPTIONS.get(func)
        if not any(t.requires_grad for t in others) and (
            not others or self._are_constant(others, known.values(), rule is None)
        ):
            return self._derive(known.values(), func, args, kwargs)
        if rule is not None:
            return rule(self, *args, **kwargs)
        if not writes(func, kwargs):
            copies = self._copied({t: t.shape for t in known.values()})
            if copies is not None:
                return func(*replaced(args, copies), **replaced(kwargs, copies))
        return self._leave(known.values(), func, args, kwargs)

    def knows(self, tensor: Tensor | None) -> bool:
        """Return whether rules may take a tensor: a parameter, or made of parameters alone."""
        return tensor in self.known

    def detached(self, tensor: Tensor | None) -> Any:
        """Return such a tensor detached, unless `attached`; any other tensor as it is."""
        if tensor is None or self.attached or tensor not in self.known:
            return tensor
        return tensor.detach()

    def turned(self, tensor: Tensor) -> Tensor | None:
        """Return the matrix whose transpose a tensor is, if rules may take it; else None."""
        known = self.known.intact(tensor)
        return None if known is None else known.matrix

    def note_uncovered(self, *tensors: Tensor | None) -> None:
        """Note that tensors, known ones perhaps, are used in a way that the rule does not cover."""
        self.uncovered |= self.known.parameters_of(tensors).keys()

    def copies(self, tensors: Collection[Tensor], shape: torch.Size) -> dict[int, Tensor] | None:
        """Return copies of known tensors, one for each slice of an operation's output; recorded.

        Args:
            tensors: arguments of an operation that broadcasts.
            shape: the shape of its output.

        Returns:
            id of a tensor → its copies, as part of autograd's graph; None if there are none.
        """
        return self._copied(dict.fromkeys(tensors, shape))

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
        self._note(kind, weight, bias, source, get_gradient_edge(output), **geometry)
        return output

    def _note(
        self,
        kind: type[Call],
        weight: Tensor | None,
        bias: Tensor | None,
        source: Tensor,
        edge: GradientEdge,
        **geometry: Any,
    ) -> None:
        """Record the use of parameters, and for each other known tensor one of its parameters."""
        named = {"weight": self.known.name(weight), "bias": self.known.name(bias)}
        pulls = self.known.pulls(weight), self.known.pulls(bias)
        source = source.detach()
        if any(named.values()) or not any(pulls):
            self.calls.append(kind(source=source, edge=edge, **named, **geometry))
        for name, pull in pulls[0].items():
            call = kind(name, None, source, edge, pulls={"weight": pull}, **geometry)
            self.calls.append(call)
        for name, pull in pulls[1].items():
            call = kind(None, name, source, edge, pulls={"bias": pull}, **geometry)
            self.calls.append(call)

    def _leave(
        self, known: Iterable[Tensor], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operation as it is, and note that known tensors take part in it, if they do."""
        result = func(*args, **kwargs)
        written = writes(func, kwargs)
        if written or any(t.requires_grad or inside_a_transform() for t in tensors_in(result)):
            self.note_uncovered(*known)
        if written:
            self.known.forget(tensors_in(args[:1]))
        return result

    def _derive(
        self, known: Iterable[Tensor], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operation on known tensors and constants, and note its results as known."""
        result = func(*args, **kwargs)
        parameters = self.known.parameters_of(known)
        written = writes(func, kwargs)
        for tensor in list(tensors_in(args[:1] if written and result is None else result)):
            if tensor.requires_grad and (written or tensor not in self.known):
                self.known.add(tensor, parameters, func, args, kwargs)
                if tensor.is_complex():
                    self.note_uncovered(tensor)
        if result is None or func not in REPEATING or not self.knows(result):
            return result
        shape, new = result.shape, result.is_contiguous()  # the model may view it, or write to it
        axes = [a for a in repeated_axes(next(iter(known)), result) if self._numbers(shape, a)]
        axis = self._choose(known, REPEATED, [*axes[:1], -1])
        return result if axis < 0 else self._spread(result, shape, axis, new)

    def _choose(self, known: Iterable[Tensor], kind: int, options: Sequence[int]) -> int:
        """Return the first of one or two options, or the second where it is to be tried."""
        number, choice = len(self.chosen), options[0]
        if self.choices is not None and number < len(self.choices):
            choice = self.choices[number]
        elif len(options) > 1:
            for name in self.known.parameters_of(known):
                self.doubtful[name] = self.doubtful.get(name, 0) | kind
                if self.unlikely.get(name, 0) & kind:
                    choice = options[1]
        self.chosen.append(choice)
        return choice

    def _are_constant(self, given: list[Tensor], known: Iterable[Tensor], likely: bool) -> bool:
        """Return whether tensors without gradients are the same for all samples."""
        numbers = any(
            self._numbers(t.shape, axis) for t in given for axis in range(min(t.dim(), 2))
        )
        kind, options = (UNRULED, (1, 0)) if likely else (CONSTANT, (0, 1))
        return bool(self._choose(known, kind, options if numbers else (1,)))

    def _copied(self, shapes: Mapping[Tensor, torch.Size]) -> dict[int, Tensor] | None:
        """Return copies of known tensors, one for each slice of the shapes they are broadcast to.

        Returns:
            id of a tensor → its copies; None if they cannot lie along the same axis.
        """
        fitting = [
            axis
            for axis in (0, 1)
            if self._is_free(shapes, axis)
            and all(self._numbers(shape, axis) for shape in shapes.values())
        ]
        axis = self._choose(shapes, AXIS, fitting or [-1])
        if not self._is_free(shapes, axis):
            return None
        return {id(tensor): self._spread(tensor, shape, axis) for tensor, shape in shapes.items()}

    def _is_free(self, shapes: Mapping[Tensor, torch.Size], axis: int) -> bool:
        """Return whether known tensors are the same along an axis of what they are broadcast to."""
        return axis >= 0 and all(
            axis < len(shape) and self.known.is_same_along(t, axis - len(shape) + t.dim())
            for t, shape in shapes.items()
        )

    def _numbers(self, shape: torch.Size, axis: int) -> bool:
        """Return whether an axis may number samples: 0 for slices of them, 1 for samples."""
        return shape[axis] == self.samples if axis else shape[0] % self.samples == 0

    def _spread(self, tensor: Tensor, shape: torch.Size, axis: int, new: bool = False) -> Tensor:
        """Record and return copies of a known tensor along an axis, as views or in new memory."""
        own = axis - len(shape) + tensor.dim()
        if own >= 0 and tensor.shape[own] > 1:
            tensor = self.known.first(tensor, own)
        sizes = [1] * (len(shape) - tensor.dim()) + list(tensor.shape)
        sizes[axis] = shape[axis]
        copies = self.detached(tensor).expand(sizes)
        if not copies.requires_grad:
            copies.requires_grad_()
        edge, known = get_gradient_edge(copies), self.known.intact(tensor)
        tokens = None if known is None else known.tokens
        if tokens is None or axis == len(sizes) - 1:
            self._note(CopiedCall, tensor, None, copies, edge, axis=axis)
        else:
            source, (vocabulary, width) = tokens.input.expand(sizes[:-1]), tokens.weight.shape
            self._note(
                EmbeddingCall, tokens.weight, None, source, edge,
                vocabulary=vocabulary, width=width, padding_idx=tokens.padding_idx,
            )  # fmt: skip
        return copies.clone(memory_format=torch.contiguous_format) if new else copies


def record(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    attached: bool = False,
    unlikely: Mapping[str, int] = MappingProxyType({}),
    choices: Sequence[int] | None = None,
) -> tuple[Tensor, Recorder]:
    """Run a forward pass; return outputs [b, c] in autograd's graph, and the recorder."""
    anchor = torch.zeros((), device=x.device, requires_grad=True)
    inputs = x.detach() + anchor.to(x.dtype) if x.is_floating_point() else x.clone()
    with Recorder(parameters, anchor, len(x), attached, unlikely, choices) as recorder:
        outputs = forward(model, inputs)
    return outputs, recorder
