"""`conescope barrier`: whether loss rises on the straight line between trained networks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from conescope.cli.command_help import SNAPSHOTS, About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, plain

if TYPE_CHECKING:
    from conescope.experiments.barrier import Line

_ABOUT = About(
    Group.PAPER,
    "tell whether loss and error rise on the straight line between trained networks",
    (
        "conescope barrier runs/a runs/b",
        "conescope barrier runs/mine/branches/* --at 2000 --points 21 --out figures/mine",
    ),
    needs=SNAPSHOTS,
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("barrier", _barrier, _ABOUT)
    add_json(parser)
    option = parser.add_argument
    option("runs", metavar="RUN", type=Path, nargs="+", help="two or more folders of runs")
    option("--at", metavar="STEP", type=int, help="iteration of the snapshots (each run's end)")
    option("--points", metavar="N", type=int, default=11, help="points on a line (11)")
    option("--out", metavar="DIR", type=Path, help="figure and table (default figures/barrier)")


def _barrier(arguments: argparse.Namespace) -> int:
    from conescope.experiments.barrier import lines_between, write_lines
    from conescope.report.figures.barriers import barriers
    from conescope.report.save import save_plot

    lines = lines_between(arguments.runs, arguments.at, arguments.points)
    table = (arguments.out or Path("figures") / "barrier") / "barrier.csv"
    write_lines(lines, table)
    files = [*save_plot(barriers(lines), table.with_suffix(""), "barrier"), table]
    if arguments.json:
        print_json({"lines": [_facts(line) for line in lines], "files": files})
        return 0
    STDOUT.print(_table(lines))
    for file in files:
        STDOUT.print(str(file))
    return 0


def _barriers_of(line: Line) -> dict[str, dict[str, float]]:
    from conescope.experiments.barrier import QUANTITIES

    return {kind: {q: line.barrier(q, kind) for q in QUANTITIES} for kind in line.values}


def _facts(line: Line) -> dict[str, object]:
    return {**asdict(line), "barriers": _barriers_of(line)}


def _table(lines: list[Line]) -> Table:
    """Make a row for each pair and each kind of BatchNorm's statistics."""
    batchnorm = any(len(line.values) > 1 for line in lines)
    table = Table(box=None, padding=(0, 2, 0, 0), title="Barriers", title_justify="left")
    table.add_column("runs", no_wrap=True)
    if batchnorm:
        table.add_column("BatchNorm")
    for heading in ("train loss", "test loss", "train error", "test error", "weights", "disagree"):
        table.add_column(heading, justify="right")
    for line in lines:
        for kind, found in _barriers_of(line).items():
            cells: list[str | Text] = [plain(", ".join(line.runs)), *([kind] if batchnorm else [])]
            cells += [f"{value:.3g}" for name, value in found.items() if name.endswith("loss")]
            cells += [f"{value:.2%}" for name, value in found.items() if name.endswith("error")]
            table.add_row(*cells, f"{line.distance:.3g}", f"{line.disagreement:.2%}")
    return table
