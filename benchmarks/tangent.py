"""A linearised training step beside the standard one.

Steps take turns in one process, so that a busy machine slows them alike; memory is measured in a
process of its own for each.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import memory_field, reset_peak
from benchmarks.problems import LENET, RESNET, VGG, Problem
from conescope.tangent import linearize

NETWORKS = {"lenet": LENET, "resnet": RESNET, "vgg": VGG}
Step = Callable[[], None]


class _ByJvp(nn.Module):
    """The Taylor model as torch's documentation makes it: `torch.func.jvp` under autograd."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.network = (model.eval(),)
        self.theta = nn.ParameterList(p.detach().clone() for p in model.parameters())
        self.point = {name: p.detach().clone() for name, p in model.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        steps = (p - q for p, q in zip(self.theta, self.point.values(), strict=True))
        directions = dict(zip(self.point, steps, strict=True))
        output, derivative = torch.func.jvp(
            lambda weights: torch.func.functional_call(self.network[0], weights, (x,)),
            (self.point,),
            (directions,),
        )
        return output + derivative


MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "standard": lambda model: model,
    "linearised": linearize,
    "torch.func.jvp": _ByJvp,
}


def make_step(network: str, kind: str, batch: int) -> Step:
    """A training step: forward, cross-entropy, backward, SGD with momentum."""
    model, images = Problem(NETWORKS[network], batch).make()
    labels = torch.randint(0, 10, (batch,))
    trained = MODELS[kind](model).train()
    optimizer = torch.optim.SGD(trained.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(trained(images), labels).backward()
        optimizer.step()

    step()
    return step


def measure(network: str, batch: int, rounds: int, threads: int) -> dict:
    """Seconds and peak bytes of every kind of step.

    Args:
        network: one of `NETWORKS`.
        batch: samples of a step.
        rounds: timed turns of every kind, after one to warm up.
        threads: of the timed steps.

    Returns:
        "network", "batch", "seconds" (kind → one time a round), "peak_bytes" (kind → bytes).
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(partial(_peak_bytes, network, batch), MODELS, chunksize=1)
    torch.set_num_threads(threads)
    steps = {kind: make_step(network, kind, batch) for kind in MODELS}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - start)
    return {
        "network": network,
        "batch": batch,
        "seconds": seconds,
        "peak_bytes": dict(zip(MODELS, peaks, strict=True)),
    }


def _peak_bytes(network: str, batch: int, kind: str) -> int:
    """What a training holds at most beyond what the process holds without it."""
    torch.set_num_threads(1)
    make_step(network, kind, 2)()
    gc.collect()
    baseline = memory_field("VmRSS")
    reset_peak()
    step = make_step(network, kind, batch)
    step()
    return memory_field("VmHWM") - baseline


def ratios(entry: dict) -> dict[str, tuple[float, float]]:
    """Kind → time (the median of each round's ratio) and memory, as multiples of the standard."""
    standard = entry["seconds"]["standard"]
    times = {
        kind: statistics.median(mine / base for mine, base in zip(taken, standard, strict=True))
        for kind, taken in entry["seconds"].items()
    }
    peaks = entry["peak_bytes"]
    return {kind: (times[kind], peaks[kind] / peaks["standard"]) for kind in times}
