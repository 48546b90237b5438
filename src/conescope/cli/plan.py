"""`conescope plan`: the time, memory and disk that a recipe will take."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands, chosen_recipe
from conescope.cli.json_output import add_json, print_json
from conescope.cli.terminal import STDOUT, print_table

if TYPE_CHECKING:
    from conescope.engine import Plan

_ABOUT = About(
    Group.MAIN,
    "forecast the time, memory and disk that a recipe will take",
    (
        "conescope plan lenet-mnist",
        "conescope plan digits --model.width 4",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    add_json(commands.add_for_recipe("plan", _plan, _ABOUT))


def _plan(arguments: argparse.Namespace) -> int:
    from conescope.experiments.forecast import forecast

    cost = forecast(chosen_recipe(arguments))
    if arguments.json:
        print_json({**asdict(cost), "kernel": _kernel(cost.kernel), "seconds": cost.seconds})
        return 0
    if cost.kernel is not None:
        STDOUT.print(f"one kernel:\n{cost.kernel}\n")
    print_table(
        {
            "training": f"{cost.iterations:,} × {cost.iteration_seconds * 1e3:.3g} ms",
            "evaluations": f"{cost.evaluations:,} × {cost.evaluation_seconds:.3g} s",
            "kernels": f"{cost.kernels:,} × {cost.kernel_seconds:.3g} s",
            "in all": f"{cost.seconds:,.0f} s, {cost.stored_bytes / 1e6:,.0f} MB on disk",
        }
    )
    return 0


def _kernel(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {**asdict(plan), "seconds": plan.seconds, "flops": plan.flops}
