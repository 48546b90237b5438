"""`conescope sweep measure`: measure many series of weights, or one in many ways."""

from __future__ import annotations

import argparse
import copy
import glob
import hashlib
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conescope.cli import measure
from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.sweep import ENDS_OF_A_SWEEP, add_sweep_arguments, agreed, carry_out
from conescope.errors import RecipeError

if TYPE_CHECKING:
    from conescope.experiments.forecast import Forecast
    from conescope.experiments.sweep.sweep_folder import SweepRun

_AXES = (
    "model", "probe", "outputs", "draws", "projection", "select", "pool", "batchnorm", "when",
    "texts", "samples", "length",
)  # fmt: skip
"""Arguments of `conescope measure` of which a sweep takes several values."""

_OF_ONE = ("help", "out", "json")
"""Those that a sweep has of its own."""

_PLACE = ("memory", "device", "keep_cache")
"""Those that change no number."""


@dataclass(frozen=True)
class Measurement:
    """One measurement of a sweep.

    Attributes:
        fields: argument of `conescope measure` → its value.
        values: axis → value.
        digest: None, since the weights' hashes tell measurements apart.
        source: empty, since measurements of a sweep differ in nothing but values of the axes.
        path: None, for a folder of its id in the sweep's folder of run folders.
    """

    fields: Mapping[str, Any]
    values: Mapping[str, Any]
    digest: None = None
    source: str = ""
    path: Path | None = None

    @property
    def id(self) -> str:
        """The last part of the series' name, and a hash of all that changes numbers."""
        changing = {name: value for name, value in self.fields.items() if name not in _PLACE}
        digest = hashlib.sha256(json.dumps(changing, sort_keys=True).encode()).hexdigest()
        stem = re.sub(r"[^\w.-]+", "-", Path(self.fields["series"]).name).strip("-.")
        return f"{stem or 'series'}-{digest[:8]}"


_ABOUT = About(
    Group.MANY,
    "measure each of many series of weights, or one in many ways",
    ("conescope sweep measure runs/seed0 runs/seed1 --outputs trace,full --out sweeps/kernels",),
    ENDS_OF_A_SWEEP,
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("sweep measure", _sweep, _ABOUT)
    add_sweep_arguments(parser)
    group = parser.add_argument_group(
        "as for 'conescope measure'",
        "Each SERIES is measured by itself. These take several values, which are an axis: "
        f"{', '.join('--' + name for name in _AXES)}. Commas separate them, bars those of --when.",
    )
    for action in _measure_parser()._actions:
        if action.dest in _OF_ONE:
            continue
        own = copy.copy(action)
        if action.choices:
            own.metavar = "|".join(action.choices)
        own.type = own.choices = None
        group._add_action(own)


def measure_run(run: SweepRun, command: str, should_stop: Callable[[], bool]) -> bool:  # noqa: ARG001
    """Carry out one measurement of a sweep in its folder, without figures and report.

    `conescope measure` takes note itself of a signal to stop.

    Returns:
        Whether the measurement is complete.
    """
    arguments = _parsed(run.fields, run.path)
    arguments.in_a_sweep, arguments.words = True, shlex.split(command)[1:]
    return arguments.command(arguments) == 0


def is_forecast(run: SweepRun) -> bool:
    """Return whether the cost of a measurement is forecast: not if a model has to come first."""
    return not measure.says_its_model(_parsed(run.fields, run.path))


def cost_of_measurement(run: SweepRun) -> Forecast:
    """Forecast one measurement of a sweep.

    Raises:
        ConescopeError: if it cannot be made here.
    """
    from conescope.experiments.measurement_forecast import forecast_measurement

    return forecast_measurement(*measure.subject_and_choice(_parsed(run.fields, run.path)))


def _sweep(arguments: argparse.Namespace) -> int:
    series = arguments.series
    if len(set(series)) < len(series):
        raise RecipeError(f"a series is named twice in {', '.join(series)}; name each once")
    given = {"series": series} | {
        name: _split(name, text) for name in _AXES if (text := getattr(arguments, name)) is not None
    }
    if not agreed(math.prod(map(len, given.values())), arguments.yes):
        return 1
    return carry_out(arguments, _table(vars(arguments), given), "measurement")


def _table(arguments: Mapping[str, Any], given: Mapping[str, Sequence[str]]) -> list[Measurement]:
    """Return the measurements, the last axis running fastest.

    Raises:
        RecipeError: if a series does not exist, or two measurements are the same.
    """
    axes = [name for name, values in given.items() if len(values) > 1]
    actions = _measure_parser()._actions
    names = [action.dest for action in actions if action.dest not in _OF_ONE]
    points = {}
    for combination in itertools.product(*given.values()):
        chosen = dict(zip(given, combination, strict=True))
        asked = {name: chosen.get(name, arguments[name]) for name in names}
        parsed = _parsed(asked, Path())
        _check_exists(chosen["series"])
        fields = {name: _plain(getattr(parsed, name)) for name in names}
        fields["series"] = chosen["series"]
        point = Measurement(fields, {name: fields[name] for name in axes})
        if (held := points.setdefault(point.id, point)) is not point:
            one, other = dict(held.values), dict(point.values)
            raise RecipeError(
                f"two measurements, {one} and {other}, are the same; name each value once"
            )
    return list(points.values())


def _split(name: str, text: str) -> list[str]:
    from conescope.experiments.sweep.axes import split_values

    values = split_values(name, text, bars=name == "when")
    if not values:
        raise RecipeError(f"--{name} has no value; write for example --{name} A,B")
    return values


def _check_exists(series: str) -> None:
    from conescope.measuring.hub import is_on_hub

    if not (is_on_hub(series) or Path(series).exists() or glob.glob(series)):
        raise RecipeError(
            f"there is no {series} to measure; name a folder, a glob or hf://ORG/NAME"
        )


def _parsed(fields: Mapping[str, Any], out: Path) -> argparse.Namespace:
    """Return the arguments of one measurement, as `conescope measure` parses them."""
    words = [fields["series"], f"--out={out}"]
    for action in _measure_parser()._actions:
        value = fields.get(action.dest)
        if not action.option_strings or value is None or value is False:
            continue
        option = action.option_strings[0]
        if value is True:
            words.append(option)
        else:
            held = value if isinstance(value, list) else [value]
            words += [f"{option}={inner}" for inner in held]
    return _measure_parser().parse_args(words)


@cache
def _measure_parser() -> argparse.ArgumentParser:
    commands = Commands()
    measure.add(commands)
    return commands.parser("measure")


def _plain(value: Any) -> Any:
    """Return an argument's value as JSON has it."""
    return str(value) if isinstance(value, Path) else value
