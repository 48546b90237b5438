"""Carry out the atlas; the same command goes on where it was stopped.

python -m benchmarks.atlas.small_mnist data/mnist data/small-mnist.npz
python -m benchmarks.atlas data/small-mnist.npz --out sweeps/atlas
python -m benchmarks.atlas data/small-mnist.npz --lines second.yaml --out sweeps/second
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.atlas.cells import SEEDS, cells
from benchmarks.sweeps import PRELOAD
from conescope.experiments.sweep.carrying_out import carry_out_sweep
from conescope.experiments.sweep.single_run import RunTask
from conescope.experiments.sweep.slots import Slots
from conescope.experiments.sweep.sweep_folder import SweepRun, store_sweep
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.report.run_numbers import store_run_numbers


def main() -> int:
    """Carry out the runs, and print how each ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the file of benchmarks.atlas.small_mnist")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--lines", default="lines.yaml", help="a file of this folder (lines.yaml)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of each cell (0 1 2)")
    parser.add_argument("--slots", type=int, default=1, help="runs at a time (1)")
    arguments = parser.parse_args()
    points = cells(arguments.data.absolute(), arguments.lines, arguments.seeds)
    sweep = plan_sweep(points, arguments.out, "python -m benchmarks.atlas")
    store_sweep(sweep)
    print(f"{len(sweep.runs)} runs", flush=True)

    def task_of(run: SweepRun) -> RunTask:
        return RunTask.of(run, sweep.command, store_run_numbers, 1)

    backend = Slots(arguments.slots, 1, (*PRELOAD, "benchmarks.atlas.small_mnist"))
    carry_out_sweep(
        sweep, backend, task_of, told=lambda run, state: print(run.id, state, flush=True)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
