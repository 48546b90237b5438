"""How often `cone` is right on simulated series: python tests/cone_table.py --series 200.

Prints the tables of docs/cone.md; with --bootstrap, those that set its intervals beside ones by a
block bootstrap over time. Series number i has seed i; odd ones have uneven steps.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from block_bootstrap import interval
from conescope.statistics.cone import Cone, Estimate, cone
from conescope.statistics.cone.verdict import ENOUGH
from simulated import MOTIONS, Simulated, frozen, simulate


def cones(name: str, count: int, number: int) -> Iterator[tuple[Simulated, Cone]]:
    """A number of simulated series of `count` kernels, with what `cone` says of each."""
    for seed in range(number):
        truth = simulate(MOTIONS[name], count, seed, even=seed % 2 == 0)
        yield truth, cone(truth.series)


def covered(truth: Simulated, found: Cone) -> dict[str, bool]:
    """Quantity → whether its interval holds the truth, for those that the motion has."""
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
    """Verdicts of series of `count` kernels, and how many 95 % intervals hold the truth."""
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
    """Intervals of half-angle and R by block bootstrap over phase II, as for `covered`.

    The half-angle's square is the mean of θ_t², and R² that of S(t, t + dt) at a third of the
    phase, a lag at which a plateau has to be seen.
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
    """Coverage and length of 95 % intervals, by likelihood and by block bootstrap."""
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


def main() -> None:
    """Print the tables of docs/cone.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--series", type=int, default=200, help="series of each kind")
    parser.add_argument("--bootstrap", action="store_true", help="beside a block bootstrap")
    chosen = parser.parse_args()
    for count in (100, 25):
        (print_bootstrap if chosen.bootstrap else print_table)(count, chosen.series)


if __name__ == "__main__":
    main()
