"""How often `cone` is right on simulated series: python tests/cone_table.py --series 200.

Prints the tables of docs/cone.md. Series number i has seed i; odd ones have uneven steps.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from conescope.metrics.cone import Cone, Estimate, cone
from conescope.metrics.cone.verdict import ENOUGH
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


def _print_row(name: str, right: int, undecided: int, held: Mapping[str, int], number: int) -> None:
    counts = (right, undecided, number - right - undecided)
    verdicts = " | ".join(f"{n / number:.1%}" for n in counts)
    intervals = ", ".join(f"{quantity} {n / number:.1%}" for quantity, n in held.items())
    print(f"| {name} | {verdicts} | {intervals} |", flush=True)


def main() -> None:
    """Print both tables of docs/cone.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--series", type=int, default=200, help="series of each kind")
    number = parser.parse_args().series
    for count in (100, 25):
        print_table(count, number)


if __name__ == "__main__":
    main()
