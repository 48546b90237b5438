"""Backward passes that hand out the cotangent of every call the moment it is complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Take = Callable[[int, int, Tensor], None]


def backward_passes(
    outputs: Tensor, edges: Sequence[GradientEdge], directions: Tensor, take: Take
) -> Iterator[int]:
    """Run one backward pass for each direction, and yield the direction's number after it.

    No pass holds the cotangents of all calls at once.

    Args:
        outputs: [b, c], in a graph of autograd.
        edges: the places whose cotangents are wanted.
        directions: [q, c], the cotangents of every sample's outputs.
        take: gets the direction's number, the edge's, and the cotangent there, which autograd
            may overwrite afterwards; not called for edges that the direction does not reach.
    """
    deepest = _deepest(edges)
    current = 0

    def hook(number: int) -> Callable[[Sequence[Tensor | None]], None]:
        def hand(gradients: Sequence[Tensor | None]) -> None:
            gradient = gradients[edges[number].output_nr]
            if gradient is not None:
                take(current, number, gradient)

        return hand

    handles = [
        edge.node.register_prehook(hook(number))
        for number, edge in enumerate(edges)
        if number not in deepest
    ]
    try:
        for current, direction in enumerate(directions):
            gradients = torch.autograd.grad(
                outputs,
                [edges[number] for number in deepest],
                direction.expand_as(outputs),
                retain_graph=current < len(directions) - 1,
                allow_unused=True,
            )
            for number, gradient in zip(deepest, gradients, strict=True):
                if gradient is not None:
                    take(current, number, gradient)
            yield current
    finally:
        for handle in handles:
            handle.remove()


def _deepest(edges: Sequence[GradientEdge]) -> list[int]:
    """The edges from which no other is reached: passes to them run through all others."""
    nodes = {edge.node for edge in edges}
    barren: set[Node] = set()
    return [number for number, edge in enumerate(edges) if not _leads_on(edge.node, nodes, barren)]


def _leads_on(start: Node, wanted: Collection[Node], barren: set[Node]) -> bool:
    """Whether the graph leads from a node to one that is wanted; `barren` gathers dead ends."""
    pending = [child for child, _ in start.next_functions]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in wanted:
            return True
        if node is not None and node not in barren and node not in seen:
            seen.add(node)
            pending.extend(child for child, _ in node.next_functions)
    barren |= seen
    return False
