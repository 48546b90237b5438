"""Autograd's graph: which parameters the outputs of a model depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def reachable(outputs: Tensor, parameters: Mapping[str, Tensor]) -> tuple[set[str], bool]:
    """The parameters to which the graph leads from the outputs.

    Args:
        outputs: of a forward pass.
        parameters: those looked for, by name.

    Returns:
        Their names, and whether a re-entrant checkpoint hides part of the graph; then no names.
    """
    names = {id(p): name for name, p in parameters.items()}
    found: set[str] = set()
    pending: list[Any] = [outputs.grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            return set(), True
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        pending.extend(child for child, _ in node.next_functions)
    return found, False
