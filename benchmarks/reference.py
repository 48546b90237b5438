"""The float64 reference: one backward pass for each of a few samples and each output.

Run as `python -m benchmarks.reference PROBLEM FILE THREADS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.problems import CLASSES, PROBLEMS

_JACOBIAN_BYTES = 4 * 10**9
_MOST_SAMPLES = 32


def reference_kernel(model: nn.Module, x: Tensor, samples: list[int]) -> Tensor:
    """The full kernel [r, c, r, c] of some samples in float64, by plain autograd."""
    model = model.double()
    parameters = list(model.parameters())
    rows = []
    for i in samples:
        logits = model(x[i : i + 1].double())[0]
        for k in range(len(logits)):
            gradients = torch.autograd.grad(logits[k], parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    r = len(samples)
    return (jacobian @ jacobian.T).reshape(r, CLASSES, r, CLASSES)


def spread_samples(model: nn.Module, n: int) -> list[int]:
    """As many samples as the Jacobian's budget allows, spread evenly over all n."""
    sample_bytes = 8 * CLASSES * sum(p.numel() for p in model.parameters())
    # `jacobian` and the rows it is stacked from exist at once.
    count = max(2, min(n, _MOST_SAMPLES, _JACOBIAN_BYTES // (2 * sample_bytes)))
    return spread(n, count)


def spread(n: int, count: int) -> list[int]:
    """So many samples, at least two, spread evenly over all n."""
    return [round(k * (n - 1) / (count - 1)) for k in range(count)]


def reduce(full: Tensor, outputs: str) -> Tensor:
    """The class trace or the kernel of the sum from the full kernel."""
    if outputs == "trace":
        return torch.einsum("ncmc->nm", full)
    if outputs == "sum":
        return full.sum((1, 3))
    return full


def deviations(kernel: Tensor, reference: dict, outputs: str) -> tuple[float, float]:
    """How far a kernel is from the reference on the reference's samples.

    Returns:
        ‖K − K*‖ / ‖K*‖, and the largest |K_ab − K*_ab| / √(K*_aa K*_bb).
    """
    samples = reference["samples"]
    truth = reduce(reference["full"], outputs)
    block = kernel.detach()[samples]
    block = block[:, :, samples] if outputs == "full" else block[:, samples]
    side = len(samples) * (CLASSES if outputs == "full" else 1)
    truth, block = truth.reshape(side, side), block.double().reshape(side, side)
    scale = truth.diagonal().sqrt()
    difference = block - truth
    worst = (difference.abs() / scale[:, None] / scale).max()
    return float(difference.norm() / truth.norm()), float(worst)


def main(problem: str, path: str, threads: str) -> None:
    """Compute and save the reference of one problem."""
    torch.set_num_threads(int(threads))
    model, x = PROBLEMS[problem].make()
    samples = spread_samples(model, len(x))
    torch.save({"samples": samples, "full": reference_kernel(model, x, samples)}, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
