"""Compare plain and preconditioned kernels of one run's snapshots.

`python -m benchmarks.preconditioned PLAIN PRECONDITIONED` takes two folders that `conescope measure
--by-layer` wrote, and prints what docs/preconditioned.md says of them.
"""

from __future__ import annotations

import argparse

import numpy as np

import conescope as cs
from conescope.runs.reader import Run
from conescope.statistics.spectrum import spectrum

_EARLY = 2_000
"""The iteration after which kernels are compared with the next ones."""
_LAG = 100
_SHOWN = (100, 1_000, 2_000, 5_000, 10_000)


def main() -> None:
    """Print one block of lines for each folder, and the distances between the two."""
    parser = argparse.ArgumentParser(description="Compare plain and preconditioned kernels.")
    parser.add_argument("plain")
    parser.add_argument("preconditioned")
    arguments = parser.parse_args()
    runs = [cs.load_run(arguments.plain), cs.load_run(arguments.preconditioned)]
    for run in runs:
        describe(run)
    shown = [step for step in _SHOWN if all(step in run.series.steps for run in runs)]
    for step in shown:
        a, b = (run.series.kernels[run.series.index(step)] for run in runs)
        print(f"S between the two at {step:,}: {cs.kernel_distance(a, b):.3f}")


def describe(run: Run) -> None:
    """Print how the kernels of a run move, and what they are made of."""
    series = run.series
    starts, distances = series.distances_after(_LAG)
    late = distances[starts >= _EARLY]
    print(run.name)
    print(f"  S(t, t + {_LAG}) from {_EARLY:,} on: {late.mean():.4f}, median {np.median(late):.4f}")
    for step in (step for step in _SHOWN if step in series.steps):
        kernel = series.kernels[series.index(step)]
        diagonal = kernel.values.diagonal().double()
        total = float(diagonal.sum())
        layers = {name: float(part.diagonal().sum()) for name, part in kernel.by_layer.items()}
        convolutions = sum(value for name, value in layers.items() if "conv" in name)
        print(
            f"  {step:6,}: S from the first {cs.kernel_distance(series.kernels[0], kernel):.3f}, "
            f"trace {total:.3g}, effective rank {spectrum(kernel).effective_rank:.1f}, "
            f"convolutions {convolutions / total:.1%}, two leading samples "
            f"{float(diagonal.topk(2).values.sum()) / total:.1%}"
        )


if __name__ == "__main__":
    main()
