"""The settings of a fine-tuning that is compared with its linearisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import DataError, RecipeError
from conescope.experiments.lazy.samples import Samples
from conescope.runs.schedule import Schedule
from conescope.training.optimizers import find_optimizer
from conescope.training.recipe_fields import OptimizerRecipe

EPOCHS = 3
"""The length of a fine-tuning of which no number of iterations is given, in epochs."""

LEAST_PROBE = 10
"""The fewest samples of a probe: error bars over its choice need as many."""

EXACT_OUTPUTS = 16
"""The number of outputs up to which the class trace is computed exactly; of more, it is estimated
by `DRAWS` random cotangents, which cost as much as so many outputs."""

DRAWS = 8
"""Random cotangents of an estimate of the class trace."""

_BATCHES_SEED, _PROBE_SEED = 1, 2


@checked
@dataclass(frozen=True)
class Finetuning:
    """How a model and its linearisation are trained and measured.

    Attributes:
        steps: the number T of iterations; None for three epochs.
        batch: samples of a batch.
        lr: the learning rate, constant.
        optimizer: the name of an optimiser of torch.optim, in lower case.
        weight_decay: the optimiser's weight decay.
        seeds: number R of fine-tunings, by the seeds 0 to R − 1: each has its own batches, and its
            own head if the model is built anew for each.
        probe: training samples on which the kernel is followed, chosen at random.
        when: the schedule of the iterations at which it is measured; None for four equal parts.
        draws: random cotangents by which the class trace is estimated; None for the exact kernel
            of at most `EXACT_OUTPUTS` outputs and `DRAWS` cotangents of more.
        by_layer: whether to store the kernel of each layer, too; for exact kernels.
        regression: the most samples, for training and test together, whose kernel is computed
            for the kernel regression; it costs as much as their number squared.
        memory: memory for a kernel, "2GB" or bytes; None for a quarter of the machine's.

    Raises:
        RecipeError: if a number is out of range, or there is no such optimiser or schedule.
    """

    steps: int | None = None
    batch: int = 16
    lr: float = 5e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    seeds: int = 3
    probe: int = 32
    when: str | None = None
    draws: int | None = None
    by_layer: bool = False
    regression: int = 400
    memory: str | float | None = None

    def __post_init__(self) -> None:
        least = {"batch": 1, "seeds": 1, "probe": LEAST_PROBE, "regression": 2 * LEAST_PROBE}
        if self.steps is not None:
            least["steps"] = 1
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise RecipeError(f"{name} is at least {bound}, not {value}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise RecipeError(f"lr is a learning rate above 0, not {self.lr}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise RecipeError(f"weight_decay is at least 0, not {self.weight_decay}")
        find_optimizer(self.optimizer_recipe)
        if self.when is not None:
            Schedule(self.when).check_loop(self.steps or 1)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Finetuning:
        """Return the settings of these names and values.

        Raises:
            RecipeError: if one is unknown, or out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise RecipeError(f"there is no setting {name!r}; there are {', '.join(known)}")
        return cls(**settings)

    @property
    def optimizer_recipe(self) -> OptimizerRecipe:
        """The optimiser as the training of recipes takes it."""
        return OptimizerRecipe(
            name=self.optimizer, lr=self.lr, momentum=0.0, weight_decay=self.weight_decay
        )

    def length(self, samples: Samples) -> int:
        """Return the number T of iterations."""
        epoch = math.ceil(len(samples.train) / self.batch)
        return EPOCHS * epoch if self.steps is None else self.steps

    def measured(self, samples: Samples) -> tuple[int, ...]:
        """Return the iterations at which the kernel is measured, rising, with 0 and T."""
        total = self.length(samples)
        text = f"every {math.ceil(total / 4)}" if self.when is None else self.when
        return tuple(sorted({0, *Schedule(text).steps(total), total}))

    def batches(self, samples: Samples, seed: int) -> list[Tensor]:
        """Return the places of the training samples of each batch: epochs in random order."""
        generator = torch.Generator().manual_seed(2**32 * _BATCHES_SEED + seed)
        size = min(self.batch, len(samples.train))
        found: list[Tensor] = []
        while len(found) < self.length(samples):
            order = torch.randperm(len(samples.train), generator=generator)
            found += [samples.train[part] for part in order.split(size)]
        return found[: self.length(samples)]

    def probed(self, samples: Samples) -> Tensor:
        """Return the places of the probe's samples, the same for all seeds, rising.

        Raises:
            DataError: if there are too few training samples for a probe.
        """
        if len(samples.train) < LEAST_PROBE:
            raise DataError(
                f"{len(samples.train)} training samples are too few for error bars of the kernel; "
                f"give at least {LEAST_PROBE}"
            )
        return _some(samples.train, self.probe)

    def regressed(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the places of the kernel regression's samples, for training and for its test.

        Of more samples than `regression`, some are chosen at random, in the proportion of all.
        """
        n, m = len(samples.train), len(samples.test)
        share = min(1.0, self.regression / (n + m))
        return (
            _some(samples.train, max(2, math.floor(n * share))),
            _some(samples.test, max(1, math.floor(m * share))),
        )

    def draws_for(self, outputs: int) -> int | None:
        """Return the number of cotangents for a model of so many outputs; None for exact."""
        return DRAWS if self.draws is None and outputs > EXACT_OUTPUTS else self.draws

    def description(self, samples: Samples) -> dict[str, Any]:
        """Describe the fine-tuning: equal for trainings whose results are equal."""
        return {
            "steps": self.length(samples),
            "batch": self.batch,
            "optimizer": self.optimizer,
            "lr": self.lr,
            "weight decay": self.weight_decay,
            "measured at": ", ".join(map(str, self.measured(samples))),
            "probe": f"{len(self.probed(samples))} training samples",
            "draws": self.draws,
            "regression": self.regression,
            **({"by layer": True} if self.by_layer else {}),
        }


def _some(places: Tensor, count: int) -> Tensor:
    if count >= len(places):
        return places
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return places[torch.randperm(len(places), generator=generator)[:count]].sort().values
