"""lazy_report(): fine-tune a model and its linearisation with several seeds, and compare."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from conescope.errors import StoreError
from conescope.experiments.lazy import signs
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.job import Job
from conescope.experiments.lazy.one_seed import SeedResult, carry_out
from conescope.experiments.lazy.samples import Labelled, Samples, samples_of, tokenised
from conescope.experiments.lazy.signs import Interval, Sign, Verdict
from conescope.kernel.distance import Float64Array
from conescope.measuring.adapt import Pool, Select
from conescope.runs.environment import describe
from conescope.runs.progress import Progress
from conescope.runs.writer import RunWriter

_RESULT = "result.safetensors"


@dataclass(frozen=True)
class LazyReport:
    """What a fine-tuning and its linearisation gave, over R seeds.

    Attributes:
        name: the name of the model.
        samples: what was trained on and tested with.
        settings: how.
        seeds: [R], the result of each seed.
        source: what was compared, as plain values.
        environment: versions and machine.
        command: the shell command that makes it; empty from Python.
    """

    name: str
    samples: Samples
    settings: Finetuning
    seeds: tuple[SeedResult, ...]
    source: Mapping[str, Any]
    environment: Mapping[str, str]
    command: str = ""

    @cached_property
    def signs(self) -> tuple[Sign, ...]:
        """The signs by which training was lazy or not: kernel, function, accuracy."""
        distances = [float(one.distance[-1]) for one in self.seeds]
        error = _mean([float(one.distance_error) for one in self.seeds])
        relative = np.array([self.relative_distance(one) for one in self.seeds])
        tuned, linear = (self.correct(k) for k in (0, 1))
        return (
            Sign("kernel", signs.interval(distances, error), signs.SAME_KERNEL),
            Sign(
                "function",
                signs.interval(relative[:, 0], _mean(relative[:, 1])),
                signs.SAME_FUNCTION,
            ),
            Sign("accuracy", signs.accuracy_difference(tuned, linear), signs.SAME_ACCURACY),
        )

    @property
    def verdict(self) -> Verdict:
        """Whether the fine-tuning is lazy."""
        return signs.verdict(self.signs)

    @property
    def sentence(self) -> str:
        """The verdict with its reasons, as one line."""
        seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return f"{self.verdict} ({signs.reasons(self.signs)}; {seeds})"

    @property
    def accuracies(self) -> dict[str, Interval]:
        """The test accuracies over seeds: fine-tuned, linearised, and by kernel regression."""
        regressed = [
            self._right(one.predictions.numpy(), one.regressed.numpy()) for one in self.seeds
        ]
        return {
            "fine-tuned": signs.accuracy(self.correct(0)),
            "linearised": signs.accuracy(self.correct(1)),
            "kernel regression": signs.accuracy(np.stack(regressed)),
        }

    @property
    def train_losses(self) -> dict[str, float]:
        """The loss on all training samples at the end, mean over seeds, in nats."""
        losses = np.mean([one.train_loss.numpy() for one in self.seeds], axis=0)
        return {"fine-tuned": float(losses[0]), "linearised": float(losses[1])}

    def correct(self, training: int) -> Float64Array:
        """Return whether each test sample is right at the end, 0 or 1; [R, m].

        Args:
            training: 0 for the fine-tuned model, 1 for the linearised one.
        """
        ends = [one.logits[training, -1].numpy() for one in self.seeds]
        return np.stack([self._right(end, np.arange(len(end))) for end in ends])

    def relative_distance(self, seed: SeedResult, place: int = -1) -> tuple[float, float]:
        """Return D of `signs.relative_distance` at one of the measured iterations."""
        tuned, linear = seed.logits.double().numpy()
        return signs.relative_distance(tuned[0], tuned[place], linear[place])

    def condition(self) -> str:
        """Say λ_1 / λ_n of the kernel at the start, as geometric mean over seeds.

        Where λ_n lies below what rounding makes of 0, the number is only a lower bound.
        """
        logs, lost = [], []
        for one in self.seeds:
            values, floor = one.eigenvalues.numpy(), float(one.floor)
            logs.append(math.log(values[0] / max(values[-1], floor)))
            lost.append(int((values < floor).sum()))
        number = f"{math.exp(_mean(logs)):.2e}"
        if not any(lost):
            return number
        count = len(self.seeds[0].eigenvalues)
        return f"over {number}: {max(lost)} of {count} eigenvalues lie below rounding"

    def _right(self, predictions: Float64Array, places: np.ndarray) -> Float64Array:
        labels = self.samples.labels[self.samples.test].numpy()[places]
        return (predictions.argmax(axis=1) == labels).astype(np.float64)

    def __str__(self) -> str:
        """Return the numbers as text, a line for each."""
        return "\n".join(f"{name}: {value}" for name, value in self.numbers().items())

    def numbers(self) -> dict[str, str]:
        """Return the main numbers with their intervals, as text."""
        kernel, function, difference = self.signs
        tuned, linear = self.train_losses.values()
        growth = np.exp(np.mean([math.log(one.trace[-1] / one.trace[0]) for one in self.seeds]))
        ridges = ", ".join(f"{float(one.ridge):.0e}" for one in self.seeds)
        n, k = len(self.seeds[0].eigenvalues), len(self.seeds[0].regressed)
        return {
            "verdict": self.sentence,
            f"kernel distance S(T, 0), lazy below {kernel.tolerance}": _text(kernel.measured),
            "trace of the kernel, end / start": f"{growth:.3g}",
            f"distance of the functions D, lazy below {function.tolerance}": _text(
                function.measured
            ),
            f"difference of accuracies, lazy within ±{difference.tolerance:.0%}": _text(
                difference.measured, percent=True
            ),
            **{
                f"test accuracy, {name}": _text(value, percent=True)
                for name, value in self.accuracies.items()
            },
            "training loss, fine-tuned and linearised": f"{tuned:.3g} and {linear:.3g} nats",
            "condition number of the kernel at the start": self.condition(),
            "kernel regression": f"{n} samples, tested on {k}; ridges {ridges} of tr(K)/n",
            "data": "; ".join((self.source["samples"], *self.samples.notes)),
        }


def lazy_report(
    model: nn.Module | Callable[[int], nn.Module],
    data: Labelled,
    *,
    test: Labelled | None = None,
    tokenizer: Any = None,
    select: Select | None = None,
    pool: Pool | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> LazyReport:
    """Say whether a fine-tuning is lazy: train a model and its linearisation, and compare.

    For each seed the model and `conescope.linearize` of it are trained on the same batches by
    cross-entropy, both in evaluation mode (no dropout; BatchNorm with its running statistics).
    Measured are the kernel distance S(T, 0) on some training samples, the distance of the functions
    on the test samples, D = d(f_T, f_lin,T) / d(f_T, f_0) (see `signs.relative_distance`), the
    test accuracies, and the kernel's condition number and kernel regression at the start.

    Args:
        model: any module that returns logits [n, c]; it is copied, stays as it is, and what is
            frozen in it stays frozen. Or a function from a seed to such a module, for a head that
            differs with the seed; torch's generator then has this seed.
        data: inputs of the training samples, and their labels. Inputs are a tensor, several as
            `Watch` takes them, or texts; labels are numbers from 0 on, or names.
        test: the same for the test; None to split off a third of `data`.
        tokenizer: of transformers; for texts.
        select: from what the model returns to its logits, see `Watch`.
        pool: for logits of each token, "last" or "mean", see `Watch`.
        out: a folder for the results: a seed that is done there is not computed again, and a seed
            that was interrupted begins again. None to store nothing.
        progress: what is told how far it is.
        **settings: see `conescope.experiments.lazy.finetuning.Finetuning`: steps, batch, lr,
            optimizer, weight_decay, seeds, probe, when, draws, regression, memory.

    Raises:
        RecipeError: if a setting is unknown or out of range.
        DataError: if the labels do not fit.
        ModelError: if the model cannot be trained, measured or linearised.
        TrainingError: if a loss is not finite.
        StoreError: if the folder holds something else, or cannot be written.
    """
    build = (lambda _: copy.deepcopy(model)) if isinstance(model, nn.Module) else model
    samples = samples_of(*tokenised(data, test, tokenizer))
    report = compare(Job(build, samples, Finetuning.of(settings), select, pool, progress), out)
    assert report is not None  # nobody can ask to stop
    return report


def compare(
    job: Job, out: str | Path | None, *, name: str | None = None, command: str = ""
) -> LazyReport | None:
    """Carry out all seeds, see `lazy_report`; None if `job.should_stop` stopped it.

    Args:
        job: what to train and how.
        out: the folder, or None.
        name: the name of the model; by default that of its class.
        command: the shell command that asks for it, for the record.

    Raises:
        ConescopeError: as `lazy_report`.
    """
    source, device = _source(job, name)
    with TemporaryDirectory() if out is None else nullcontext(out) as folder:
        results = _seeds(job, Path(folder), source, command, device)
    if results is None:
        return None
    return LazyReport(
        source["name"], job.samples, job.settings, results, source, describe(device), command
    )


def _source(job: Job, name: str | None) -> tuple[dict[str, Any], str]:
    """Return what is compared, as plain values, and on which device."""
    first = job.start(0)
    adapted = job.adapted(first)
    described = adapted.description()
    source = {
        "name": name or type(first).__name__,
        "description": "A fine-tuning and its linearisation, on the same batches",
        "weights": adapted.weights(),
        **{key: described[key] for key in ("model", "parameters", "select", "pool")},
        **job.samples.description(),
        **job.settings.description(job.samples),
    }
    return source, str(adapted.device)


def _seeds(
    job: Job, path: Path, source: Mapping[str, Any], command: str, device: str
) -> tuple[SeedResult, ...] | None:
    """Carry out every seed that is not done; None if stopped."""
    results = []
    with RunWriter(path) as writer:
        writer.begin_source(source, command)
        writer.begin_session(device)
        for seed in range(job.settings.seeds):
            name = f"seed-{seed}/{_RESULT}"
            result = _stored(path / name)
            if result is None:
                result = carry_out(job, seed, path / f"seed-{seed}")
                if result is None:
                    return None
                writer.folder.write_bytes(name, save(result.tensors()))
            results.append(result)
        writer.finish()
    return tuple(results)


def _stored(file: Path) -> SeedResult | None:
    """Read the result of a seed; None if it is not done."""
    try:
        return SeedResult(**load(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, TypeError) as error:
        raise StoreError(
            f"{file} is damaged ({error}); delete it, and run the same command again"
        ) from error


def _mean(values: Sequence[float] | Float64Array) -> float:
    return float(np.mean(values))


def _text(interval: Interval, *, percent: bool = False) -> str:
    if percent:
        return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
