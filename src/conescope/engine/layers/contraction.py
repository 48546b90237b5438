"""Products that sum over some axes of the data and of a parameter: batched ones, and einsum."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conescope.engine.compute.shape import Shape
from conescope.engine.layers.call import INTERLEAVED, OuterCall, Recording, intercepts

_GREEK = "αβγδεζηθικλμνξοπρστυφχψω"


@dataclass
class ContractionCall(OuterCall):
    """y = einsum("data,weight->output"), with one letter for each axis.

    Letters of all three number groups; those of data and weight alone, features; those of weight
    and output alone, outputs; those of data and output alone, positions, of which one numbers the
    samples.

    Attributes:
        data_axes: the letters of the source.
        weight_axes: the letters of the weight, as it is stored; without axes of size 1.
        output_axes: the letters of the output.
        sizes: the sizes of the weight's axes.
    """

    data_axes: str = ""
    weight_axes: str = ""
    output_axes: str = ""
    sizes: tuple[int, ...] = ()

    @property
    def groups(self) -> str:
        """The letters of groups."""
        return "".join(a for a in self.weight_axes if a in self.data_axes and a in self.output_axes)

    @property
    def features(self) -> str:
        """The letters of features."""
        return "".join(a for a in self.weight_axes if a not in self.output_axes)

    @property
    def outputs(self) -> str:
        """The letters of outputs."""
        return "".join(a for a in self.weight_axes if a not in self.data_axes)

    @property
    def order(self) -> str:
        kinds = {"g": self.groups, "o": self.outputs, "a": self.features}
        order = [kind for a in self.weight_axes for kind, letters in kinds.items() if a in letters]
        return "".join(kind for kind, _ in itertools.groupby(order))

    @property
    def shape(self) -> Shape:
        g, o, a = (self._size(kind) for kind in (self.groups, self.outputs, self.features))
        return Shape(g, o, a, self.source.numel() // (self.samples * g * a))

    @property
    def geometry(self) -> tuple[object, ...]:
        sizes = dict(zip(self.data_axes, self.source.shape, strict=True))
        sizes[self.output_axes[self.batch_axis]] //= self.samples
        axes = self.data_axes, self.weight_axes, self.output_axes
        return *sizes.values(), self.batch_axis, *axes, self.sizes

    def fits(self, samples: int, axis: int) -> bool:
        if axis >= min(len(self.output_axes), INTERLEAVED):
            return False
        letter = self.output_axes[axis]
        size = self.source.shape[self.data_axes.index(letter)] if letter in self.data_axes else 0
        return letter not in self.weight_axes and size % samples == 0

    def samples_first(self, g: Tensor) -> Tensor:
        return self.by_sample(g.movedim(self.batch_axis, 0))

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        axis = self.data_axes.index(self.output_axes[self.batch_axis])
        repeats = self.source.shape[axis] // self.samples
        part = self.source.narrow(axis, start * repeats, (stop - start) * repeats)
        out.copy_(self._arranged(part, self.data_axes, self.features, stop - start).mT)

    def cotangent(self, g: Tensor) -> Tensor:
        return self._arranged(g, self.output_axes, self.outputs, self.samples)

    def arranged(self, gradients: Tensor) -> Tensor:
        order = self.groups + self.outputs + self.features
        known = dict(zip(self.weight_axes, self.sizes, strict=True))
        rows = gradients.reshape(len(gradients), *(known[a] for a in order))
        return rows.permute(0, *(1 + order.index(a) for a in self.weight_axes)).flatten(1)

    def _arranged(self, tensor: Tensor, letters: str, kept: str, samples: int) -> Tensor:
        """Return a tensor as [samples, g, kept, positions]."""
        first = self.output_axes[self.batch_axis]
        positions = "".join(a for a in self.data_axes if a not in self.weight_axes and a != first)
        order = first + self.groups + kept + positions
        tensor = tensor.permute([letters.index(a) for a in order])
        inner = len(self.groups + kept)
        tensor = tensor.unflatten(0, (samples, -1)).movedim(1, 1 + inner)
        return tensor.reshape(samples, self._size(self.groups), self._size(kept), -1)

    def _size(self, letters: str) -> int:
        known = dict(zip(self.weight_axes, self.sizes, strict=True))
        return math.prod(known[a] for a in letters)


def contracted(
    recorder: Recording, operation: Callable[..., Tensor], left: Tensor, right: Tensor, **rest: Any
) -> Tensor:
    """Record a product of (batches of) matrices, one of which is a parameter."""
    first = recorder.knows(left)
    x, weight = (right, left) if first else (left, right)
    recorder.note_uncovered(x)
    if rest or x.dim() < 2:
        recorder.note_uncovered(weight)
        return operation(left, right, **rest)
    y = operation(recorder.detached(left), recorder.detached(right))
    return _keep_matrices(recorder, x, weight, y, first)


def _keep_matrices(
    recorder: Recording, x: Tensor, weight: Tensor, y: Tensor, first: bool
) -> Tensor:
    """Record y = x W, or W x if the weight comes first, for matrices or batches of them."""
    batch = y.dim() - (2 if weight.dim() > 1 else 1)
    letters = string.ascii_lowercase[:batch]
    numbering = zip(letters[::-1], reversed(weight.shape[:-2]), strict=False)
    groups = [(a, size) for a, size in numbering if size > 1][::-1]
    own, data, output = ("OA", "AT", "OT") if first else ("AO", "TA", "TO")
    if weight.dim() == 1:
        own, output = "A", "T"
    return recorder.keep(
        ContractionCall, weight, None, x.expand(*y.shape[:batch], *x.shape[-2:]), y,
        data_axes=letters + data,
        weight_axes="".join(a for a, _ in groups) + own,
        output_axes=letters + output,
        sizes=(*(size for _, size in groups), *weight.shape[-2:]),
    )  # fmt: skip


def added(
    recorder: Recording,
    operation: Callable[..., Tensor],
    first: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    **rest: Any,
) -> Tensor:
    """Compute β first + α left · right as a product and a sum, each of which has a rule."""
    if rest or torch.is_autocast_enabled(left.device.type):  # which would not round the sum
        recorder.note_uncovered(first, left, right)
        return operation(first, left, right, beta=beta, alpha=alpha, **rest)
    with recorder:
        if beta == 0:  # then `first` is often memory that was never written
            return alpha * (left @ right)
        return torch.add(first if beta == 1 else beta * first, left @ right, alpha=alpha)


@intercepts(torch.baddbmm, Tensor.baddbmm)
def _added_batch(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    batch1: Tensor,
    batch2: Tensor,
    **rest: Any,
) -> Tensor:
    if rest or recorder.knows(input) or recorder.knows(batch1) == recorder.knows(batch2):
        return added(recorder, torch.baddbmm, input, batch1, batch2, **rest)
    y = torch.baddbmm(input, recorder.detached(batch1), recorder.detached(batch2))
    first = recorder.knows(batch1)
    x, weight = (batch2, batch1) if first else (batch1, batch2)
    return _keep_matrices(recorder, x, weight, y, first)


@intercepts(torch.einsum)
def _einsum(recorder: Recording, equation: Any, *operands: Any) -> Tensor:
    listed = len(operands) == 1 and not isinstance(operands[0], Tensor)
    parts = [*operands[0]] if listed else [*operands]
    given: list[Any] = [equation, *parts]
    text = equation if isinstance(equation, str) else "..."
    if len(parts) > 2 and "..." not in text:
        with recorder:
            return _pair_by_pair(text, parts)
    letters = _letters(equation, *parts) if len(parts) == 2 else None
    known = [t for t in given if recorder.knows(t)]
    if letters is None or len(known) != 1:
        recorder.note_uncovered(*known)
        return torch.einsum(equation, *operands)
    y = torch.einsum(equation, *(recorder.detached(t) for t in parts))
    numbers = (1, 0) if recorder.knows(parts[0]) else (0, 1)
    x, weight = (parts[n] for n in numbers)
    data, axes = (letters[n] for n in numbers)
    return recorder.keep(
        ContractionCall, weight, None, x, y,
        data_axes=data, weight_axes=axes, output_axes=letters[2], sizes=tuple(weight.shape),
    )  # fmt: skip


def _pair_by_pair(equation: str, operands: list[Tensor]) -> Tensor:
    """Contract the operands of an einsum without an ellipsis from left to right."""
    inputs, output = _explicit(equation).split("->")
    names = inputs.split(",")
    while len(operands) > 2:
        needed = {*output, *"".join(names[2:])}
        kept = "".join(dict.fromkeys(a for a in names[0] + names[1] if a in needed))
        product = torch.einsum(f"{names[0]},{names[1]}->{kept}", *operands[:2])
        operands, names = [product, *operands[2:]], [kept, *names[2:]]
    return torch.einsum(f"{names[0]},{names[1]}->{output}", *operands)


def _explicit(equation: str) -> str:
    """Return an equation with its output, for which the letters that occur once stand."""
    equation = equation.replace(" ", "")
    if "->" in equation or "." in equation:
        return equation
    letters = equation.replace(",", "")
    return f"{equation}->{''.join(sorted(a for a in letters if letters.count(a) == 1))}"


@intercepts(torch.tensordot)
def _tensordot(
    recorder: Recording, a: Tensor, b: Tensor, dims: Any = 2, out: Tensor | None = None
) -> Tensor:
    if out is not None or not isinstance(dims, int | tuple | list):
        recorder.note_uncovered(a, b)
        return torch.tensordot(a, b, dims, out=out)
    left, right = (range(-dims, 0), range(dims)) if isinstance(dims, int) else dims
    own, other = string.ascii_lowercase[: a.dim()], [*string.ascii_uppercase[: b.dim()]]
    for i, j in zip(left, right, strict=True):
        other[j] = own[i]
    summed = {own[i] for i in left}
    kept = "".join(letter for letter in (*own, *other) if letter not in summed)
    with recorder:
        return torch.einsum(f"{own},{''.join(other)}->{kept}", a, b)


@intercepts(torch.inner, Tensor.inner)
def _inner(recorder: Recording, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    if input.dim() == 0 or other.dim() == 0:
        with recorder:
            return input * other
    return _tensordot(recorder, input, other, ([-1], [-1]))


def _letters(equation: Any, left: Any, right: Any) -> tuple[str, str, str] | None:
    """Return the letters of two operands and of the output; None for what has no rule.

    An ellipsis stands for Greek letters, counted from the last axis.
    """
    if not isinstance(equation, str) or "->" not in _explicit(equation):
        return None
    inputs, output = _explicit(equation).split("->")
    parts, longest = [], ""
    for part, operand in zip(inputs.split(","), (left, right), strict=True):
        hidden = operand.dim() - len(part.replace("...", ""))
        ellipsis = _GREEK[len(_GREEK) - hidden :] if "..." in part else ""
        longest = max(longest, ellipsis, key=len)
        parts.append(part.replace("...", ellipsis))
    letters = parts[0], parts[1], output.replace("...", longest)
    sizes = [*zip(parts[0], left.shape, strict=True), *zip(parts[1], right.shape, strict=True)]
    once = all(len(set(part)) == len(part) for part in letters)
    shared = all(sum(a in part for part in letters) > 1 for a in "".join(letters))
    broadcast = len(set(sizes)) > len(dict(sizes))
    return letters if once and shared and not broadcast else None
