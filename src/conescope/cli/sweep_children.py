"""`conescope sweep branch` and `sweep switch`: carry out many branches of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.sweep import ENDS_OF_A_SWEEP, add_sweep_arguments, agreed, carry_out

_ABOUT_BRANCH = About(
    Group.MANY,
    "train branches of runs: a branch from each snapshot and for each value of a field",
    ("conescope sweep branch runs/mine --at 0,500 --optimizer.lr 0.01,0.1 --out sweeps/branches",),
    ENDS_OF_A_SWEEP,
)

_ABOUT_SWITCH = About(
    Group.MANY,
    "train the children of a switch experiment on many machines; 'conescope switch' draws them",
    ("conescope sweep switch runs/mine --at 0,500,2000 --on slurm --out sweeps/switch",),
    ENDS_OF_A_SWEEP,
)


def add(commands: Commands) -> None:
    """Add the commands."""
    takes = "RUN… --at STEP,STEP,… --out DIR"
    branch = commands.add_with_fields(
        "sweep branch",
        _branch,
        _ABOUT_BRANCH,
        takes,
    )
    switch = commands.add_with_fields(
        "sweep switch",
        _switch,
        _ABOUT_SWITCH,
        takes,
    )
    for parser in (branch, switch):
        parser.add_argument(
            "parents", metavar="RUN", type=Path, nargs="+", help="folders of the runs to start from"
        )
        parser.add_argument(
            "--at",
            metavar="STEPS",
            required=True,
            help="iterations of their snapshots, such as 0,500,2000",
        )
        add_sweep_arguments(parser)


def _branch(arguments: argparse.Namespace) -> int:
    from conescope.experiments.sweep.children import branch_axes, branch_grid

    axes = branch_axes(arguments.parents, arguments.at, arguments.overrides)
    return carry_out(arguments, branch_grid(axes)) if agreed(axes.size, arguments.yes) else 1


def _switch(arguments: argparse.Namespace) -> int:
    from conescope.experiments.sweep.children import switch_axes, switch_grid

    axes = switch_axes(arguments.parents, arguments.at, arguments.overrides)
    if not agreed(axes.size, arguments.yes):
        return 1
    return carry_out(arguments, switch_grid(axes))
