"""Each layer's share of the kernel's movement: `python -m benchmarks.layers RUN… --at 0,200`.

The kernels are those that a run stored by layer; or, with `--draws`, are computed of the snapshots
that a run of a recipe kept, for models of many outputs: the class trace by random cotangents v of
±1, which all snapshots share. Of a model whose outputs are the products v · f(x) / √draws, the
exact class trace is that estimate, and it has a summand for each layer.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.beyond import print_means, print_table
from benchmarks.draws import signs
from conescope import entk
from conescope.experiments.remeasure import Snapshots
from conescope.experiments.stored import load_run
from conescope.kernel.matrix import Kernel
from conescope.statistics.attribution import attribution


class Drawn(nn.Module):
    """A model's outputs, multiplied by random cotangents: [n, c] to [n, draws]."""

    def __init__(self, model: nn.Module, draws: int, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.cotangents = signs(draws, outputs).float().T / draws**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Return the products."""
        return self.model(x) @ self.cotangents


def drawn_kernels(path: Path, steps: Sequence[int], draws: int) -> dict[int, Kernel]:
    """Compute the kernels of a run's snapshots by layer: iteration → kernel."""
    subject = Snapshots(path, when=", ".join(map(str, steps)))
    probe = subject.probe
    assert isinstance(probe, Tensor)
    with torch.no_grad():
        outputs = subject.model(probe[:1]).shape[1]
    module, found = Drawn(subject.model, draws, outputs), {}
    for step in steps:
        subject.load(step)
        found[step] = entk(module, probe, by_layer=True)
    return found


def stored_kernels(path: Path, steps: Sequence[int]) -> dict[int, Kernel]:
    """Return the kernels that a run stored: iteration → kernel."""
    series = load_run(path).series
    return {step: series.kernels[series.steps.index(step)] for step in steps or series.steps}


def moved(kernels: Mapping[int, Kernel], groups: str) -> dict[str, dict[str, float]]:
    """Return S of each two kernels in turn, and of the first and last, and each group's share."""
    steps, found = list(kernels), {}
    pairs = dict.fromkeys([*pairwise(steps), (steps[0], steps[-1])])
    for start, stop in pairs:
        movement = attribution(kernels[start], kernels[stop])
        shares: dict[str, float] = {}
        for layer, share in movement.layers.items():
            match = re.search(groups, layer)
            name = layer if match is None else match.group()
            shares[name] = shares.get(name, 0.0) + share
        found[f"{start:,} to {stop:,}"] = {"S": movement.distance, **shares}
    return found


def main() -> None:
    """Print the shares of each run, and their means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--at", default="", help="iterations, such as 0,200,500 (default all)")
    parser.add_argument("--draws", type=int, help="random cotangents")
    parser.add_argument(
        "--groups", default="$^", help="regular expression; layers with one match are one group"
    )
    arguments = parser.parse_args()
    steps = [int(text) for text in arguments.at.split(",") if text]
    rows = []
    for path in arguments.runs:
        if arguments.draws is None:
            kernels = stored_kernels(path, steps)
        else:
            kernels = drawn_kernels(path, steps, arguments.draws)
        rows.append(moved(kernels, arguments.groups))
        print(path.name)
        print_table(rows[-1])
    if len(rows) > 1:
        print(f"mean over {len(rows)} runs")
        print_means(rows)


if __name__ == "__main__":
    main()
