"""`conescope cone` and `conescope compare`: what motion the kernel makes, in one run or several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, print_columns, print_table
from conescope.errors import KernelError, RecipeError
from conescope.experiments.stored import load_run

if TYPE_CHECKING:
    from conescope.report.run_analysis import RunAnalysis
    from conescope.report.sections import Content

_ABOUT_CONE = About(
    Group.MAIN,
    "say what motion the kernel makes, and draw it",
    (
        "conescope cone runs/mine",
        "conescope cone runs/seed0 runs/seed1 runs/seed2 --out figures",
    ),
)

_ABOUT_COMPARE = About(
    Group.MAIN,
    "set runs side by side: a table, a figure, a page",
    ("conescope compare runs/mine runs/other --out figures",),
)


def add(commands: Commands) -> None:
    """Add the commands."""
    cone = commands.add("cone", _cone, _ABOUT_CONE)
    cone.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run's folder; several that differ in their seed only are combined",
    )
    cone.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for the figures (default: figures/ in each run)",
    )
    compare = commands.add("compare", _compare, _ABOUT_COMPARE)
    add_json(cone)
    add_json(compare)
    compare.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder")
    compare.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="folder for the figure and the page (default: the current one)",
    )


def _cone(arguments: argparse.Namespace) -> int:
    from conescope.report.comparison import check_only_seeds
    from conescope.report.opening import opening
    from conescope.report.save import save_plots
    from conescope.report.sections import contents

    analyses = _analyses(arguments.runs)
    check_only_seeds(analyses)
    found = [contents(analysis) for analysis in analyses]
    if not any(part.says_something for parts in found for part in parts):
        reason = next(reason for part in found[0] for reason in part.missing)
        raise KernelError(f"{arguments.runs[0]} says nothing of the cone yet; {reason}")
    folders = [_folder(path, arguments.out, several=len(analyses) > 1) for path in arguments.runs]
    files = []
    for folder, analysis, parts in zip(folders, analyses, found, strict=True):
        plots = {name: plot for part in parts for name, plot in part.plots.items()}
        files.append(save_plots(analysis.run, plots, folder))
    if arguments.json:
        _print_as_json(arguments.runs, analyses, found, files)
        return 0
    for path, analysis, parts in zip(arguments.runs, analyses, found, strict=True):
        numbers = {name: text for part in parts for name, text in part.numbers.items()}
        print_table({"run": analysis.run.name, "folder": str(path), **numbers})
        STDOUT.print(f"\n{opening(analysis)}\n")
        _print_missing(parts)
    if len(analyses) > 1:
        _print_over_seeds(analyses)
    for folder, drawn in zip(folders, files, strict=True):
        STDOUT.print(f"{len(drawn)} figures: {folder}/cone-*")
    return 0


def _print_as_json(
    paths: Sequence[Path],
    analyses: Sequence[RunAnalysis],
    found: Sequence[Sequence[Content]],
    files: Sequence[Sequence[Path]],
) -> None:
    """Print numbers and texts of each run, and what several say together."""
    from conescope.report.comparison import numbers_over_seeds
    from conescope.report.run_numbers import kernel_numbers

    over_seeds = None
    if len(analyses) > 1:
        with suppress(KernelError):  # the runs' own texts say what is missing
            over_seeds = numbers_over_seeds(analyses)
    runs = [
        {
            "run": analysis.run.name,
            "folder": path,
            "numbers": kernel_numbers(analysis),
            "texts": {name: text for part in parts for name, text in part.numbers.items()},
            "missing": [reason for part in parts for reason in part.missing],
            "figures": drawn,
        }
        for path, analysis, parts, drawn in zip(paths, analyses, found, files, strict=True)
    ]
    print_json({"runs": runs, "over_seeds": over_seeds})


def _print_missing(parts: Sequence[Content]) -> None:
    """Print a line for each part of the analysis that is absent, and why."""
    from conescope.report.sections import SECTIONS

    for section, part in zip(SECTIONS, parts, strict=True):
        for reason in part.missing:
            _print_absent(section.title, reason)
    if any(part.missing for part in parts):
        STDOUT.print()


def _print_over_seeds(analyses: Sequence[RunAnalysis]) -> None:
    """Print what several runs say together, or a line that says why they cannot."""
    from conescope.report.comparison import numbers_over_seeds

    try:
        numbers = numbers_over_seeds(analyses)
    except KernelError as reason:
        _print_absent("numbers over seeds", str(reason))
    else:
        print_table({"over seeds": f"{len(analyses)} runs", **numbers})
    STDOUT.print()


def _print_absent(what: str, reason: str) -> None:
    STDOUT.print(f"absent: {what}: {reason}", markup=False)


def _compare(arguments: argparse.Namespace) -> int:
    from conescope.report.comparison import compared, comparison, distinct_names
    from conescope.report.comparison_page import write_comparison
    from conescope.report.run_numbers import kernel_numbers
    from conescope.report.save import save_plot
    from conescope.report.sections import contents

    if len(arguments.runs) < 2:
        raise RecipeError("one run has nothing to be compared with; name at least two")
    analyses = _analyses(arguments.runs)
    names = distinct_names(analyses)
    found = [contents(analysis) for analysis in analyses]
    page = write_comparison(analyses, found, arguments.out / "compare.html")
    files, missing = [], None
    try:
        plot = compared(dict(zip(names, found, strict=True)))
    except KernelError as reason:
        missing = str(reason)
    else:
        heads = ", ".join(analysis.run.head for analysis in analyses)
        stem = arguments.out / "compare"
        files = save_plot(plot, stem, "comparison of runs", made_from=heads)
    if arguments.json:
        numbers = [kernel_numbers(analysis) for analysis in analyses]
        runs = [
            {"run": name, "folder": path, "numbers": values}
            for name, path, values in zip(names, arguments.runs, numbers, strict=True)
        ]
        print_json({"runs": runs, "texts": comparison(found), "report": page, "figures": files})
        return 0
    print_columns(["", *names], comparison(found))
    STDOUT.print(str(page))
    if missing:
        _print_absent("the figure", missing)
    for file in files:
        STDOUT.print(str(file))
    return 0


def _analyses(paths: Sequence[Path]) -> list[RunAnalysis]:
    from conescope.report.run_analysis import analyse

    return [analyse(load_run(path)) for path in paths]


def _folder(path: Path, out: Path | None, *, several: bool) -> Path:
    """Return the folder of a run's figures; each run has its own if there are several."""
    if out is None:
        return path / "figures"
    return out / path.name if several else out
