"""Coverage of the intervals of `conescope lazy` where the truth is known.

`python -m benchmarks.lazy_coverage`: a small network is fine-tuned with many seeds, and every
seed's outputs are known on thousands of test samples and its kernels on hundreds of training
samples. So a number's mean over all seeds and all samples is the truth, up to the seeds that are
there. A trial is what a user sees: R seeds, m test samples and a probe of n samples, all drawn at
random; covered is a trial whose interval of 95 % holds the truth. Groups of seeds are disjoint, and
each is tried with several draws of samples, so that the standard error counts groups.

Of one seed the interval speaks of this seed only, and so the truth is its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

import conescope as cs
from conescope.experiments.lazy import LazyReport, signs
from conescope.experiments.lazy.signs import Interval
from conescope.kernel.distance import kernel_distance
from conescope.kernel.matrix import Kernel
from conescope.statistics.uncertainty import sampled_distance

TRAINED, TESTED, DRAWS = 300, 4000, 10
"""Training samples, test samples of the truth, and draws of samples for each group of seeds."""


def world(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return samples and their classes, which a linear model cannot tell apart: [n, 6] and [n]."""
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()


def report_of(seeds: int, steps: int, folder: Path) -> LazyReport:
    """Fine-tune with all seeds, and keep the kernels of all training samples."""
    return cs.lazy_report(
        lambda _: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)),
        world(TRAINED, 1),
        test=world(TESTED, 2),
        out=folder,
        lr=0.5,
        optimizer="sgd",
        steps=steps,
        seeds=seeds,
        when="never",
        probe=TRAINED,
        regression=20,
    )


def part_of(kernel: Kernel, places: np.ndarray) -> Kernel:
    """Return the kernel of some of the samples."""
    return Kernel(kernel.values[places][:, places], kernel.outputs)


class Truth:
    """All seeds' outputs on all test samples, and their kernels on all training samples."""

    def __init__(self, report: LazyReport, folder: Path) -> None:
        count = len(report.seeds)
        series = [cs.load_run(folder / f"seed-{seed}").series.kernels for seed in range(count)]
        self.kernels = [(kernels[0], kernels[-1]) for kernels in series]
        self.logits = [one.logits.double().numpy() for one in report.seeds]
        self.correct = np.stack([report.correct(0), report.correct(1)])
        self.truth = {
            "kernel": np.array([kernel_distance(*pair) for pair in self.kernels]),
            "function": np.array([report.relative_distance(one)[0] for one in report.seeds]),
            "accuracy": (self.correct[0] - self.correct[1]).mean(axis=1),
        }

    def intervals(self, seeds: np.ndarray, test: np.ndarray, probe: np.ndarray) -> list[Interval]:
        """Return what a user sees of these seeds, test samples and probe, as `LazyReport` does."""
        kernels = [sampled_distance(*(part_of(k, probe) for k in self.kernels[s])) for s in seeds]
        functions = [
            signs.relative_distance(tuned[0][test], tuned[-1][test], linear[-1][test])
            for tuned, linear in (self.logits[s] for s in seeds)
        ]
        correct = self.correct[:, seeds][:, :, test]
        return [
            signs.interval(
                [k.plain for k in kernels], float(np.mean([k.standard_error for k in kernels]))
            ),
            signs.interval([d for d, _ in functions], float(np.mean([e for _, e in functions]))),
            signs.accuracy_difference(correct[0], correct[1]),
        ]


def covered(found: Truth, group: int, tested: int, probed: int) -> Iterator[list[list[bool]]]:
    """Yield, for each group of seeds, whether each sign's interval holds the truth; [draws, 3]."""
    rng = np.random.default_rng(group)
    whole = [values.mean() for values in found.truth.values()]
    count = len(found.kernels)
    for first in range(0, count - group + 1, group):
        seeds = np.arange(first, first + group)
        truths = whole if group > 1 else [values[first] for values in found.truth.values()]
        draws = []
        for _ in range(DRAWS):
            test = rng.choice(TESTED, tested, replace=False)
            probe = rng.choice(TRAINED, probed, replace=False)
            intervals = found.intervals(seeds, test, probe)
            draws.append(
                [one.low <= truth <= one.high for one, truth in zip(intervals, truths, strict=True)]
            )
        yield draws


def main() -> None:
    """Print how often each interval holds the truth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=120, help="fine-tunings (default 120)")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 12], help="iterations of each")
    arguments = parser.parse_args()
    for steps in arguments.steps:
        with TemporaryDirectory() as name:
            found = Truth(report_of(arguments.seeds, steps, Path(name)), Path(name))
        truth = ", ".join(f"{name} {v.mean():.3g}" for name, v in found.truth.items())
        print(f"{steps} iterations, {arguments.seeds} seeds; truth: {truth}")
        for group, tested, probed in (
            (1, 100, 32), (2, 100, 32), (3, 10, 10), (3, 30, 32), (3, 100, 32), (5, 100, 32),
        ):  # fmt: skip
            shares = np.array(list(covered(found, group, tested, probed))).mean(axis=1)
            error = shares.std(axis=0, ddof=1) / len(shares) ** 0.5
            texts = [
                f"{name} {share:.1%} ± {e:.1%}"
                for name, share, e in zip(found.truth, shares.mean(axis=0), error, strict=True)
            ]
            print(f"  R = {group}, m = {tested}, n = {probed}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
