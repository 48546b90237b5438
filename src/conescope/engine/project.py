"""project(): random projections of per-sample gradients, with products that estimate the eNTK.

The gradients are never formed where they are sums of outer products; see `compute/sketch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from conescope.argument_types import checked
from conescope.engine.arguments import Cotangents, check_draws, is_finite
from conescope.engine.compute.allocator import keep_freed_pages
from conescope.engine.compute.budget import parse_memory, too_small
from conescope.engine.compute.shape import Pairing
from conescope.engine.compute.sketch import POSITIONS, Sketch
from conescope.engine.diagnosis import raise_not_finite, refuse_without_gradient
from conescope.engine.exact import by_some_route, self_checked
from conescope.engine.gradient_sketches import MOST_FORMED, add_sketches
from conescope.engine.problem import Problem, measured_anew, prepared
from conescope.engine.tracing.forward import shown
from conescope.engine.tracing.survey import real_numbers, rows_and_columns
from conescope.errors import KernelError
from conescope.kernel.estimates import projection_kind
from conescope.kernel.features import Features
from conescope.kernel.matrix import Randomness

_GROUPS = 8
"""The groups of columns where one cotangent serves all of them."""
_HASH = 17
"""Bytes that the hashes of an index take in a block; about as many again while they are made."""
_LIBRARIES = 48 * 2**20
"""Bytes left to workspaces of the linear-algebra libraries and the allocator's rounding."""
_BLOCK = 64
"""The most samples of one forward pass."""


@checked
@measured_anew
def project(
    model: nn.Module,
    x: Tensor,
    *,
    dim: int = 4096,
    seed: int = 0,
    draws: int = 1,
    params: str | Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
) -> Features:
    """Project per-sample gradients at random to a few numbers, whose products estimate the eNTK.

    The gradients g = ∂(v·f(x_i))/∂θ of all parameters are projected, for cotangents v of
    independent signs ±1 that all samples share (as in `estimate_entk`), by count sketches
    (TensorSketch: Pham and Pagh, 2013). The cost is linear in the number of samples. The same
    seed gives the same cotangents and projections for every checkpoint of a model and any samples.

    Args:
        model: as for `entk`.
        x: n samples.
        dim: the numbers for each sample; a kernel entry errs by about √(K_ii K_jj / dim).
        seed: decides cotangents and projections; what is to be compared needs the same one.
        draws: number r of cotangents. The columns are r equal groups, each with a cotangent and a
            projection of its own; with 1, they are 8 groups of one cotangent.
        params: as for `entk`.
        memory: as for `entk`.
        check: as for `entk`.

    Returns:
        The features [n, dim], in the dtype of the outputs and at least float32. Standard errors
        from their groups cover the projection and, with two draws or more, the cotangents.

    Raises:
        ModelError: as `entk`.
        KernelError: if `dim`, `draws`, `seed` or `memory` is wrong, or the budget too small.
    """
    check_draws(draws, 1, "a projection", seed)
    groups = _groups(dim, draws)

    def signs(width: int, like: Tensor) -> Cotangents:
        return Cotangents.signs(draws, width, seed, like)

    with prepared(model, x, None, params, signs, Pairing.APART) as problem:
        budget = parse_memory(memory, problem.devices)
        first = check and not problem.survey.checked
        if first:
            problem = self_checked(problem, budget)
        like = problem.cotangents.like.to(problem.dtype)
        sketch = Sketch(dim, groups, seed, like, partial(shown, problem.model))
        values = _features(problem, sketch, budget, check, first)
        return Features(values, groups, Randomness(projection_kind(draws), int(seed)))


def _features(problem: Problem, sketch: Sketch, budget: int, check: bool, first: bool) -> Tensor:
    """Return the features [n, dim] of a prepared problem, or say why there are none."""
    recheck = problem.recheck
    if first and recheck is not None:
        recheck.begin()
    verify = first or (check and recheck is not None and recheck.verify)

    def run(problem: Problem, verify: bool) -> Tensor:
        return _projected(problem, sketch, budget, verify)

    values, problem = by_some_route(problem, run, verify)
    if recheck is not None:
        recheck.done()
    if not is_finite(values):
        raise_not_finite(problem)
    if not bool(values.any()):
        refuse_without_gradient(problem)
    return values


def _groups(dim: int, draws: int) -> int:
    """Return the number of groups of columns, R.

    Raises:
        KernelError: if the groups do not divide the columns.
    """
    groups = _GROUPS if draws == 1 else draws
    if dim < groups or dim % groups:
        raise KernelError(
            f"dim={dim!r} cannot be divided into {groups} equal groups of columns; take a positive "
            f"multiple of {groups}"
        )
    return groups


def _projected(problem: Problem, sketch: Sketch, budget: int, verify: bool) -> Tensor:
    """Return the features of all samples, [n, dim], block by block.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
    """
    keep_freed_pages()
    block = _block(problem, sketch, budget)
    values = sketch.like.new_zeros(len(problem.x), sketch.blocks * sketch.width)
    if problem.recheck is not None:
        problem.recheck.expect(problem.x, block)
    for block_x, out in zip(problem.x.split(block), values.split(block), strict=True):
        add_sketches(problem, sketch, block_x, out, verify)
    return values.div_(math.sqrt(sketch.blocks))


def _block(problem: Problem, sketch: Sketch, budget: int) -> int:
    """Return how many samples of one forward pass fit into the budget.

    Raises:
        KernelError: if one does not.
    """
    work, dim, blocks = problem.survey.work, sketch.blocks * sketch.width, sketch.blocks
    sizes = {name: real_numbers(p) for name, p in problem.parameters.items()}
    general = sum(sizes[name] for name in problem.survey.routes.general)
    sides = [sum(rows_and_columns(p)) for p in problem.parameters.values()]
    written = max((s.features for s in work.outer), default=0)
    rearranged = {name for name, shapes in work.shapes.items() if any(s.rearranged for s in shapes)}
    whole = [size for name, size in sizes.items() if size <= MOST_FORMED or name in rearranged]
    formed = max(whole, default=0)
    each = work.passing + work.passing // 4 + written + 3 * max(formed, *work.rows.values(), 0)
    fixed = POSITIONS * (6 * dim + 2 * max(sides)) + 3 * dim * sketch.width + 2 * written + 2**23
    if work.transformed:
        each = max(each, 3 * work.passing + 2 * general)
    elif general:
        fixed += 2 * work.passing + 2 * general
    fixed += len(problem.cotangents) * work.width
    fixed = fixed * problem.element + _HASH * blocks * (sum(sides) + max(sides)) + _LIBRARIES
    least = fixed + each * problem.element
    if least > budget:
        raise KernelError(too_small(budget, least))
    return min(_BLOCK, (budget - fixed) // (each * problem.element), len(problem.x))
