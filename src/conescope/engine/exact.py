"""entk(): the exact empirical neural tangent kernel of a model, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from conescope.engine.arguments import is_finite
from conescope.engine.compute.budget import parse_memory
from conescope.engine.compute.shape import Pairing
from conescope.engine.compute.terms import sum_of
from conescope.engine.diagnosis import raise_not_finite, refuse_without_gradient
from conescope.engine.piecewise import Precision, kernel_of
from conescope.engine.problem import Problem, convention, prepared
from conescope.engine.route_choice import by_some_route, self_checked
from conescope.engine.tracing.survey import Survey
from conescope.errors import KernelError
from conescope.kernel.matrix import Kernel, Outputs


def entk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    by_layer: bool = False,
    params: str | Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
    precision: Precision = "model",
) -> Kernel:
    """Compute the empirical NTK ⟨∂f(x_i)/∂θ, ∂f(y_j)/∂θ⟩ of a model (arXiv:2503.16316, eq. 3).

    The model is left as it was to the bit, whatever its forward pass writes.

    Args:
        model: any module in evaluation mode that maps a batch [n, …] to outputs [n, …]; outputs
            of more than one dimension are flattened to c numbers a sample. Complex parameters
            count with their real and their imaginary parts.
        x: n samples, on the device on which the model takes them. Its parameters may be on several
            devices, between which it moves its activations itself.
        y: m samples for the second index; None for y = x, whose kernel is exactly symmetric.
        outputs: which outputs enter, see `Kernel.outputs`.
        by_layer: whether to keep the summands of each layer, too.
        params: names or patterns (`*`, `?`) of parameters or modules to restrict the kernel to;
            None for all that are not frozen.
        memory: budget beyond the model and the result, "2GB" or bytes; None for a quarter of the
            memory of the machine, or of the smallest GPU that holds the model or its outputs.
        check: whether to compare two samples' kernel with plain autograd, the first time that a
            model of these routes is measured; routes that fail are replaced by the general one.
        precision: "bfloat16" rounds the factors of the products to 8 bits, for speed; the sums
            and the network itself keep the model's dtype.

    Returns:
        The kernel; `values` is [n, m], or [n, c, m, c] for "full", in the dtype of the outputs
        and at least float32. Inner products are exact to 1e-6 of the diagonal in float32,
        whatever the number of parameters.

    Raises:
        ModelError: if the model or the input has no exact kernel as it stands: samples that
            depend on each other, gradients that are not finite, outputs that depend on none of
            the parameters.
        KernelError: if `outputs` or `memory` is wrong, or the budget too small.
    """
    if precision not in ("model", "bfloat16"):
        raise KernelError(f'precision is "model" or "bfloat16", not {precision!r}')
    with prepared(model, x, y, params, *convention(outputs)) as problem:
        layers, survey = compute(problem, by_layer, precision, memory, check)
        total = sum_of(layers) if by_layer else layers[""]
        routes = {name: survey.route(name) for name in problem.parameters}
        return Kernel(total, outputs, layers if by_layer else {}, routes)


def compute(
    problem: Problem, by_layer: bool, precision: Precision, memory: str | float | None, check: bool
) -> tuple[Mapping[str, Tensor], Survey]:
    """Compute the kernel of a prepared problem.

    Returns:
        Layer → values, all under "" unless by layer: [n, m], or [n, q, m, q] for the cotangents
        in full, or [q, n, m] where they are apart. And the survey that says by which route each
        parameter was taken.

    Raises:
        ModelError: as `entk`.
        KernelError: as `entk`.
    """
    budget = parse_memory(memory, problem.devices)
    first = check and not problem.survey.checked
    if first:
        problem = self_checked(problem, budget)
    recheck = problem.recheck
    if first and recheck is not None:
        recheck.begin()
    verify = first or (check and recheck is not None and recheck.verify)

    def run(problem: Problem, verify: bool) -> dict[str, Tensor]:
        return kernel_of(problem, by_layer, precision, budget, verify)

    layers, problem = by_some_route(problem, run, verify)
    if recheck is not None:
        recheck.done()
    n, m = problem.samples
    q = len(problem.cotangents)
    shape = {
        Pairing.SUMMED: (n, m or n), Pairing.FULL: (n, q, m or n, q), Pairing.APART: (q, n, m or n)
    }[problem.pairing]  # fmt: skip
    finished = {name: values.to(problem.dtype).view(shape) for name, values in layers.items()}
    decisive = [_decisive(values, m is None).to(problem.dtype) for values in layers.values()]
    if not all(map(is_finite, decisive)):
        raise_not_finite(problem)
    if not any(bool(values.any()) for values in decisive):
        refuse_without_gradient(problem)
    return finished, problem.survey


def _decisive(values: Tensor, symmetric: bool) -> Tensor:
    """Return the diagonal if x is y, as it is zero or not finite wherever a row is; else all."""
    if not symmetric:
        return values
    return values.diagonal(dim1=1, dim2=2)
