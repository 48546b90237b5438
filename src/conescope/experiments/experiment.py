"""Experiment: a recipe made concrete, on this machine's device, with data in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from conescope.engine import entk, estimate_entk, project
from conescope.engine.tracing.untouched import outputs_of
from conescope.errors import RecipeError, TrainingError
from conescope.experiments.moments import Moments
from conescope.kernel.estimates import PROJECTED_DRAWS, SEED, Measured
from conescope.measuring.undisturbed import evaluate, evaluation_mode, recalibrated
from conescope.runs.environment import usable_device
from conescope.runs.snapshots import SnapshotState
from conescope.runs.user_code import code_digest
from conescope.tangent import linearize
from conescope.training.arithmetic import check_arithmetic, check_channels_last
from conescope.training.data.augmentation import check_images, flip_and_crop
from conescope.training.data.dataset import Dataset
from conescope.training.data.sampling import (
    BatchOrder,
    Normalizer,
    choose_probe,
    every_value,
    load_chosen,
    seed_for,
    seed_generators,
)
from conescope.training.loop import Snapshot, average_of, train
from conescope.training.losses import LOSSES
from conescope.training.lr_schedules import build_lr_schedule
from conescope.training.models import (
    build_model,
    check_network,
    find_network,
    last_position,
    logits_for,
    returning,
)
from conescope.training.optimizers import build_optimizer
from conescope.training.perturbation import perturb
from conescope.training.recipe import PARTS, Recipe
from conescope.training.recipe_fields import KernelRecipe
from conescope.training.recipe_reading import parts_of

_CALIBRATION_SIZE = 2000
_TRAIN_EVALUATION_SIZE = 2000
_TIMED_IMAGES = 50
_SCHEDULES = ("training.evaluate", "kernel.when", "snapshots.keep", "snapshots.resume")
_MOST_TRAINED = 100_000_000
_MOST_PLAYED = 50_000  # iterations whose learning rates take well below a second


class Experiment:
    """A recipe made concrete: data on the device, the probe, the iterations to measure at.

    Args:
        recipe: the recipe to carry out.
        is_timed_only: whether only the first iterations are carried out, to time them. Of encoded
            images a few stand for all then, and the learning rate of a very long training is 0.

    Attributes:
        counts: schedule field, such as `kernel.when` → how often it fires.

    Raises:
        RecipeError: if the recipe cannot be carried out here.
        DataError: if its data cannot be loaded, or are too few.
    """

    def __init__(self, recipe: Recipe, *, is_timed_only: bool = False) -> None:
        self.recipe = recipe
        self._channels_last = recipe.training.memory_format == "channels_last"
        usable_device(recipe.device)
        if recipe.training.compile or self.autocast is not None:
            check_arithmetic(recipe)
        for section, part in parts_of(recipe).items():
            part.check(recipe.get(section).options)
        most_decoded = _TIMED_IMAGES if is_timed_only else None
        self.data: Dataset = load_chosen(recipe.data, recipe.seed, most_decoded).to(recipe.device)
        samples = self.data.train.inputs
        if recipe.data.augmentation == "flip-crop":
            check_images(samples)
        size, replacement = recipe.training.batch_size, recipe.training.replacement
        self.order = BatchOrder(len(samples), size, recipe.seed, replacement=replacement)
        per_epoch = self.order.iterations_per_epoch
        self.counts = {field: recipe.count(field, per_epoch) for field in _SCHEDULES}
        if is_timed_only and recipe.training.steps > _MOST_PLAYED:
            self.multiplier = lambda _: 0.0
        else:
            if recipe.training.steps > _MOST_TRAINED:
                raise RecipeError(
                    f"training.steps is {recipe.training.steps:,}, and at most {_MOST_TRAINED:,} "
                    f"can be trained; set it lower ('conescope plan' tells the time)"
                )
            drops = recipe.schedule("lr_schedule.drops", per_epoch)
            self.multiplier = build_lr_schedule(
                recipe.lr_schedule, drops, recipe.training.steps, per_epoch
            )
        images = every_value(samples) if is_timed_only else samples
        self.normalize = Normalizer(images, getattr(torch, recipe.dtype))
        split = self.data.split(recipe.probe.split)
        chosen = choose_probe(split, recipe.probe, self.data.classes, recipe.seed)
        self.probe = self.normalize(split.inputs[chosen.to(recipe.device)])
        self.probe_labels: list[int] = split.last_labels[chosen.to(recipe.device)].tolist()
        self.calibration = self.normalize(samples[:_CALIBRATION_SIZE])

    @property
    def code(self) -> dict[str, str]:
        """Name, such as package.module:build → sha256 of the file of a user's own code."""
        return {n: code_digest(n) for s in PARTS if ":" in (n := getattr(self.recipe, s).name)}

    @property
    def autocast(self) -> torch.dtype | None:
        """The type to which the forward pass of an iteration is lowered; None if it is not."""
        return torch.bfloat16 if self.recipe.training.precision == "bfloat16" else None

    def train(self, begun: Snapshot, start: int, stop: int | None = None) -> Iterator[Snapshot]:
        """Train from iteration `start` on as the recipe says, up to its end or `stop`.

        Args:
            begun: what is trained, in place, in its state after `start` iterations.
            start: iterations already done.
            stop: iterations to do in all; None for those of the recipe.

        Raises:
            TrainingError: if the loss is NaN or infinite.
        """
        return train(
            begun.model,
            begun.optimizer,
            self.batch,
            self.multiplier,
            start=start,
            stop=self.recipe.training.steps if stop is None else stop,
            seed=self.recipe.seed,
            average=begun.average,
            autocast=self.autocast,
            is_compiled=self.recipe.training.compile,
            loss_of=LOSSES[self.recipe.training.loss],
        )

    def begin(self, origin: SnapshotState | None = None) -> tuple[nn.Module, Optimizer]:
        """Build what is trained, and its optimiser, as they are before the first iteration.

        Args:
            origin: the snapshot that the run branches from; fresh weights without one.

        Raises:
            RecipeError: if the network does not take the data, or an option is refused.
            StoreError: if the snapshot does not fit the network.
            ModelError: if the network gives no logits, or cannot be linearised.
        """
        recipe = self.recipe
        find_network(recipe.model)  # imports own code, which may draw random numbers
        seed_generators(seed_for(recipe.seed, "weights"))
        data, shape = self.data, tuple(self.data.train.inputs.shape[1:])
        model = build_model(recipe.model, shape, data.classes, data.vocabulary)
        model.to(recipe.device, getattr(torch, recipe.dtype))
        if self._channels_last:
            check_channels_last(model, shape, recipe.device)
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        few = self.probe[: min(2, self.order.smallest(recipe.training.steps))]
        check_network(model, few, data.classes, recipe.model.name, data.train.labels.dim() == 2)
        if origin is not None:
            origin.load_weights(model)
        if recipe.branch.perturbation:
            perturb(model, recipe.branch.perturbation, recipe.branch.perturbation_seed)
        if recipe.dynamics.kind == "linearised":
            recalibrate = recipe.dynamics.batchnorm == "recalibrated"
            model = linearize(recalibrated(model, self.calibration) if recalibrate else model)
        optimizer = build_optimizer(recipe.optimizer, model)
        if origin is not None and recipe.branch.optimizer == "restored":
            origin.restore_momentum(optimizer)
        return model, optimizer

    @cached_property
    def moments(self) -> Moments:
        """The iterations at which the recipe asks for something.

        Raises:
            RecipeError: if there are millions of them.
        """
        return Moments(
            evaluate=self._moments("training.evaluate"),
            kernel=self._moments("kernel.when"),
            keep=self._moments("snapshots.keep") | {self.recipe.training.steps},
            resume=self._moments("snapshots.resume"),
        )

    def average(self, model: nn.Module) -> AveragedModel | None:
        """Build the average of a network's weights, as at its start, if the recipe has one."""
        decay = self.recipe.training.average
        return average_of(model, decay) if decay else None

    def _moments(self, field: str) -> frozenset[int]:
        steps = self.recipe.schedule(field, self.order.iterations_per_epoch)
        return frozenset(step for step in steps if step >= self.recipe.branch.at)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of an iteration (0 is the first)."""
        chosen = self.order(step).to(self.recipe.device)
        samples = self.data.train.inputs[chosen]
        if self.recipe.data.augmentation == "flip-crop":
            samples = flip_and_crop(samples, seed_for(self.recipe.seed, "augmentation", step))
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        inputs = self.normalize(samples).contiguous(memory_format=layout)
        return inputs, self.data.train.labels[chosen]

    @property
    def evaluated(self) -> dict[str, int]:
        """How many samples of each split the network is evaluated on, the first ones."""
        train, test = len(self.data.train.labels), len(self.data.test.labels)
        return {"train": min(train, _TRAIN_EVALUATION_SIZE), "test": test}

    def evaluate(self, snapshot: Snapshot, most: int | None = None) -> dict[str, float]:
        """Return loss and accuracy on at most `most` samples of a split, and the learning rate.

        With labels of every position, both are means over all positions.

        Raises:
            TrainingError: if a loss is NaN or infinite.
        """
        values = {"learning_rate": float(snapshot.optimizer.param_groups[0]["lr"])}
        values |= self.evaluate_network(snapshot.model, most)
        for name in self.evaluated:
            loss = values[f"{name}_loss"]
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss on the {name} data is {loss} after iteration "
                    f"{snapshot.step}: training diverged; lower optimizer.lr, warm it up with "
                    f"lr_schedule.warmup, or look at the data"
                )
        return values

    def evaluate_network(self, model: nn.Module, most: int | None = None) -> dict[str, float]:
        """Return loss and accuracy of a network on at most `most` samples of a split."""
        values = {}
        for name, size in self.evaluated.items():
            split, limit = self.data.split(name), min(size, most or size)
            samples, labels = split.inputs[:limit], split.labels[:limit]
            with returning(partial(logits_for, labels), model):
                loss = LOSSES[self.recipe.training.loss]
                found = evaluate(
                    model, lambda part, s=samples: self.normalize(s[part]), labels, loss
                )
            values |= {f"{name}_{quantity}": value for quantity, value in found.items()}
        return values

    def measure(self, model: nn.Module, samples: Tensor | None = None) -> Measured:
        """Measure the kernel of a network on the probe, or on other samples [n, …]."""
        probe = self.probe if samples is None else samples
        return measure_kernel(model, probe, self.recipe.kernel, self.calibration)[0]

    def measure_with_outputs(self, model: nn.Module) -> tuple[Measured, Tensor | None]:
        """Measure the kernel on the probe, and the outputs [n, c] that are stored with it."""
        chosen = self.recipe.kernel
        return measure_kernel(model, self.probe, chosen, self.calibration, with_outputs=True)


def measure_kernel(
    model: nn.Module, probe: Tensor, recipe: KernelRecipe, calibration: Tensor, *,
    with_outputs: bool = False,
) -> tuple[Measured, Tensor | None]:  # fmt: skip
    """Measure the kernel of a network on the probe, or estimate it, in evaluation mode.

    Of a network with logits at every position, it is the kernel of the last position's.

    Args:
        model: the network; its weights, buffers, gradients and mode are left as they were.
        probe: inputs of the probe, [n, …].
        recipe: which kernel.
        calibration: training inputs [N, …] to estimate BatchNorm's statistics on, if the recipe
            says so.
        with_outputs: whether to return the outputs on the probe [n, c] too, if they can be stored.

    Raises:
        ModelError: if the network has no exact eNTK.
        KernelError: if the kernel is not finite, or zero.
    """
    measured = recalibrated(model, calibration) if recipe.batchnorm == "recalibrated" else model
    memory = recipe.memory
    with evaluation_mode(measured), returning(last_position, measured):
        if recipe.projection is not None:
            dim, draws = recipe.projection, PROJECTED_DRAWS
            kernel = project(measured, probe, dim=dim, seed=SEED, draws=draws, memory=memory)
        elif recipe.estimate is not None:
            kernel = estimate_entk(measured, probe, draws=recipe.estimate, seed=SEED, memory=memory)
            kernel.check_usable()
        else:
            outputs, by_layer = recipe.outputs, recipe.by_layer
            kernel = entk(measured, probe, outputs=outputs, by_layer=by_layer, memory=memory)
            kernel.check_usable()
        return kernel, outputs_of(measured, probe) if with_outputs else None
