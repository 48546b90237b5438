"""A linearised training step beside the standard one: `python -m benchmarks.tangent`.

Steps take turns in one process, so that a busy machine slows them alike; memory is measured in a
process of its own for each.
"""

from __future__ import annotations

import argparse
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


def ratios(network: str, batch: int, rounds: int) -> dict[str, float]:
    """Each kind's time, divided by the standard step's of the same round; the median of rounds."""
    steps = {kind: make_step(network, kind, batch) for kind in MODELS}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - start)
    return {
        kind: statistics.median(
            mine / standard for mine, standard in zip(taken, times["standard"], strict=True)
        )
        for kind, taken in times.items()
    }


def peak_bytes(network: str, batch: int, kind: str) -> int:
    """What a training holds at most beyond what the process holds without it."""
    torch.set_num_threads(1)
    make_step(network, kind, 2)()
    gc.collect()
    baseline = memory_field("VmRSS")
    reset_peak()
    step = make_step(network, kind, batch)
    step()
    return memory_field("VmHWM") - baseline


def main() -> None:
    """Print the ratios to the standard step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tangent", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        measure = partial(peak_bytes, arguments.network, arguments.batch)
        peaks = dict(zip(MODELS, pool.map(measure, MODELS, chunksize=1), strict=True))
    torch.set_num_threads(arguments.threads)
    print(
        f"{NETWORKS[arguments.network].label}, batch {arguments.batch}, torch {torch.__version__}"
    )
    for kind, ratio in ratios(arguments.network, arguments.batch, arguments.rounds).items():
        memory = peaks[kind] / peaks["standard"]
        print(f"{kind:15} time × {ratio:.2f}   memory × {memory:.2f} ({peaks[kind] / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
