"""The forward pass of a block of samples by the layer rules, its backward passes, and their checks.

Kernels and projections are filled from the same passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from conescope.engine.arguments import Cotangents
from conescope.engine.compute.shape import Pairing
from conescope.engine.independence import compare, compare_part
from conescope.engine.layers.call import Call
from conescope.engine.problem import Problem
from conescope.engine.selfcheck import bounds_of, refuse_mixed_gradients
from conescope.engine.tracing.forward import (
    RoutesChangedError,
    attempted,
    different_weights,
    feedable,
    forward,
    refuse_other_outputs,
)
from conescope.engine.tracing.order import Norms, norms_of_samples, refuse_exchanged_samples
from conescope.engine.tracing.routes import follow

Gradients = Sequence[Tensor | None]
"""For each call, the gradient at its target; None where no output depends on it."""


class ByCall(Protocol):
    """The same, each made when it is asked for."""

    def __getitem__(self, number: int, /) -> Tensor | None:
        """Return the gradient of a call."""
        ...


class _Unweighted:
    """The gradients of a pass in which every sample had its own weight, without the weights.

    The weights are powers of two, so that these are the gradients of the plain pass to the bit,
    unless a call has its samples in another order: `BlockPass.compare` then finds them wrong.

    Args:
        calls: the recorded calls.
        gradients: those of the weighted pass, which stay as they are.
        weights: [b].
    """

    def __init__(self, calls: Sequence[Call], gradients: Gradients, weights: Tensor) -> None:
        self._calls, self._gradients, self._weights = calls, gradients, weights

    def __getitem__(self, number: int) -> Tensor | None:
        if (g := self._gradients[number]) is None:
            return None
        own = g.clone()  # gradients of two calls may be the same tensor
        slices = self._calls[number].of_samples(own, slice(None))  # views
        slices.div_(self._weights.to(own).view(-1, *[1] * (slices.dim() - 1)))
        return own


_WIDE = 0.2
"""Relative to its norm; the gradients of a call differ by more if its samples change places, and
by less if a few ReLUs flip."""


class BlockPass:
    """The passes of one block of samples.

    Args:
        problem: what is computed.
        x: the block, [b, …].

    Attributes:
        outputs: [b, c], in autograd's graph.
        calls: what the recorder has found.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
        ModelError: if the samples have another number of outputs.
    """

    def __init__(self, problem: Problem, x: Tensor) -> None:
        self.problem, self.x = problem, x
        self.outputs, self.calls = follow(
            problem.model,
            problem.parameters,
            x,
            problem.survey.routes,
            problem.autograd_norms is not None,
        )
        refuse_other_outputs(self.outputs, problem.cotangents.width)
        self._last: tuple[Tensor, Gradients] | None = None
        self._weights = self.outputs.new_ones(len(x))

    def backward(self, cotangents: Tensor, verify: bool) -> Iterator[tuple[int, ByCall]]:
        """Yield the number of each cotangent [q, c] and its gradients; none if there are no calls.

        They are many: whoever takes them lets go of them before the next ones are asked for.

        Args:
            cotangents: [q, c].
            verify: whether to check that gradients are those of the samples alone, in their order.
                `compare` does so where it computes all samples again, from gradients that were
                weighted; elsewhere, and in any case for models that pick by an index, one more
                backward pass checks the order.
        """
        problem, last = self.problem, len(cotangents) - 1
        if not self.calls:
            return
        recheck, picks = problem.recheck, problem.survey.routes.picks
        thorough = verify and recheck is not None and recheck.thorough
        ordered = not thorough and (verify or picks)
        compared = recheck is not None and not recheck.thorough and problem.checks_gradients
        # cotangents of a basis may miss parts of the model, random ones do not
        random = problem.pairing is Pairing.APART
        weighted = thorough and random and not self._may_underflow
        another = (thorough and not weighted) or (ordered and not random)
        for k, cotangent in enumerate(cotangents):
            checked = k == last and not another
            if checked and weighted:
                gradients = self._take_weighted(cotangent, False)
            else:
                retain = k < last or another or ordered
                gradients = self._take(cotangent, retain)
            gradients = self._without_idle(gradients)
            norms = self._norms(gradients) if checked and ordered else None
            if checked and (compared or weighted):
                self._last = cotangent, gradients
            if checked and weighted:
                yield k, _Unweighted(self.calls, gradients, self._weights)
            else:
                yield k, gradients
            del gradients  # before there are others
            if norms is not None:
                refuse_exchanged_samples(self.outputs, self.calls, cotangent, norms, False)
        if another:
            self._take_another(thorough, compared, ordered)

    def _without_idle(self, gradients: Gradients) -> Gradients:
        """Return the gradients without those that are known to be zero.

        Raises:
            RoutesChangedError: if one of them is not, or an output depends on an unused call.
        """
        routes, odd = self.problem.survey.routes, set[str]()
        for number in routes.idle:
            g = gradients[number]
            if g is not None and (number in routes.unused or bool(g.any())):
                odd.update(self.calls[number].names.values())
        if odd:
            raise RoutesChangedError(*odd)
        return [None if n in routes.idle else g for n, g in enumerate(gradients)]

    def _take(self, cotangent: Tensor, retain: bool) -> Gradients:
        """Return the gradients of the plain pass of a cotangent.

        Raises:
            RoutesChangedError: if autograd's own are wanted, of all samples, and these are a few.
        """
        problem = self.problem
        if problem.autograd_norms is None:
            return _gradients(self.outputs, self.calls, cotangent, retain)
        if len(self.x) < len(problem.x):
            raise RoutesChangedError
        with attempted():
            targets = [call.target for call in self.calls]
            pulled = any(call.pulls for call in self.calls)  # by the graph of this pass
            return problem.autograd_norms.add(self.outputs, targets, cotangent, retain or pulled)

    @property
    def _may_underflow(self) -> bool:
        """Whether gradients may be in float16, in which a factor of 1/8 loses digits."""
        return torch.float16 in {self.outputs.dtype, *(call.source.dtype for call in self.calls)}

    def _take_weighted(self, cotangent: Tensor, retain: bool) -> Gradients:
        """Return the gradients of a pass in which every sample has its own weight."""
        self._weights = different_weights(self.outputs)
        return _gradients(self.outputs, self.calls, self._weights[:, None] * cotangent, retain)

    def _take_another(self, thorough: bool, compared: bool, ordered: bool) -> None:
        """Run a backward pass of a random cotangent, for the checks; see `backward`."""
        cotangent = Cotangents.normal(self.outputs.shape[1], 0, self.outputs).part(0, 1)[0]
        if thorough:
            gradients = self._without_idle(self._take_weighted(cotangent, ordered))
        else:
            found = _gradients(self.outputs, self.calls, cotangent, ordered)
            gradients = self._without_idle(found)
        if thorough or compared:
            self._last = cotangent, gradients
        if ordered:
            norms = self._norms(gradients)
            refuse_exchanged_samples(self.outputs, self.calls, cotangent, norms, False)

    def _norms(self, gradients: Gradients) -> Norms:
        return norms_of_samples(self.calls, gradients, len(self.x))

    def compare(self) -> None:
        """Compare outputs, and gradients of one cotangent, with those of parts of the block.

        Only what is done with the gradients may come before: another forward pass may write what
        they need.

        Raises:
            RoutesChangedError: if gradients depend on the block by these routes only.
            ModelError: if samples depend on each other.
        """
        problem, recheck, outputs = self.problem, self.problem.recheck, self.outputs.detach()
        if recheck is None or self._last is None:
            compare_outputs(problem, self.x, outputs)
            return
        recheck.refuse_not_finite(outputs, self.x, {"x": problem.x, "y": problem.y})
        cotangent, gradients = self._last
        parts = recheck.parts(self.x)
        # calls are recorded below, so once the model is called as its user does
        compare(problem.model, self.x, outputs, [part[:1] for part in parts[:1]])
        for part in parts:
            routes = problem.survey.routes
            alone, again = follow(problem.model, problem.parameters, self.x[part], routes)
            compare_part(problem.model, self.x, outputs, part, alone.detach())
            # others than those of the block, so that sums over samples differ
            weights = 0.5 ** (torch.arange(len(part), device=outputs.device) % 4).to(outputs)
            found = _gradients(alone, again, weights[:, None] * cotangent, False)
            if not self._agree(part, gradients, again, found, weights / self._weights[part]):
                refuse_mixed_gradients(problem, self.x)
                raise RoutesChangedError

    def _agree(
        self,
        part: list[int],
        gradients: Gradients,
        again: Sequence[Call],
        found: Gradients,
        factors: Tensor,
    ) -> bool:
        """Return whether gradients of a part of the block, times factors, are those found alone.

        Rounding may flip a ReLU between the two, and gradients that vanish may be all rounding: so
        the bound is narrow for all of them together, and wide for each.
        """
        sizes: list[Tensor] = []
        for call, g, other, h in zip(self.calls, gradients, again, found, strict=True):
            if g is None or h is None:
                continue
            dtype = torch.promote_types(g.dtype, torch.float32)  # norms overflow float16
            whole = call.of_samples(g, part).to(dtype)
            single = other.of_samples(h, slice(None)).to(dtype)
            if whole.shape == single.shape:
                whole = whole * factors.to(whole).view(-1, *[1] * (whole.dim() - 1))
                pair = torch.stack([(whole - single).norm(), single.norm()])
                sizes.append(pair.double().cpu())
        if not sizes:
            return True
        off, own = torch.stack(sizes, dim=1)
        total, bounds = own.norm(), bounds_of(self.problem)
        wide = max(_WIDE, bounds.alone)
        apart = bool((off > wide * own + bounds.layer * total).any())  # gradients that overflow
        return not (apart or bool(off.norm() > bounds.alone * total))  # are found in the kernel


def compare_outputs(problem: Problem, x: Tensor, outputs: Tensor | None = None) -> None:
    """Compare the outputs of a block with those of parts of it, as `Problem.recheck` chooses.

    Args:
        problem: what is computed.
        x: the block, [b, …].
        outputs: its outputs [b, c]; None to compute them if all samples are compared.

    Raises:
        ModelError: if they are not finite, or samples depend on each other.
    """
    recheck = problem.recheck
    if recheck is None or (outputs is None and not recheck.thorough):
        return
    if outputs is None:
        outputs = forward(problem.model, feedable(x)).detach()
    recheck.refuse_not_finite(outputs, x, {"x": problem.x, "y": problem.y})
    compare(problem.model, x, outputs, recheck.parts(x))


def _gradients(
    outputs: Tensor, calls: Sequence[Call], cotangent: Tensor, retain: bool
) -> Gradients:
    """Return the gradients of cotangent · outputs at the targets of all calls."""
    with attempted():
        return torch.autograd.grad(
            outputs,
            [call.target for call in calls],
            cotangent.expand_as(outputs),
            retain_graph=retain,
            allow_unused=True,
        )
