"""`conescope perturb`: how far apart trainings end that began a little apart."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from conescope.cli.command_help import SNAPSHOTS, About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.stored import write_report
from conescope.cli.switch import iterations, train_children
from conescope.cli.terminal import STDOUT

if TYPE_CHECKING:
    from conescope.experiments.perturb import PerturbationResult
    from conescope.kernel.distance import Float64Array


_ABOUT = About(
    Group.PAPER,
    "train children of a run from weights that are moved a little, and tell how far they get",
    (
        "conescope perturb runs/mine --at 0,100,500 --size 1e-3",
        "conescope perturb runs/mine --at 0,100 --seeds 5 --until 2000 --out figures/mine",
    ),
    needs=SNAPSHOTS,
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_for_run("perturb", _perturb, _ABOUT)
    add_json(parser)
    option = parser.add_argument
    option("--at", metavar="STEPS", required=True, help="iterations of snapshots, such as 0,100")
    option("--size", type=float, default=1e-3, help="first difference / norm of weights (1e-3)")
    option("--seeds", type=int, default=3, help="children, each in a random direction (3)")
    option("--until", metavar="STEP", type=int, help="where they are compared (the run's end)")
    option("--out", metavar="DIR", type=Path, help="figure and table (default RUN/figures)")


def _perturb(arguments: argparse.Namespace) -> int:
    from conescope.experiments.perturb import (
        TABLE,
        plan_perturbation,
        read_perturbation,
        write_table,
    )
    from conescope.experiments.stored import load_run
    from conescope.report.figures.perturbed import perturbed
    from conescope.report.save import save_plot

    points, run = iterations(arguments.at), arguments.run
    plan = plan_perturbation(run, points, arguments.size, arguments.seeds, arguments.until)
    status = train_children(plan.to_do(), shlex.join(["conescope", *arguments.words]))
    if status:
        return status
    result = read_perturbation(plan)
    table = write_table(plan, result, (arguments.out or run / "figures") / TABLE)
    files = [*save_plot(perturbed(result), table.with_suffix(""), "perturbed children"), table]
    if (run / "report.html").is_file() and arguments.out is None:
        files.append(write_report(load_run(run), run))  # it shows the newest of these tables
    if arguments.json:
        print_json({**asdict(result), "files": files})
        return 0
    _print(result)
    for file in files:
        STDOUT.print(str(file))
    return 0


def _print(result: PerturbationResult) -> None:
    """Print means over the directions, one line for each iteration."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("perturbed at", "weights to run", "S to run", "S between", "accuracy"):
        table.add_column(heading, justify="right")
    for row, point in enumerate(result.points):
        distances = result.weights, result.kernels, result.kernels_between
        cells = [_mean(values[row], "{:.3g}") for values in distances]
        table.add_row(f"{point:,}", *cells, _mean(result.test_accuracy[row], "{:.2%}"))
    STDOUT.print(table)


def _mean(values: Float64Array, text: str) -> str:
    kept = values[~np.isnan(values)]
    return text.format(kept.mean()) if len(kept) else "–"
