"""Estimate the class trace of the eNTK from a few random cotangents, with a standard error.

For v with independent signs ±1, shared by all samples, the kernel of v·f has the class trace as
its mean (Hutchinson, 1990): r backward passes take the place of c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from conescope.argument_types import checked
from conescope.engine.arguments import Cotangents, check_draws
from conescope.engine.compute.shape import Pairing
from conescope.engine.exact import compute
from conescope.engine.problem import measured_anew, prepared
from conescope.errors import KernelError
from conescope.kernel.estimates import COTANGENTS, check_same_randomness
from conescope.kernel.matrix import Kernel, Randomness


@checked
@measured_anew
def estimate_entk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
    params: str | Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Kernel:
    """Estimate the class trace of the eNTK by shared random cotangents.

    Args:
        model: as for `entk`.
        x: n samples.
        y: m samples; None for y = x.
        draws: number r of cotangents, at least 2 for a standard error.
        seed: decides the signs; kernels that are to be compared need the same one.
        params: as for `entk`.
        memory: as for `entk`.
        check: as for `entk`.
        preconditioner: as for `entk`.

    Returns:
        The mean over the draws, with the kernel of each in `Kernel.draws`. It is unbiased, and
        its error falls as 1/√r.

    Raises:
        ModelError: as `entk`.
        KernelError: if there are fewer than two draws, or `seed` is wrong; otherwise as `entk`.
    """
    check_draws(draws, 2, "a standard error", seed)

    def signs(width: int, like: Tensor) -> Cotangents:
        return Cotangents.signs(draws, width, seed, like)

    with prepared(model, x, y, params, signs, Pairing.APART, preconditioner) as problem:
        layers, survey = compute(problem, False, "model", memory, check)
        routes = {name: survey.route(name) for name in problem.parameters}
    values = layers[""]
    return Kernel(
        values.mean(dim=0), "trace", {}, routes, values, Randomness(COTANGENTS, int(seed))
    )


@checked
def estimate_distance(a: Kernel, b: Kernel) -> tuple[float, float]:
    """Compute the kernel distance S between two estimates of one model, with its standard error.

    Args:
        a: an estimate, as `estimate_entk` gives it.
        b: an estimate with the same samples, seed and number of draws r.

    Returns:
        S of the mean kernels (arXiv:2503.16316, eq. 4), and its standard error by the jackknife
        over the draws (Quenouille, 1956).

    Raises:
        KernelError: if one is not an estimate, the estimates differ in shape, number of draws,
            seed or kind, as far as these are known, or one is zero.
    """
    if a.draws is None or b.draws is None:
        raise KernelError(
            "an exact kernel has no draws; take kernel_distance, or two kernels of estimate_entk"
        )
    check_same_randomness([a, b])
    first, second = a.draws, b.draws
    if first.shape != second.shape:
        raise KernelError(
            "estimates of different samples or draws cannot be compared: shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}; estimate both with the same samples, "
            "draws and seed"
        )
    without = [_distance(_without(first, k), _without(second, k)) for k in range(len(first))]
    return _distance(first.mean(dim=0), second.mean(dim=0)), _jackknife(without)


def _jackknife(values: Sequence[float]) -> float:
    r, mean = len(values), sum(values) / len(values)
    return math.sqrt((r - 1) / r * sum((value - mean) ** 2 for value in values))


def _without(draws: Tensor, k: int) -> Tensor:
    return torch.cat([draws[:k], draws[k + 1 :]]).mean(dim=0)


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    norms = float(a.norm()), float(b.norm())
    if 0.0 in norms:
        raise KernelError("an estimate is zero everywhere, so S is undefined; check `params`")
    return 0.5 * float((a / norms[0] - b / norms[1]).square().sum())
