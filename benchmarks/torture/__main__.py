"""Run batteries of attacks on run folders, files and processes, and say how many cases held.

`python -m benchmarks.torture --minutes 2 --seed 0` exits with 1 unless all held.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.torture.bad_inputs import bad_inputs
from benchmarks.torture.case import Battery, Outcome, battery_outcomes
from benchmarks.torture.concurrency import concurrency
from benchmarks.torture.damages import damages
from benchmarks.torture.evil_files import evil_files
from benchmarks.torture.failing_writes import failing_writes
from benchmarks.torture.forgeries import forgeries
from benchmarks.torture.kills import kills
from benchmarks.torture.memory import memory
from benchmarks.torture.results import BatteryResult, fill_page, table, to_json

BATTERIES: dict[str, Battery] = {
    "damages": damages,
    "forgeries": forgeries,
    "evil-files": evil_files,
    "bad-inputs": bad_inputs,
    "failing-writes": failing_writes,
    "kills": kills,
    "concurrency": concurrency,
    "memory": memory,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the batteries that the command line names; return the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    arguments = _parsed(given)
    torch.set_num_threads(1)
    names, results = list(dict.fromkeys(arguments.batteries or BATTERIES)), []
    print(f"seed {arguments.seed}", flush=True)
    begun = time.monotonic()
    with _progress() as bar:
        for place, name in enumerate(names):
            left = arguments.minutes * 60 - (time.monotonic() - begun)
            share = max(0.0, left / (len(names) - place))
            results.append(_result(name, arguments.seed, share, arguments.case, bar))
            print(results[-1], flush=True)
    command = shlex.join(["python", "-m", "benchmarks.torture", *given])
    values = to_json(results, command, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if arguments.doc:
        fill_page(arguments.doc, table([values]))
    if not any(result.outcomes for result in results):
        print(f"no battery has a case {arguments.case!r}")
        return 2
    return 0 if all(result.held == len(result.outcomes) for result in results) else 1


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    option = parser.add_argument
    option("batteries", nargs="*", metavar="BATTERY", help=", ".join(BATTERIES))
    option("--seed", type=int, default=0, help="of all that is drawn (0)")
    option("--minutes", type=float, default=float("inf"),
        help="the time that the batteries share; each tries one case (no bound)")  # fmt: skip
    option("--case", default="", metavar="NAME", help="try the case of this name alone")
    option("--json", type=Path, metavar="FILE", help="write what became of each case")
    option("--doc", type=Path, metavar="PAGE", help="the page whose table to fill")
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.batteries if name not in BATTERIES]:
        parser.error(f"there is no battery {', '.join(unknown)}; see --help for the names")
    if not arguments.minutes > 0:
        parser.error("--minutes must be above 0")
    return arguments


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _result(name: str, seed: int, seconds: float, only: str, bar: Progress) -> BatteryResult:
    """Attempt cases of a battery for some seconds, and tell those that do not hold."""
    begun, tried = time.monotonic(), []
    is_bounded = seconds < float("inf")
    task = bar.add_task(f"{name}: preparing", total=seconds if is_bounded else None)

    def tell(outcome: Outcome) -> None:
        tried.append(outcome)
        lost = sum(not one.held for one in tried)
        text = f"{name}: {len(tried):,} tried, {lost:,} not held"
        bar.update(task, completed=time.monotonic() - begun, description=text)
        if not outcome.held:
            print(f"not held: {name}: {outcome}", flush=True)
            again = ["make", "torture", f"BATTERIES={name}", f"SEED={seed}", f"CASE={outcome.name}"]
            print(f"  again: {shlex.join(again)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        cases, outcomes = battery_outcomes(
            BATTERIES[name],
            Path(folder),
            seed,
            until=lambda: time.monotonic() - begun > seconds,
            only=only,
            told=tell,
        )
    bar.remove_task(task)
    return BatteryResult(name, cases, outcomes, time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
