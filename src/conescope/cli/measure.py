"""`conescope measure`: measure the kernel of a series of checkpoints, or a run's snapshots anew."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import get_args

from conescope.cli.commands import Commands
from conescope.cli.progress import ProgressBar
from conescope.cli.stored import show
from conescope.cli.terminal import STDERR, say, stopping
from conescope.errors import RecipeError
from conescope.experiments.experiment import usable_device
from conescope.experiments.remeasure import Snapshots
from conescope.kernel.matrix import BatchNorm, NamedOutputs, Outputs
from conescope.measuring.adapt import POOLS
from conescope.measuring.checkpoints import load_labels, load_probe
from conescope.measuring.checkpoints.measurement import measure
from conescope.measuring.checkpoints.subject import Checkpoints, Subject
from conescope.measuring.choice import Choice
from conescope.runs.user_code import import_model

_FOR_CHECKPOINTS = (
    "model", "probe", "inputs", "labels", "step_pattern", "steps", "device", "select", "pool",
)  # fmt: skip
_FOR_RUNS = ("batchnorm", "when")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "measure", _measure, "measure the kernel of checkpoints, or of a run's snapshots anew"
    )
    option = parser.add_argument
    option(
        "series",
        metavar="SERIES",
        nargs="+",
        help="checkpoints, as a glob such as 'ckpts/*.safetensors', a folder or files; or a run's "
        "folder, for its snapshots",
    )
    option("--out", metavar="DIR", type=Path, required=True, help="folder for the new run")
    option(
        "--outputs",
        metavar="trace|full|sum|K",
        type=_outputs,
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
    foreign = parser.add_argument_group("for checkpoints").add_argument
    foreign("--model", metavar="MODULE:BUILD", help="function that builds the model; runs its code")
    foreign("--probe", metavar="FILE", help="the samples, as .parquet, .safetensors, .npz or .pt")
    foreign("--inputs", metavar="NAME,…", help="the probe's columns to use as inputs (default all)")
    foreign("--labels", metavar="NAME", help="the probe's column with the samples' classes")
    foreign("--step-pattern", metavar="REGEX",
        help=r"regular expression whose group is the step: 'ckpt_(\d+)'")  # fmt: skip
    foreign("--steps", metavar="CSV", type=Path, help="CSV file of lines 'file,step'")
    foreign("--select", metavar="FIELD", help="field of the model's output, such as logits or 0")
    foreign("--pool", choices=tuple(POOLS),
        help="take the outputs of the last token, or their mean over tokens")  # fmt: skip
    foreign("--device", help="cpu (default), cuda or another device of torch")
    own = parser.add_argument_group("for a run's snapshots").add_argument
    own("--batchnorm", choices=get_args(BatchNorm),
        help="statistics that BatchNorm uses (default as in the run)")  # fmt: skip
    own("--when", metavar="SCHEDULE", help="snapshots to measure: 'every 500' (default all)")


def _measure(arguments: argparse.Namespace) -> int:
    subject = _subject(arguments)
    own_outputs = subject.recipe.kernel.outputs if isinstance(subject, Snapshots) else "trace"
    choice = Choice(
        outputs=own_outputs if arguments.outputs is None else arguments.outputs,
        draws=arguments.draws,
        select=arguments.select,
        pool=arguments.pool,
        params=arguments.params,
        by_layer=arguments.by_layer,
        memory=arguments.memory,
        projection=arguments.projection,
    )
    command = shlex.join(["conescope", *arguments.words])
    with stopping() as received, ProgressBar(STDERR) as bar:
        is_complete = measure(
            subject,
            choice,
            arguments.out,
            command=command,
            progress=bar,
            should_stop=lambda: bool(received),
        )
    if not is_complete:
        say("stopped", f"{bar.step} of {len(subject.paths)} are measured; the same command goes on")
        return 128 + received[0]
    show(arguments.out)
    return 0


def _subject(arguments: argparse.Namespace) -> Subject:
    series = arguments.series
    is_run = len(series) == 1 and (Path(series[0]) / "journal.jsonl").exists()
    for name in _FOR_CHECKPOINTS if is_run else _FOR_RUNS:
        if getattr(arguments, name) is not None:
            holds = "a run" if is_run else "checkpoints"
            raise RecipeError(
                f"command line: {series[0]} is {holds}, which takes no --{name.replace('_', '-')}"
            )
    if is_run:
        return Snapshots(Path(series[0]), arguments.batchnorm, arguments.when)
    for name, example in (("model", "package.module:build"), ("probe", "data.parquet")):
        if getattr(arguments, name) is None:
            raise RecipeError(f"command line: checkpoints need --{name}, such as {example}")
    model = import_model(arguments.model).to(usable_device(arguments.device or "cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    names = None if arguments.inputs is None else arguments.inputs.split(",")
    column = arguments.labels
    probe = load_probe(arguments.probe, names, dtype, labels=column)
    labels = None if column is None else load_labels(arguments.probe, column)
    files = series[0] if len(series) == 1 else set(series)
    return Checkpoints(
        model, arguments.model, probe, files, arguments.step_pattern, labels, arguments.steps
    )


def _outputs(text: str) -> Outputs:
    for name in get_args(NamedOutputs):
        if text == name:
            return name
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"trace, full, sum or an output's number, not {text!r}")
    return int(text)
