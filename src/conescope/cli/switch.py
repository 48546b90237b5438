"""`conescope switch`: compare linearised training from iteration t on with standard training."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from conescope.cli.command_help import SNAPSHOTS, About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, say, stopping
from conescope.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from conescope.experiments.switch import Child, Switch, SwitchResult

_ABOUT = About(
    Group.PAPER,
    "train children of runs, linearised and not, from each of several iterations",
    ("conescope switch runs/seed0 runs/seed1 --at 0,500,2000",),
    needs=SNAPSHOTS,
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_with_fields(
        "switch",
        _switch,
        _ABOUT,
        "RUN… --at STEP,STEP,…",
    )
    add_json(parser)
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="run folders, one for each seed"
    )
    parser.add_argument(
        "--at", metavar="STEPS", required=True, help="the switch points, such as 0,500,2000"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for figure and table (default RUN/figures)"
    )


def carry_out_children(switch: Switch, command: str) -> int:
    """Train all children that are not done; return 0, or the exit status if it was stopped."""
    from conescope.experiments.switch import switch_seconds

    to_do = switch.to_do()
    total = 2 * len(switch.parents) * len(switch.points)
    if not to_do:
        return 0
    try:
        cost = _time(switch_seconds(switch))
    except TrainingError:
        cost = "for an unknown time: a trial of them diverges"
    say("cost", f"{len(to_do)} of {total} children to train, {cost}")
    return train_children(to_do, command)


def train_children(to_do: Sequence[Child], command: str) -> int:
    """Train children; return 0, or the exit status if it was stopped."""
    from conescope.experiments.switch import carry_out

    with stopping() as received, ProgressBar(STDERR) as bar:
        for number, child in enumerate(to_do, start=1):
            branch = child.recipe.branch
            kind = child.recipe.dynamics.kind if not branch.perturbation else "perturbed"
            say("child", f"{number} of {len(to_do)}: {branch.run}, {kind} from {branch.at:,}")
            is_done = carry_out(
                child, command=command, progress=bar, should_stop=lambda: bool(received)
            )
            if not is_done or (received and number < len(to_do)):
                say("stopped", "what is done is stored; the same command goes on from there")
                return 128 + received[0]
    return 0


def draw(switch: Switch, result: SwitchResult, stem: Path, caption: str = "") -> list[Path]:
    """Draw figure 2 of the paper, with a caption below, and write its numbers beside it."""
    from conescope.experiments.switch import write_table
    from conescope.report.figures.switched import switched
    from conescope.report.save import save_plot

    files = save_plot(switched(result, caption), stem, "switch experiment")
    table = stem.with_name(stem.name + ".csv")
    write_table(switch, result, table)
    return [*files, table]


def _print_result(result: SwitchResult) -> None:
    """Print the means over runs, one line for each switch point."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("switch", "accuracy, linearised", "standard", "loss, linearised", "standard"):
        table.add_column(heading, justify="right")
    quantities = [("test_accuracy", "{:.2%}"), ("test_loss", "{:.4g}")]
    for column, point in enumerate(result.points):
        cells = [
            _cell(result, dynamics, quantity, column, text)
            for quantity, text in quantities
            for dynamics in ("linearised", "standard")
        ]
        table.add_row(f"{point:,}", *cells)
    never = [text.format(result.parents[quantity].mean()) for quantity, text in quantities]
    table.add_row("never", "", never[0], "", never[1])
    STDOUT.print(table)


def show_result(result: SwitchResult, files: Sequence[Path], *, as_json: bool) -> None:
    """Print the result, and where figure and table are."""
    if as_json:
        print_json({**asdict(result), "files": files})
        return
    _print_result(result)
    for file in files:
        STDOUT.print(str(file))


def _switch(arguments: argparse.Namespace) -> int:
    from conescope.experiments.switch import plan_switch, read_switch

    switch = plan_switch(arguments.runs, iterations(arguments.at), arguments.overrides)
    status = carry_out_children(switch, shlex.join(["conescope", *arguments.words]))
    if status:
        return status
    result = read_switch(switch)
    stem = (arguments.out or arguments.runs[0] / "figures") / "switch"
    show_result(result, draw(switch, result, stem), as_json=arguments.json)
    return 0


def iterations(text: str) -> list[int]:
    """Read iterations such as 0,500,2000."""
    try:
        return [int(word.replace("_", "")) for word in text.split(",")]
    except ValueError:
        raise RecipeError(f"--at takes iterations such as 0,500,2000, not {text!r}") from None


def _cell(result: SwitchResult, dynamics: str, quantity: str, column: int, text: str) -> str:
    values = result.children[dynamics][quantity][:, column]
    diverged = result.diverged[dynamics][:, column]
    finite = values[~np.isnan(values)]
    shown = text.format(finite.mean()) if len(finite) else "not finite"
    return f"{shown} ({diverged.sum()} diverged)" if diverged.any() else shown


def _time(seconds: float) -> str:
    return f"about {seconds / 60:,.0f} min" if seconds > 100 else f"about {seconds:.0f} s"
