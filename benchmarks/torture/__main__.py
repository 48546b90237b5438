"""Run batteries of attacks on run folders and on processes, and print how many cases held.

`python -m benchmarks.torture damages --seed 0 --share 0.1`; exits with 1 unless all held.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.torture.bad_inputs import bad_inputs
from benchmarks.torture.concurrency import concurrency
from benchmarks.torture.damages import damages
from benchmarks.torture.evil_files import evil_files
from benchmarks.torture.failing_writes import failing_writes
from benchmarks.torture.kills import kills
from benchmarks.torture.memory import memory
from benchmarks.torture.outcome import Battery, table

BATTERIES: dict[str, Battery] = {
    "damages": damages,
    "evil-files": evil_files,
    "bad-inputs": bad_inputs,
    "failing-writes": failing_writes,
    "kills": kills,
    "concurrency": concurrency,
    "memory": memory,
}


def main() -> int:
    """Run the batteries that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("batteries", nargs="*", metavar="BATTERY", help=", ".join(BATTERIES))
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases to try (1)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.batteries if name not in BATTERIES]:
        parser.error(f"there is no battery {', '.join(unknown)}; see --help for the names")
    if not 0 < arguments.share <= 1:
        parser.error("--share must lie in (0, 1]")
    torch.set_num_threads(1)
    all_held = True
    for name in arguments.batteries or BATTERIES:
        print(f"{name}, seed {arguments.seed}, share {arguments.share:g}", flush=True)
        outcomes = BATTERIES[name](arguments.seed, arguments.share)
        print(table(outcomes), flush=True)
        all_held &= all(outcome.held for outcome in outcomes)
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
