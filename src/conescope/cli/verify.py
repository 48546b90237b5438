"""`conescope verify`: compute parts of a run again, and say whether they come out the same."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conescope.cli import measure
from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, print_table, say
from conescope.errors import RecipeError
from conescope.experiments.verifying.run_checks import Request
from conescope.experiments.verifying.verdicts import Check, Verdict, Verification

if TYPE_CHECKING:
    from conescope.measuring.checkpoints.subject import Subject
    from conescope.measuring.choice import Choice

_SHOWN = 20
NOT_RECOMPUTED = 3

_ABOUT = About(
    Group.CARE,
    "compute parts of a run again, and say whether they come out the same",
    (
        "conescope verify runs/mine",
        "conescope verify mine.zip --share 1 --json",
    ),
    {
        1: "something came out different, or it failed",
        3: "nothing could be computed again; what is stored is as it was written",
    },
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("verify", _verify, _ABOUT)
    option = parser.add_argument
    option("run", metavar="RUN", type=Path, help="a run's folder, or an archive of one")
    option("--share", metavar="X", type=float, default=0.05,
        help="share of kernels and iterations to compute again (default %(default)s)")  # fmt: skip
    option("--seed", metavar="N", type=int, default=0, help="decides which (default 0)")
    option("--branches", action="store_true", help="verify the run's branches, too")
    option("--data", metavar="PATH", help="where the data set is (default as in the recipe)")
    option("--device", help="where to compute (default as in the recipe)")
    option("--trust-code", action="store_true",
        help="run code, and read checkpoints, that the run names")  # fmt: skip
    add_json(parser)


def _verify(arguments: argparse.Namespace) -> int:
    from conescope.report.verification import checks_of, damage_as_checks

    request = Request(
        arguments.share, arguments.seed, arguments.data, arguments.device, arguments.trust_code,
        _rebuild,
    )  # fmt: skip
    checks: list[Check] = []
    try:
        with damage_as_checks(), ProgressBar(STDERR) as bar:
            for check in checks_of(arguments.run, request, bar, branches=arguments.branches):
                checks.append(check)
                if check.verdict == Verdict.DIFFERENT and not arguments.json:
                    STDOUT.print(str(check), markup=False)
    except KeyboardInterrupt:
        say("stopped", f"{len(checks):,} checks are made; the same command begins anew")
        return 130
    done = Verification(str(arguments.run), arguments.share, arguments.seed, checks)
    if arguments.json:
        print_json(done.to_dict())
    else:
        _print(done)
    return NOT_RECOMPUTED if done.held and not done.recomputed else int(not done.held)


def _print(done: Verification) -> None:
    """Print a line for each group, then what is not verified and why, then the verdict."""
    groups = dict.fromkeys(check.group for check in done.checks)
    rows = {group: _counts([c for c in done.checks if c.group == group]) for group in groups}
    print_table({"run": done.path, **rows})
    for group in groups:
        found = [c for c in done.checks if c.group == group and c.verdict == Verdict.FLOOR]
        if found:
            worst = max(found, key=lambda check: check.size or 0.0)
            STDOUT.print(f"{worst} (the largest of {len(found):,} {group})", markup=False)
    reasons: dict[tuple[str, str], list[Check]] = {}
    for check in done.checks:
        if check.verdict == Verdict.UNVERIFIED:
            reasons.setdefault((check.group, check.detail), []).append(check)
    for (group, _), found in [*reasons.items()][:_SHOWN]:
        more = f" (and {len(found) - 1:,} more {group})" if len(found) > 1 else ""
        STDOUT.print(f"{found[0]}{more}", markup=False)
    if len(reasons) > _SHOWN:
        STDOUT.print(f"not verified: {len(reasons) - _SHOWN:,} more reasons; --json lists all")
    STDOUT.print(_conclusion(done), markup=False)


def _counts(checks: Sequence[Check]) -> str:
    counts = {v: len({c.subject for c in checks if c.verdict == v}) for v in Verdict}
    return ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if count)


def _conclusion(done: Verification) -> str:
    different = sum(check.verdict == Verdict.DIFFERENT for check in done.checks)
    if different:
        return f"not verified: {different:,} of {len(done.checks):,} checks came out different"
    if not done.recomputed:
        return (
            "not recomputed: no kernel and no training was computed again; what is stored is as it "
            "was written, and only what follows from the stored kernels is verified"
        )
    return f"verified: a share of {done.share:g}, chosen by seed {done.seed}, comes out the same"


def _rebuild(command: str) -> tuple[Subject, Choice]:
    """Return what a `conescope measure` command measures.

    Raises:
        RecipeError: if it is no such command.
        ConescopeError: if the checkpoints, the probe or the model are not here.
    """
    commands = Commands()
    measure.add(commands)
    try:
        arguments = commands.parse(shlex.split(command)[1:])
    except (SystemExit, ValueError):
        raise RecipeError(
            "it is no command that this version knows; verify it with the version that made it, "
            "which its journal names"
        ) from None
    return measure.subject_and_choice(arguments)
