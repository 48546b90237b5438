"""What a watch takes beside the training it watches: `python -m benchmarks.watch`.

Training steps and measurements take turns in one process, in CPU time of one thread, which other
work on the machine stretches less than wall time. Memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

import conescope as cs
from benchmarks.machine import memory_field, reset_peak
from benchmarks.problems import CLASSES, RESNET


class Training:
    """ResNet-20 on images of noise, with a watch that measures when it is told to."""

    def __init__(self, batch: int, probe: int, memory: str | None, folder: str) -> None:
        torch.manual_seed(0)
        self.model = RESNET.build().train()
        self.images = torch.randn(batch, *RESNET.image)
        self.labels = torch.randint(0, CLASSES, (batch,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        x = torch.randn(probe, *RESNET.image)
        self.watch = cs.Watch(self.model, x, when="every 2", out=folder, memory=memory)
        self.number = 0

    def step(self) -> None:
        """Forward, cross-entropy, backward, SGD with momentum."""
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def idle(self) -> None:
        """A call of the watch at a step that its schedule does not name."""
        self.number += 1 + self.number % 2
        self.watch.step(self.number)

    def measure(self) -> None:
        """A call of the watch that measures and stores a kernel."""
        self.number += 2 - self.number % 2
        self.watch.step(self.number)


def seconds(work: Callable[[], None]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def times(batch: int, probe: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of a training step, of an idle call, of a measurement; medians of rounds."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(batch, probe, None, folder)
        kinds = (training.step, training.idle, training.measure)
        for work in kinds:
            work()
        taken = [[seconds(work) for work in kinds] for _ in range(rounds)]
        return tuple(map(statistics.median, zip(*taken, strict=True)))


def peak_bytes(batch: int, probe: int, memory: str | None) -> int:
    """What training holds at most beyond the process itself; "none" for the training alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(batch, probe, None if memory == "none" else memory, folder)
        gc.collect()
        baseline = memory_field("VmRSS")
        reset_peak()
        training.step()
        if memory != "none":
            training.measure()
        training.step()
        return memory_field("VmHWM") - baseline


def main() -> None:
    """Print the times and the peaks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--probe", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    size = arguments.batch, arguments.probe
    torch.set_num_threads(1)
    step, idle, kernel = times(*size, arguments.rounds)
    print(f"ResNet-20, batch {size[0]}, probe n = {size[1]}, trace, torch {torch.__version__}")
    print(f"training step {step:.2f} s, idle call {idle * 1e6:.0f} µs, kernel {kernel:.2f} s")
    print(f"a kernel takes as long as {kernel / step:.1f} training steps")
    for every in (50, 100, 500):
        print(f"  every {every}: {kernel / (every * step):.1%} on top")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        budgets = ("none", None, "1GB", "256MB")
        peaks = pool.map(partial(peak_bytes, *size), budgets, chunksize=1)
    for budget, peak in zip(budgets, peaks, strict=True):
        print(f"peak memory, {budget or 'default budget'}: {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
