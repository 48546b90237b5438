"""`conescope status`, `figures` and `report`: what a run folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, print_table
from conescope.experiments.stored import load_run, read_status
from conescope.runs.reader import Run, Status

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
    add_json(commands.add_for_run("status", _status, _ABOUT_STATUS))
    add_json(commands.add_for_run("figures", _figures, _ABOUT_FIGURES))
    add_json(commands.add_for_run("report", _report, _ABOUT_REPORT))


def draw_figures(run: Run, path: Path) -> list[Path]:
    """Draw a run's figures into its folder."""
    from conescope.report.save import save_figures

    return save_figures(run, path / "figures")


def write_report(run: Run, path: Path) -> Path:
    """Write a run's report into its folder."""
    from conescope import report

    return report.write_report(run, path / "report.html")


def show(path: Path, *, as_json: bool) -> None:
    """Draw a run's figures, write its report, and print its numbers and where both are."""
    from conescope.report.opening import answer
    from conescope.report.summary import main_numbers

    run = load_run(path)
    figures = draw_figures(run, path)
    report = write_report(run, path)
    if as_json:
        print_json(facts_of(path, run.name, figures=figures, report=report))
        return
    print_table({"run": run.name, **main_numbers(run)})
    STDOUT.print(f"\n{answer(run)}\n")
    STDOUT.print(f"figures: {path / 'figures'}\nreport:  {report}")


def facts_of(path: Path, name: str, **written: Any) -> dict[str, Any]:
    """Return a run's name and folder, its numbers, and what was written about it."""
    from conescope.report.run_numbers import run_numbers

    return {"run": name, "folder": path, "numbers": run_numbers(path), **written}


def _status(arguments: argparse.Namespace) -> int:
    status = read_status(arguments.run)
    states = {"finished": status.finished, "running": status.running, "diverged": status.diverged}
    state = next((state for state, holds in states.items() if holds), "stopped")
    if arguments.json:
        print_json({"run": status.name, "folder": arguments.run, "state": state, **_facts(status)})
        return 0
    rows = {
        "run": status.name,
        "state": state,
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


def _facts(status: Status) -> dict[str, Any]:
    names = ("step", "total_steps", "kernels", "snapshots", "seconds", "journal", "lost", "stages")
    return {name: getattr(status, name) for name in names}


def _figures(arguments: argparse.Namespace) -> int:
    run = load_run(arguments.run)
    files = draw_figures(run, arguments.run)
    if arguments.json:
        print_json({"run": run.name, "folder": arguments.run, "figures": files})
        return 0
    for file in files:
        STDOUT.print(str(file))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    run = load_run(arguments.run)
    page = write_report(run, arguments.run)
    if arguments.json:
        print_json({"run": run.name, "folder": arguments.run, "report": page})
        return 0
    STDOUT.print(str(page))
    return 0
