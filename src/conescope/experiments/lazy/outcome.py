"""Hold what a fine-tuning and its linearisation gave over seeds: signs, verdict and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as F

from conescope.argument_types import checked
from conescope.experiments.lazy import signs
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.one_seed import SeedResult
from conescope.experiments.lazy.samples import Samples
from conescope.experiments.lazy.signs import Interval, Sign, Verdict
from conescope.kernel.distance import Float64Array


@checked
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

    @property
    def test_losses(self) -> dict[str, float]:
        """The test loss at the start and of both models at the end, mean over seeds, in nats."""
        labels = self.samples.labels[self.samples.test]

        def loss(training: int, place: int) -> float:
            return _mean(
                [float(F.cross_entropy(one.logits[training, place], labels)) for one in self.seeds]
            )

        return {"start": loss(0, 0), "fine-tuned": loss(0, -1), "linearised": loss(1, -1)}

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
        test_losses = ", ".join(f"{value:.3g}" for value in self.test_losses.values())
        train_losses = ", ".join(f"{value:.3g}" for value in self.train_losses.values())
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
            "training loss in nats: fine-tuned, linearised": train_losses,
            "test loss in nats: at the start, fine-tuned, linearised": test_losses,
            "condition number of the kernel at the start": self.condition(),
            "kernel regression": f"{n} samples, tested on {k}; ridges {ridges} of tr(K)/n",
            "data": "; ".join((self.source["samples"], *self.samples.notes)),
        }


def _mean(values: Sequence[float] | Float64Array) -> float:
    return float(np.mean(values))


def _text(interval: Interval, *, percent: bool = False) -> str:
    if percent:
        return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
