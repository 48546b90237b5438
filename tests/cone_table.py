"""How often `cone` is right on simulated series: python tests/cone_table.py --series 200.

Prints the tables of docs/cone.md. Series number i has seed i; odd ones have uneven steps.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from conescope.metrics.cone import Cone, Estimate, cone
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


def print_verdicts(count: int, number: int) -> None:
    """Right, undecided and wrong verdicts of series of `count` kernels."""
    print(f"\nT = {count}, {number} series a row\n")
    print("| motion | right | undecided | wrong |\n|---|---|---|---|")
    still = Counter(cone(frozen(count, s, even=s % 2 == 0)).verdict for s in range(number))
    _print("frozen", still["frozen"], still["undecided"], number)
    for name, motion in MOTIONS.items():
        if count < motion.entrance + 10:
            continue
        right = undecided = 0
        for truth, found in cones(name, count, number):
            right += found.verdict == motion.kind(truth.late[-1] - truth.late[0])
            undecided += found.verdict == "undecided"
        _print(name, right, undecided, number)


def print_coverage(count: int, number: int) -> None:
    """How many of the 95 % intervals hold the truth."""
    print(f"\nT = {count}, {number} series a row\n")
    print("| motion | 95 % intervals that hold the truth |\n|---|---|")
    for name in MOTIONS:
        held = defaultdict[str, list[bool]](list)
        for truth, found in cones(name, count, number):
            for quantity, holds in covered(truth, found).items():
                held[quantity].append(holds)
        cells = (f"{quantity} {np.mean(holds):.1%}" for quantity, holds in held.items())
        print(f"| {name} | {', '.join(cells)} |", flush=True)


def _print(name: str, right: int, undecided: int, number: int) -> None:
    wrong = number - right - undecided
    cells = (f"{n / number:.1%}" for n in (right, undecided, wrong))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--series", type=int, default=200, help="series of each kind")
    number = parser.parse_args().series
    for count in (100, 25):
        print_verdicts(count, number)
    print_coverage(100, number)


if __name__ == "__main__":
    main()
