"""How often the verdict is right, and how long the statistics take: `python -m benchmarks.cone`.

"table" prints how often the verdicts and intervals of `cone` are right on simulated series;
"bootstrap" compares the intervals with those of a block bootstrap over time; "time" measures the
statistics on a long series. The results are in docs/cone.md. Series number i has seed i, and those
with an odd number have uneven steps.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from benchmarks.block_bootstrap import interval
from benchmarks.machine import memory_field
from benchmarks.simulated_motions import MOTIONS, Simulated, frozen, simulate
from conescope.kernel import Kernel, KernelSeries
from conescope.statistics.alignment import alignments
from conescope.statistics.attribution import attribution
from conescope.statistics.cone import Cone, Estimate, cone
from conescope.statistics.cone.verdict import ENOUGH
from conescope.statistics.spectrum import spectra
from conescope.statistics.uncertainty import sampled_distance


def cones(name: str, count: int, number: int) -> Iterator[tuple[Simulated, Cone]]:
    """Yield `number` simulated series of `count` kernels, each with its `Cone`."""
    for seed in range(number):
        truth = simulate(MOTIONS[name], count, seed, even=seed % 2 == 0)
        yield truth, cone(truth.series)


def covered(truth: Simulated, found: Cone) -> dict[str, bool]:
    """Return whether the interval of each quantity that the motion has contains the truth."""
    motion, steps = truth.motion, truth.late
    pairs: dict[str, tuple[Estimate | None, float]] = {
        "half-angle": (found.half_angle, motion.extent(steps))
    }
    if not motion.diffusion and (motion.confined or not motion.drift):
        pairs["R"] = found.radius, float(np.sqrt(motion.confined + motion.jitter))
    if not motion.diffusion and not motion.drift:
        pairs["S to H(0)"] = found.start_distance, truth.start_distance
    if not motion.drift:
        pairs["dimension"] = found.dimension, motion.participation(steps)
    if motion.confined:
        pairs["τ_c"] = found.relaxation_time, motion.relaxation
    elif motion.diffusion or motion.drift:
        pairs["exponent"] = found.exponent, 2.0 if motion.drift else 1.0
    if motion.entrance:
        pairs["t*"] = found.boundary, steps[0]
    return {
        quantity: estimate is not None and value in estimate
        for quantity, (estimate, value) in pairs.items()
    }


def print_table(count: int, number: int) -> None:
    """Print how often verdicts of series of `count` kernels are right, and intervals cover."""
    print(f"\nT = {count}, {number} series a row\n")
    print("| motion | right | undecided | wrong | 95 % intervals that hold the truth |")
    print("|---|---|---|---|---|")
    still = Counter(cone(frozen(count, s, even=s % 2 == 0)).verdict for s in range(number))
    _print_row("frozen", still["frozen"], still["undecided"], {}, number)
    for name, motion in MOTIONS.items():
        if count < motion.entrance + ENOUGH:
            continue
        right = undecided = 0
        held = Counter[str]()
        for truth, found in cones(name, count, number):
            right += found.verdict == motion.kind(truth.late[-1] - truth.late[0])
            undecided += found.verdict == "undecided"
            held.update(covered(truth, found))
        _print_row(name, right, undecided, held, number)


def bootstrapped(truth: Simulated, found: Cone, seed: int) -> dict[str, Estimate]:
    """Return half-angle and R with intervals by a block bootstrap over phase II.

    The half-angle's square is the mean of θ_t². R² is the mean of S(t, t + dt) at a lag of a third
    of the phase, at which a plateau has to be seen.
    """
    steps = np.array(truth.series.steps)
    late = np.flatnonzero(steps >= found.first)
    apart = len(late) // 3
    plateau = truth.series.distances()[late[:-apart], late[apart:]]
    squares = {"half-angle": found.angles[late] ** 2, "R": plateau}
    return {
        quantity: Estimate(*np.sqrt([values.mean(), *interval(values, seed)]).tolist())
        for quantity, values in squares.items()
    }


def print_bootstrap(count: int, number: int) -> None:
    """Print coverage and length of 95 % intervals, by likelihood and by block bootstrap."""
    print(f"\nT = {count}, {number} series a row; by likelihood, by bootstrap\n")
    print("| motion | half-angle in its interval | R in its interval | ", end="")
    print("bootstrap's length, half-angle | R |\n|---|---|---|---|---|")
    for name, motion in MOTIONS.items():
        if count < motion.entrance + ENOUGH:
            continue
        held, ratios = Counter[str](), {"half-angle": [], "R": []}
        for seed, (truth, found) in enumerate(cones(name, count, number)):
            likely = {"half-angle": found.half_angle, "R": found.radius}
            for quantity, other in bootstrapped(truth, found, seed).items():
                own = likely[quantity]
                again = covered(truth, replace(found, half_angle=other, radius=other))
                held[f"{quantity} own"] += covered(truth, found).get(quantity, False)
                held[f"{quantity} other"] += again.get(quantity, False)
                ratios[quantity].append((other.high - other.low) / (own.high - own.low))
        has = {"half-angle": True, "R": "R" in covered(truth, found)}
        cells = [
            f"{held[f'{q} own'] / number:.0%}, {held[f'{q} other'] / number:.0%}" if has[q] else "–"
            for q in has
        ]
        cells += [f"{np.median(ratios[q]):.2f}" if has[q] else "–" for q in has]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _print_row(name: str, right: int, undecided: int, held: Mapping[str, int], number: int) -> None:
    counts = (right, undecided, number - right - undecided)
    verdicts = " | ".join(f"{n / number:.1%}" for n in counts)
    intervals = ", ".join(f"{quantity} {n / number:.1%}" for quantity, n in held.items())
    print(f"| {name} | {verdicts} | {intervals} |", flush=True)


def long_series(count: int, samples: int) -> KernelSeries:
    """Return float32 kernels of features that are drawn back to where they began."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((samples, samples))
    features, kernels = centre.copy(), []
    for _ in range(count):
        features += 0.1 * (centre - features) + 0.05 * rng.standard_normal(features.shape)
        kernels.append(Kernel(torch.from_numpy(features @ features.T).float()))
    return KernelSeries(range(0, 100 * count, 100), kernels)


def print_times(count: int, samples: int) -> None:
    """Print how long each part of the statistics takes on one series, and the peak of memory."""
    series, labels = long_series(count, samples), torch.arange(samples) % 10
    pair = series.kernels[0], series.kernels[-1]
    parts = {
        "distances": series.distances,
        "cone": lambda: cone(series),
        "spectra": lambda: spectra(series.steps, series.kernels),
        "alignments": lambda: alignments(series.steps, series.kernels, labels),
        "attribution of a pair": lambda: attribution(*pair, labels),
        "error bars of S of a pair": lambda: sampled_distance(*pair),
    }
    print(f"{count} float32 kernels of {samples} samples, torch {torch.__version__}")
    for name, part in parts.items():
        began, used = time.perf_counter(), time.process_time()
        part()
        wall, processor = time.perf_counter() - began, time.process_time() - used
        print(f"{name}: {wall:.2g} s, {processor:.2g} s of processor time", flush=True)
    print(f"peak memory: {memory_field('VmHWM') / 1e9:.1f} GB")


def main(argv: list[str] | None = None) -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cone", description=__doc__)
    parser.add_argument("what", choices=("table", "bootstrap", "time"))
    parser.add_argument("--series", type=int, default=200, help="series of each motion (200)")
    parser.add_argument("--kernels", type=int, default=1000, help="kernels to time (1000)")
    parser.add_argument("--samples", type=int, default=256, help="samples of a kernel (256)")
    chosen = parser.parse_args(argv)
    if chosen.what == "time":
        print_times(chosen.kernels, chosen.samples)
        return
    for count in (100, 25):
        (print_table if chosen.what == "table" else print_bootstrap)(count, chosen.series)


if __name__ == "__main__":
    main()
