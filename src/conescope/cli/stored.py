"""`conescope status`, `figures` and `report`: what a run folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.terminal import print_line, print_table
from conescope.experiments.stored import load_run, read_status
from conescope.runs.reader import Run

_ABOUT_STATUS = About(
    Group.MAIN,
    "say how far a run is",
    ("conescope status runs/mine",),
)

_ABOUT_FIGURES = About(
    Group.MAIN,
    "draw a run's figures again from what is stored",
    ("conescope figures runs/mine",),
)

_ABOUT_REPORT = About(
    Group.MAIN,
    "write a run's report again from what is stored",
    ("conescope report runs/mine",),
)


def add(commands: Commands) -> None:
    """Add the commands."""
    commands.add_for_run("status", _status, _ABOUT_STATUS)
    commands.add_for_run("figures", _figures, _ABOUT_FIGURES)
    commands.add_for_run("report", _report, _ABOUT_REPORT)


def draw_figures(run: Run, path: Path) -> list[Path]:
    """Draw a run's figures into its folder."""
    from conescope.report.save import save_figures

    return save_figures(run, path / "figures")


def write_report(run: Run, path: Path) -> Path:
    """Write a run's report into its folder."""
    from conescope import report

    return report.write_report(run, path / "report.html")


def show(path: Path) -> None:
    """Draw a run's figures, write its report, and print its numbers and where both are."""
    from conescope.report.summary import main_numbers

    run = load_run(path)
    draw_figures(run, path)
    report = write_report(run, path)
    print_table({"run": run.name, **main_numbers(run)})
    print_line(f"figures: {path / 'figures'}")
    print_line(f"report:  {report}")


def _status(arguments: argparse.Namespace) -> int:
    status = read_status(arguments.run)
    states = {"finished": status.finished, "running": status.running, "diverged": status.diverged}
    rows = {
        "run": status.name,
        "state": next((state for state, holds in states.items() if holds), "stopped"),
        "iterations": status.extent,
        "kernels": f"{status.kernels:,}",
        "snapshots": ", ".join(f"{step:,}" for step in status.snapshots) or "none",
        "time": f"{status.seconds:,.0f} s",
        "journal": status.journal,
        **({"lost": "; ".join(status.lost)} if status.lost else {}),
    }
    if status.stages:
        from conescope.report.stage_marks import stages_of

        rows["stages"] = stages_of(status.stages)
    print_table(rows)
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    for file in draw_figures(load_run(arguments.run), arguments.run):
        print_line(file)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    print_line(write_report(load_run(arguments.run), arguments.run))
    return 0
