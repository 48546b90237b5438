"""`conescope measure`: measure the kernel of checkpoints, here or on the Hub, or of snapshots."""

from __future__ import annotations

import argparse
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from conescope.cli import measure_options
from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json
from conescope.cli.progress import ProgressBar
from conescope.cli.stored import show
from conescope.cli.terminal import STDERR, say, stopping
from conescope.errors import ConescopeError, ModelError, RecipeError
from conescope.experiments.remeasure import Snapshots
from conescope.kernel.matrix import Outputs
from conescope.measuring.checkpoints import load_labels, load_probe, steps_by_epoch
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.measurement import measure
from conescope.measuring.checkpoints.subject import Checkpoints, Subject
from conescope.measuring.choice import Choice
from conescope.measuring.hub import is_on_hub
from conescope.runs.environment import usable_device
from conescope.runs.user_code import build_model, import_object

if TYPE_CHECKING:
    from conescope.measuring.hub.probe_of_texts import ProbeOfTexts

_FOR_CHECKPOINTS = (
    "model", "probe", "inputs", "labels", "step_pattern", "steps", "iterations_per_epoch", "device",
    "select", "pool",
)  # fmt: skip
_FOR_HUB = (
    "revisions", "texts", "column", "length", "samples", "tokenizer", "base", "keep_cache",
    "skip_failed", "trust_remote_code",
)  # fmt: skip
_FOR_TEXTS = ("column", "length", "samples", "tokenizer")
_FOR_RUNS = ("batchnorm", "when", "preconditioned")
_BECAUSE = {"preconditioned": ": an optimiser's state is in the snapshots of a run only"}

_ABOUT = About(
    Group.OWN,
    "measure the kernel of checkpoints, or of a run's snapshots anew",
    (
        "conescope measure 'ckpts/*.pt' --model mine:build --probe data.parquet --out runs/mine",
        "conescope measure hf://ORG/NAME --revisions 'step*' --texts texts.jsonl --out runs/name",
        "conescope measure runs/mine --outputs full --out runs/full",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("measure", _measure, _ABOUT)
    option = parser.add_argument
    option(
        "series",
        metavar="SERIES",
        nargs="+",
        help="checkpoints, as a glob such as 'ckpts/*.safetensors', a folder or files; or a "
        "repository on the Hugging Face Hub, such as hf://EleutherAI/pythia-160m; or a run's "
        "folder, for its snapshots",
    )
    option("--out", metavar="DIR", type=Path, required=True, help="folder for the new run")
    add_json(parser)
    option(
        "--outputs",
        metavar="trace|full|sum|K",
        type=measure_options.outputs_of,
        help="which outputs enter the kernel: trace, the sum of the outputs' kernels; full, every "
        "pair of outputs; sum, their sum; K, output number K (default trace, or as in the run)",
    )
    option(
        "--draws",
        metavar="R",
        type=int,
        help="estimate the trace by R random cotangents; for models with many outputs",
    )
    option(
        "--projection",
        metavar="DIM",
        type=int,
        help="estimate the trace by a random projection to DIM dimensions; for many samples",
    )
    option(
        "--params",
        metavar="PATTERN",
        action="append",
        help="only the parameters of these names or modules, such as 'layers.*.attention'; may be "
        "given again",
    )
    option("--by-layer", action="store_true", help="also store the kernel of each layer")
    option("--memory", metavar="SIZE", help="memory for the measurement, such as 2GB")
    measure_options.add_for_checkpoints(parser.add_argument_group("for checkpoints").add_argument)
    group = "for the Hub, transformers and peft"
    measure_options.add_for_described(parser.add_argument_group(group).add_argument)
    measure_options.add_for_runs(parser.add_argument_group("for a run's snapshots").add_argument)


def _measure(arguments: argparse.Namespace) -> int:
    command = shlex.join(["conescope", *arguments.words])
    if not _is_run(arguments) and arguments.out.resolve() in [
        Path(each).resolve() for each in arguments.series
    ]:
        raise RecipeError(
            f"command line: {arguments.out} holds the checkpoints; choose another folder as --out"
        )
    if says_its_model(arguments):
        return _measure_described(arguments, command, any(map(is_on_hub, arguments.series)))
    subject, choice = subject_and_choice(arguments)
    with stopping("ending this measurement") as received, ProgressBar(STDERR) as bar:
        is_complete = measure(
            subject, choice, arguments.out, command=command, progress=bar,
            should_stop=lambda: bool(received),
        )  # fmt: skip
    return _end(arguments, subject, bar, is_complete, received)


def says_its_model(arguments: argparse.Namespace) -> bool:
    """Return whether a series says itself of which model it is: on the Hub, or as saved there."""
    is_hub = any(map(is_on_hub, arguments.series))
    return not _is_run(arguments) and (is_hub or arguments.model is None)


def subject_and_choice(arguments: argparse.Namespace) -> tuple[Snapshots | Checkpoints, Choice]:
    """Return what a parsed command measures, of a run's snapshots or of checkpoints.

    Raises:
        ConescopeError: if it cannot be measured here, or says itself of which model it is.
    """
    if says_its_model(arguments):
        raise RecipeError(
            "command line: the series is on the Hub, or has no --model; for files of your own, "
            "name their model by --model package.module:build"
        )
    subject = _snapshots(arguments) if _is_run(arguments) else _checkpoints(arguments)
    own_outputs = subject.recipe.kernel.outputs if isinstance(subject, Snapshots) else "trace"
    return subject, _choice(arguments, own_outputs)


def _measure_described(arguments: argparse.Namespace, command: str, is_hub: bool) -> int:
    """Measure a series that says itself of which model it is."""
    from conescope.measuring.hub.hub_measurement import measure_series, prepare, prepared_in
    from conescope.measuring.hub.hub_options import HubOptions, Wanted

    series = arguments.series
    _refuse(arguments, _FOR_RUNS, "on the Hub" if is_hub else "checkpoints")
    if is_hub and len(series) > 1:
        raise RecipeError("command line: a series is one repository on the Hub; name one")
    given = {name: getattr(arguments, name) for name in HubOptions.__optional_keys__}
    options = HubOptions(**{name: value for name, value in given.items() if value is not None})
    options["steps"] = given_steps_of(arguments)
    device = options["device"] = usable_device(arguments.device or "cpu")
    model = None if arguments.model is None else _built(arguments.model).to(device)
    probe, labels = None, None
    if arguments.probe is not None:
        _refuse(arguments, ("texts", "column", "length", "samples"), "given with --probe")
        probe, labels = _probe(arguments, torch.float32)
    wanted = Wanted(
        series[0] if len(series) == 1 else {*series}, arguments.texts,
        _choice(arguments, "trace"), options, model, probe, labels,
    )  # fmt: skip
    with prepared_in(arguments.out):
        subject, choice = prepare(wanted, arguments.out)
        say("measuring", subject.source["description"])
        with stopping("ending this measurement") as received, ProgressBar(STDERR) as bar:
            is_complete = measure_series(
                subject, choice, arguments.out, command, bar, lambda: bool(received)
            )
    return _end(arguments, subject, bar, is_complete, received)


def _choice(arguments: argparse.Namespace, outputs: Outputs) -> Choice:
    return Choice(
        outputs=outputs if arguments.outputs is None else arguments.outputs,
        draws=arguments.draws,
        select=arguments.select,
        pool=arguments.pool,
        params=arguments.params,
        by_layer=arguments.by_layer,
        memory=arguments.memory,
        projection=arguments.projection,
    )


def _end(
    arguments: argparse.Namespace, subject: Subject, bar: ProgressBar, is_complete: bool,
    received: Sequence[int],
) -> int:  # fmt: skip
    if not is_complete:
        say("stopped", f"{bar.step} of {len(subject.paths)} are measured; the same command goes on")
        return 128 + received[0]
    if not getattr(arguments, "in_a_sweep", False):
        show(arguments.out, as_json=arguments.json)
    return 0


def _is_run(arguments: argparse.Namespace) -> bool:
    series = arguments.series
    return len(series) == 1 and (Path(series[0]) / "journal.jsonl").exists()


def _refuse(arguments: argparse.Namespace, names: Sequence[str], holds: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise RecipeError(
                f"command line: {arguments.series[0]} is {holds}, which takes no "
                f"--{name.replace('_', '-')}{_BECAUSE.get(name, '')}"
            )


def _snapshots(arguments: argparse.Namespace) -> Snapshots:
    _refuse(arguments, (*_FOR_CHECKPOINTS, *_FOR_HUB), "a run")
    path, preconditioned = Path(arguments.series[0]), bool(arguments.preconditioned)
    return Snapshots(path, arguments.batchnorm, arguments.when, preconditioned)


def _checkpoints(arguments: argparse.Namespace) -> Checkpoints:
    series = arguments.series
    others = [name for name in _FOR_HUB if name not in ("texts", *_FOR_TEXTS)]
    _refuse(arguments, (*_FOR_RUNS, *others), "checkpoints")
    has_texts = arguments.texts is not None
    _refuse(arguments, ("probe", "inputs") if has_texts else _FOR_TEXTS,
            f"measured with{'' if has_texts else 'out'} --texts")  # fmt: skip
    if arguments.probe is None and (not has_texts or arguments.tokenizer is None):
        raise RecipeError(
            "command line: checkpoints need --probe, such as data.parquet; or --texts, and "
            "--tokenizer FOLDER or ORG/NAME, which is not beside such checkpoints"
        )
    model = _built(arguments.model).to(usable_device(arguments.device or "cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if has_texts:
        made = _probe_of_texts(arguments, model)
        probe, labels, beginnings = made.inputs, made.labels, made.beginnings
    else:
        probe, labels = _probe(arguments, dtype)
        beginnings = None
    files = series[0] if len(series) == 1 else set(series)
    return Checkpoints(
        model, arguments.model, probe, files, arguments.step_pattern, labels,
        given_steps_of(arguments), beginnings,
    )  # fmt: skip


def _built(name: str) -> nn.Module:
    """Import and call the function that builds the model.

    Raises:
        ModelError: as `import_model`, or if the function raises an error or exits.
    """
    build = import_object(name)
    try:
        return build_model(build, name)
    except ConescopeError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ModelError(
            f"{name}, which builds the model, raises {type(error).__name__}: {said} "
            f"({at.filename}, line {at.lineno}); mend it, and try it by itself: python -c "
            f"'import {name.partition(':')[0]} as m; m.{name.partition(':')[2]}()'"
        ) from error


def given_steps_of(arguments: argparse.Namespace) -> Steps | None:
    """Return the steps that the command line gives, as a file or by the length of an epoch."""
    if arguments.iterations_per_epoch is None:
        return arguments.steps
    if arguments.steps is not None:
        raise RecipeError(
            "command line: --steps and --iterations-per-epoch both say the steps; give one of them"
        )
    return steps_by_epoch(arguments.iterations_per_epoch)


def _probe(
    arguments: argparse.Namespace, dtype: torch.dtype | None
) -> tuple[Tensor | dict[str, Tensor], Tensor | None]:
    names = None if arguments.inputs is None else arguments.inputs.split(",")
    column = arguments.labels
    probe = load_probe(arguments.probe, names, dtype, labels=column)
    return probe, None if column is None else load_labels(arguments.probe, column)


def _probe_of_texts(arguments: argparse.Namespace, model: nn.Module) -> ProbeOfTexts:
    """Return the texts as inputs of the user's own model."""
    from conescope.measuring.hub.own_model import probe_for

    chosen = {name: getattr(arguments, name) for name in ("labels", "select", "pool", *_FOR_TEXTS)}
    return probe_for(model, arguments.texts, **chosen)
