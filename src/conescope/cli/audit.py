"""`conescope audit`: say what is wrong with a series of checkpoints, before it is measured."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.measure import given_steps_of
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, print_table, say, stopping
from conescope.measuring.audit import Audit, audit, opened

_ABOUT = About(
    Group.OWN,
    "say what is wrong with a series of checkpoints, without a model",
    (
        "conescope audit 'ckpts/*.safetensors'",
        "conescope audit hf://EleutherAI/pythia-160m --revisions 'step*'",
    ),
    {1: "there is an alarm, or the audit failed"},
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("audit", _audit, _ABOUT)
    add_json(parser)
    option = parser.add_argument
    option(
        "series",
        metavar="SERIES",
        nargs="+",
        help="checkpoints, as a glob such as 'ckpts/*.safetensors', a folder or files; or a "
        "repository on the Hugging Face Hub, such as hf://EleutherAI/pythia-160m",
    )
    option("--revisions", metavar="PATTERN", action="append",
        help="branches and tags of the repository, such as 'step*'; may be given again, once for "
        "each stage of the training, in their order")  # fmt: skip
    option("--step-pattern", metavar="REGEX",
        help=r"regular expression whose group is the step: 'ckpt_(\d+)'")  # fmt: skip
    option("--steps", metavar="CSV", type=Path, help="CSV file of lines 'file,step'")
    option("--iterations-per-epoch", metavar="N", type=int,
        help="for names that count in epochs: model_ep3_it20.pth is step 3 N + 20")  # fmt: skip
    option("--out", metavar="DIR", type=Path,
        help="folder for what is read, so that the same command goes on after a stop "
        "(default: nothing is written)")  # fmt: skip


def _audit(arguments: argparse.Namespace) -> int:
    source = arguments.series[0] if len(arguments.series) == 1 else set(arguments.series)
    patterns, out, steps = arguments.revisions or (), arguments.out, given_steps_of(arguments)
    with (
        opened(source, patterns, arguments.step_pattern, steps, out) as series,
        stopping("ending with this checkpoint") as received,
        ProgressBar(STDERR) as bar,
    ):
        done = audit(series, out, progress=bar, should_stop=lambda: bool(received))
    if done is None:
        kept = "nothing is stored, as there is no --out" if out is None else (
            "the same command goes on")  # fmt: skip
        say("stopped", f"{bar.step} of {len(series)} are read; {kept}")
        return 128 + received[0]
    if arguments.json:
        alarms = len(done.alarms)
        print_json({"checkpoints": len(done.steps), **asdict(done), "alarms": alarms})
    else:
        _print(done)
    return 1 if done.alarms else 0


def _print(done: Audit) -> None:
    """Print what was looked at, and a line for each finding."""
    print_table(
        {
            "checkpoints": f"{len(done.steps):,}, step {done.steps[0]:,} to {done.steps[-1]:,}",
            "tensors": f"{done.tensors:,}, with {done.parameters:,} real numbers",
            "alarms": f"{len(done.alarms):,}",
            "remarks": f"{len(done.remarks):,}",
        }
    )
    if done.findings:
        STDOUT.print()
        STDOUT.print(str(done), markup=False)
