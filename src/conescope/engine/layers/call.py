"""What every layer rule has: an interception of an operation, and the call that it records.

A call turns the cotangent of its operation's output into per-sample gradients of its parameters.
There are two kinds:

- *outer*: a weight whose gradient is Σ_t cotangent[t] ⊗ feature[t] over positions t (linear
  maps, convolutions, embeddings); `write_features` and `cotangent` give the two factors;
- *rows*: anything else, where the gradient itself is formed.

The weight of a call is a parameter, or a tensor that was computed from parameters alone, such as a
slice or 1 + w; `pulls` then turns gradients of that tensor into gradients of the parameter.

All tensors that leave a call have the b samples in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from conescope.engine.compute.shape import Shape

Role = Literal["weight", "bias"]

Interception = Callable[..., Tensor]
"""Called with the recorder and the operation's own arguments; returns the operation's output."""

INTERCEPTIONS: dict[Any, Interception] = {}
"""Operation → what the recorder calls in its place."""

INTERLEAVED = 2
"""The "axis" of an axis 0 that numbers slices whose sample changes fastest."""

_VARYING = {
    "source", "edge", "samples", "reached", "index", "version", "copies", "shares", "pulls"
}  # fmt: skip


def intercepts(*operations: Any) -> Callable[[Interception], Interception]:
    """Register a function as what the recorder calls in the place of some operations."""

    def register(interception: Interception) -> Interception:
        INTERCEPTIONS.update(dict.fromkeys(operations, interception))
        return interception

    return register


class RoutesChangedError(Exception):
    """The model departs from its routes; arguments: the parameters where, if that is known."""


class Recording(Protocol):
    """The part of the recorder that an interception uses."""

    def knows(self, tensor: Tensor | None) -> bool:
        """Return whether rules may take a tensor: a parameter, or made of parameters alone."""
        ...

    def detached(self, tensor: Tensor | None) -> Any:
        """Return such a tensor detached, and any other tensor as it is."""

    def turned(self, tensor: Tensor) -> Tensor | None:
        """Return the matrix whose transpose a tensor is, if rules may take it; else None."""

    def copies(self, tensors: Collection[Tensor], shape: torch.Size) -> Mapping[int, Tensor] | None:
        """Record copies of such tensors, one for each slice of an operation's output.

        Args:
            tensors: arguments of an operation that broadcasts.
            shape: the shape of its output.

        Returns:
            id of a tensor → its copies, as part of autograd's graph; None if there can be none.
        """

    def __enter__(self) -> object:
        """Record the operations that are called from now on."""

    def __exit__(self, *error: object) -> None:
        """Stop recording."""

    def note_uncovered(self, *tensors: Tensor | None) -> None:
        """Note that tensors are used in a way that the rule does not cover."""

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
        ...


class Pull(Protocol):
    """A function that turns gradients of a tensor made of parameters into those of one of them."""

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        ...

    @property
    def arrangement(self) -> tuple[object, ...] | None:
        """How the tensor holds all elements of the parameter, with a derivative of 1 each.

        None if it does not.
        """

    def __call__(self, rows: Tensor) -> Tensor:
        """Return gradients of the parameter, [b, p], from those of the tensor, [b, p′]."""
        ...


@dataclass
class Call(ABC):
    """One recorded use of parameters by an operation.

    Attributes:
        weight, bias: names of the parameters; None where the operation has none, or where it is
            not among those whose kernel is wanted.
        source: the operation's input, or what the rule keeps of it.
        edge: the place of the operation's output in autograd's graph.
        batch_axis: which axis of input and output numbers the samples, 0 or 1, or `INTERLEAVED`.
        samples: b; axis 0 may number b·r slices: r for each sample in turn, or if `INTERLEAVED` one
            for each of the b samples, r times.
        reached: how many positions of a sample gradients reach at most, if they are few, as in a
            head of which one token is used; None for all.
        pulls: role → how gradients of the tensor in this role become those of the parameter that
            is named, where the tensor is not the parameter itself.
    """

    weight: str | None
    bias: str | None
    source: Tensor
    edge: GradientEdge
    batch_axis: int = 0
    samples: int = 0
    reached: int | None = None
    version: int = field(init=False)
    pulls: dict[Role, Pull] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self.version = self.source._version

    @property
    def names(self) -> dict[Role, str]:
        """The parameters of this call by their role."""
        named: dict[Role, str | None] = {"weight": self.weight, "bias": self.bias}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def outer(self) -> OuterCall | None:
        """This call, if the gradient of its weight is a sum of outer products."""
        return None

    @property
    def target(self) -> GradientEdge:
        """The place in the graph whose gradients the rules take: the operation's output."""
        return self.edge

    @property
    def signature(self) -> tuple[str, str | None, str | None]:
        """The facts of a call that are equal in every pass while the routes are valid."""
        return type(self).__name__, self.weight, self.bias

    @property
    def geometry(self) -> tuple[object, ...]:
        """The settings, and the sizes for one sample, for which a survey holds."""
        sizes = list(self.source.shape)
        sizes[self.batch_axis % INTERLEAVED] //= self.samples
        settings = (getattr(self, f.name) for f in fields(self) if f.name not in _VARYING)
        return (*sizes, *settings)

    @property
    def cotangent_elements(self) -> int:
        """Elements of the cotangent of the output for one sample."""
        return self.source.numel() // self.samples

    def fits(self, samples: int, axis: int) -> bool:
        """Return whether `axis` of the input can number this many samples."""
        shape = self.source.shape
        return axis == 0 and len(shape) > 1 and shape[0] % samples == 0

    def count_reached(self, g: Tensor) -> int | None:
        """Return what `reached` is if no gradient reaches more than the one at `edge` does."""
        del g
        return None

    def shaped(self, g: Tensor) -> Tensor:
        """Return the gradient at `edge` in the shape of the operation's output."""
        return g

    def samples_first(self, g: Tensor) -> Tensor:
        """Return the output's cotangent as [b, …]."""
        if self.batch_axis == INTERLEAVED:
            return g.unflatten(0, (-1, self.samples)).movedim(1, 0)
        return self.by_sample(g) if self.batch_axis == 0 else g.movedim(1, 0)

    def of_samples(self, g: Tensor, numbers: list[int] | slice) -> Tensor:
        """Return the part of the gradient at `target` that belongs to some samples, first axis."""
        return self.samples_first(g)[numbers]

    def by_sample(self, tensor: Tensor) -> Tensor:
        """Reshape [b·r, …] to [b, r, …]."""
        return tensor.reshape(self.samples, -1, *tensor.shape[1:])

    def rows(self, g: Tensor, roles: Collection[Role]) -> dict[Role, Tensor]:
        """Return gradients of the parameters in some roles, [b, p] each, from that at `target`."""
        rows = self.own_rows(g, roles)
        return {role: self.pulls[role](r) if role in self.pulls else r for role, r in rows.items()}

    def own_rows(self, g: Tensor, roles: Collection[Role]) -> dict[Role, Tensor]:
        """Do as `rows`, before any pull: [b, p′] each, as the operation has them."""
        by_role = {"weight": self.weight_rows, "bias": self.bias_rows}
        return {role: by_role[role](g) for role in roles}

    @abstractmethod
    def weight_rows(self, g: Tensor) -> Tensor:
        """Return the gradient of the weight, [b, p], from the gradient at `target`."""

    def bias_rows(self, g: Tensor) -> Tensor:
        """Return the gradient of the bias, [b, p]; a layer without a bias does not define it."""
        raise NotImplementedError


class OuterCall(Call):
    """A call whose weight [g·o, a] has the gradient Σ_t cotangent[t] ⊗ feature[t]."""

    ties = False
    """Whether the weight is a matrix that may have uses of another kind, too."""

    @property
    def outer(self) -> OuterCall | None:
        pull = self.pulls.get("weight")
        return self if pull is None or pull.arrangement is not None else None

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The sizes of the weight in this call, without a bias."""

    @property
    def order(self) -> str:
        """How the weight is stored: groups g, outputs o and features a, without repeats.

        No kernel depends on it, but the uses of a weight can be joined only if they agree.
        """
        return "oa"

    @property
    def joins(self) -> tuple[object, ...]:
        """The facts that are equal in all calls of a weight whose factors can be joined."""
        shape, pull = self.shape, self.pulls.get("weight")
        sizes = shape.groups, shape.outputs, shape.inputs
        return *sizes, shape.sparse, self.order, None if pull is None else pull.arrangement

    @property
    def cotangent_elements(self) -> int:
        return self.shape.cotangent

    @property
    def kept(self) -> int:
        """Elements of a sample's features until they are written out."""
        return self.source.numel() // self.samples

    @abstractmethod
    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        """Write the features of samples start … stop − 1 to `out`, [stop − start, g, T, a]."""

    @abstractmethod
    def cotangent(self, g: Tensor) -> Tensor:
        """Return [b, g, o, T] from the output's cotangent."""

    def gradients(self, cotangent: Tensor) -> Tensor:
        """Return the gradients of some outputs' weights, [b, g, o′, a], from [b, g, o′, T]."""
        shape = self.shape
        features = cotangent.new_empty(self.samples, shape.groups, shape.positions, shape.inputs)
        self.write_features(features, 0, self.samples)
        return cotangent @ features

    def arranged(self, gradients: Tensor) -> Tensor:
        """Return gradients [b, g, o, a] in the order in which the weight is stored, [b, p]."""
        return gradients.flatten(1)

    def weight_rows(self, g: Tensor) -> Tensor:
        return self.arranged(self.gradients(self.cotangent(g)))

    def bias_rows(self, g: Tensor) -> Tensor:
        return self.cotangent(g).sum(dim=-1).flatten(1)
