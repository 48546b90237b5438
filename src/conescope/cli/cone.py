"""`conescope cone` and `conescope compare`: what motion the kernel makes, in one run or several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conescope.cli.commands import Commands
from conescope.cli.terminal import STDOUT, print_columns, print_table
from conescope.errors import KernelError
from conescope.experiments.stored import load_run

if TYPE_CHECKING:
    from conescope.report.analysis import Analysis


def add(commands: Commands) -> None:
    """Add the commands."""
    cone = commands.add("cone", _cone, "say what motion the kernel makes, and draw it")
    cone.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run's folder; several that differ in their seed only are put together",
    )
    cone.add_argument(
        "--out", metavar="DIR", type=Path, help="where to draw (default: figures/ in each run)"
    )
    compare = commands.add("compare", _compare, "set runs side by side: one table, one figure")
    compare.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder")
    compare.add_argument(
        "--out", metavar="DIR", type=Path, default=Path(), help="where to draw (default: here)"
    )


def _cone(arguments: argparse.Namespace) -> int:
    from conescope.report.analysis import numbers, numbers_over_seeds
    from conescope.report.figures import save_analysis

    analyses = _analyse(arguments.runs)
    for path, analysis in zip(arguments.runs, analyses, strict=True):
        print_table({"run": analysis.run.name, "folder": str(path), **numbers(analysis)})
        STDOUT.print()
    if len(analyses) > 1:
        print_table({"over seeds": f"{len(analyses)} runs", **numbers_over_seeds(analyses)})
        STDOUT.print()
    for path, analysis in zip(arguments.runs, analyses, strict=True):
        folder = _folder(path, arguments.out, several=len(analyses) > 1)
        files = save_analysis(analysis, folder)
        STDOUT.print(f"{len(files)} figures: {folder}/cone-*")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from conescope.report.analysis import comparison, distinct_names
    from conescope.report.figures import save_comparison

    if len(arguments.runs) < 2:
        raise KernelError("one run has nothing to be compared with; name at least two")
    analyses = _analyse(arguments.runs)
    print_columns(["", *distinct_names(analyses)], comparison(analyses))
    for file in save_comparison(analyses, arguments.out):
        STDOUT.print(str(file))
    return 0


def _analyse(paths: Sequence[Path]) -> list[Analysis]:
    """Analyse the runs in some folders; an error names the folder."""
    from conescope.report.analysis import analyse, known_labels

    analyses = []
    for path in paths:
        run = load_run(path)
        try:
            analyses.append(analyse(run, known_labels(run)))
        except KernelError as error:
            raise KernelError(f"{path}: {error}") from error
    return analyses


def _folder(path: Path, out: Path | None, *, several: bool) -> Path:
    if out is None:
        return path / "figures"
    return out / path.name if several else out
