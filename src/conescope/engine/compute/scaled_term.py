"""Weights whose per-sample gradients are multiplied entry by entry, for a preconditioned kernel."""

from __future__ import annotations

from torch import Tensor

from conescope.engine.compute.factors import Places
from conescope.engine.compute.products import Scratch
from conescope.engine.compute.terms import OuterTerm


class ScaledTerm(OuterTerm):
    """A weight of outer products whose gradients are multiplied by a scale when they are formed.

    A scale of every entry is no factor of an outer product, so that its shape has to say
    `by_gradients`, and no gradients by convolutions, whose features have another order.

    Attributes:
        scale: what gradients are multiplied by, [g, o, a]; to be set before they are formed.
    """

    scale: Tensor

    def write_gradients(
        self, outputs: slice, places: Places, scratch: Scratch, known: Tensor | None = None
    ) -> None:
        """Write the gradients times their scale; see `Factors.write_gradients`."""
        super().write_gradients(outputs, places, scratch, known)
        for _, rows in places:
            rows *= self.scale[:, outputs]
