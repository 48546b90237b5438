"""Runs made up for tests: a kernel that leaves its start and settles into a small region."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.runs.reader import Run


@dataclass(frozen=True)
class MadeRecipe:
    description: str
    yaml: str
    lineage: str | None = None

    def to_yaml(self):
        return self.yaml


def made_series(steps, samples=8, noise=0.2):
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, samples, 20, generator=generator, dtype=torch.float64)
    kernels = []
    for step in steps:
        jitter = torch.randn(samples, 20, generator=generator, dtype=torch.float64)
        features = start * 0.97**step + end * (1 - 0.97**step) + noise * jitter
        kernels.append(Kernel(features @ features.T))
    return KernelSeries(steps, kernels)


def layered(series):
    """The same series, of two layers: the first has 30 % of every kernel."""
    kernels = [
        replace(k, by_layer={"first": 0.3 * k.values, "last": k.values - 0.3 * k.values})
        for k in series.kernels
    ]
    return KernelSeries(series.steps, kernels)


def constant_series(steps):
    return KernelSeries(steps, [Kernel(torch.eye(4))] * len(steps))


def made_run(series=None, **changes):
    series = series or made_series(range(0, 1001, 20))
    steps = np.array(series.steps)
    fields = {
        "path": Path("runs/made"),
        "name": "made-1a2b3c4d",
        "recipe": MadeRecipe("A made-up run", "seed: 0\n"),
        "series": series,
        "scalars": {
            "step": steps,
            "train_loss": 2.0 * np.exp(-steps / 200),
            "test_loss": 2.1 * np.exp(-steps / 200),
            "test_accuracy": 1 - 0.9 * np.exp(-steps / 200),
            "learning_rate": np.full(len(steps), 0.1),
        },
        "environment": {"python": "3.11", "torch": "2.13.0"},
        "command": "conescope run made",
        "total_steps": series.steps[-1],
        "finished": True,
        "seconds": 75.0,
    }
    return Run(**(fields | changes))


def without_evaluations(run_scalars):
    return {name: values[:0] for name, values in run_scalars.items()}
