"""Which kind of term takes which parameter, and under which layer it is kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from conescope.engine.calls import Call, OuterCall, Role


def layer_of(parameter: str) -> str:
    """The module that owns a parameter; the parameter itself where that is the model."""
    return parameter.rpartition(".")[0] or parameter


@dataclass
class Assignment:
    """Which term takes which parameter of which call.

    Attributes:
        outer: weight → (its calls' numbers, whether the bias of the one call joins in).
        rows: parameter → (its calls' numbers, "weight" or "bias" in each).
        joined: bias → the weight that it joins.
    """

    outer: dict[str, tuple[list[int], bool]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, Role]]] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)


def assign(calls: Sequence[Call], idle: Collection[int]) -> Assignment:
    """Outer terms for weights whose calls have two factors of one shape; rows for the rest.

    Args:
        calls: of a pass.
        idle: numbers of those that no output depends on.
    """
    uses: dict[str, list[tuple[int, Role]]] = {}
    for number, call in enumerate(calls):
        if number in idle:
            continue
        named: tuple[tuple[Role, str | None], ...] = ("weight", call.weight), ("bias", call.bias)
        for role, name in named:
            if name is not None:
                uses.setdefault(name, []).append((number, role))
    assignment = Assignment()
    for name, places in uses.items():
        shapes = {_outer_shape(calls[number], role) for number, role in places}
        if len(shapes) > 1 or None in shapes:
            continue
        bias = calls[places[0][0]].bias
        joins = bias is not None and len(places) == len(uses[bias]) == 1
        if bias is not None and joins and layer_of(bias) == layer_of(name):
            assignment.joined[bias] = name
        else:
            joins = False
        assignment.outer[name] = [number for number, _ in places], joins
    for name, places in uses.items():
        if name not in assignment.outer and name not in assignment.joined:
            assignment.rows[name] = places
    return assignment


def _outer_shape(call: Call, role: Role) -> tuple[int, ...] | None:
    if role == "bias" or not isinstance(call, OuterCall):
        return None
    return (*call.shape, call.sparse, call.transposed)
