"""Experiment: a recipe made concrete, on this machine's device, with data in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from conescope.engine import entk
from conescope.errors import RecipeError
from conescope.kernel.matrix import Kernel
from conescope.measuring.undisturbed import evaluate, evaluation_mode, recalibrated
from conescope.runs.snapshots import SnapshotState
from conescope.tangent import linearize
from conescope.training.data import (
    BatchOrder,
    Dataset,
    Normalizer,
    choose_probe,
    flip_and_crop,
    load_data,
    seed_for,
)
from conescope.training.loop import Snapshot, average_of, build_optimizer, learning_rate_schedule
from conescope.training.models import build_model
from conescope.training.recipe import Recipe
from conescope.training.recipe_fields import KernelRecipe

_CALIBRATION_SIZE = 2000
_TRAIN_EVALUATION_SIZE = 2000


@dataclass(frozen=True)
class Moments:
    """The iterations at which a recipe wants something.

    Attributes:
        evaluate: loss and accuracy.
        kernel: a kernel.
        keep: a snapshot that stays; the last iteration is always among them.
        resume: a snapshot to go on from.
    """

    evaluate: frozenset[int]
    kernel: frozenset[int]
    keep: frozenset[int]
    resume: frozenset[int]


class Experiment:
    """A recipe made concrete: data on the device, the probe, the moments to look.

    Args:
        recipe: what to do.

    Raises:
        RecipeError: if the recipe cannot be carried out here.
        DataError: if its data cannot be had, or are too few.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        usable_device(recipe.device)
        self.data: Dataset = load_data(recipe.data).to(recipe.device)
        train_split = self.data.train
        self.order = BatchOrder(len(train_split), recipe.training.batch_size, recipe.seed)
        self.moments = Moments(
            evaluate=self._moments("training.evaluate"),
            kernel=self._moments("kernel.when"),
            keep=self._moments("snapshots.keep") | {recipe.training.steps},
            resume=self._moments("snapshots.resume"),
        )
        drops = recipe.schedule("lr_schedule.drops", self.order.iterations_per_epoch)
        self.multiplier = learning_rate_schedule(recipe.lr_schedule, drops)
        self.normalize = Normalizer(train_split.images, getattr(torch, recipe.dtype))
        split = self.data.split(recipe.probe.split)
        chosen = choose_probe(split, recipe.probe, self.data.classes, recipe.seed)
        self.probe = self.normalize(split.images[chosen.to(recipe.device)])
        self.probe_labels: list[int] = split.labels[chosen.to(recipe.device)].tolist()
        self.calibration = self.normalize(train_split.images[:_CALIBRATION_SIZE])

    def begin(self, origin: SnapshotState | None = None) -> tuple[nn.Module, Optimizer]:
        """What is trained, and its optimiser, before the first iteration.

        Args:
            origin: the snapshot that the run branches from; fresh weights without one.

        Raises:
            StoreError: if the snapshot does not fit the network.
            ModelError: if the network cannot be linearised.
        """
        recipe = self.recipe
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        shape = tuple(self.data.train.images.shape[1:])
        model = build_model(recipe.model, shape, self.data.classes)
        model.to(recipe.device, getattr(torch, recipe.dtype))
        if origin is not None:
            origin.load_weights(model)
        if recipe.dynamics.kind == "linearised":
            recalibrate = recipe.dynamics.batchnorm == "recalibrated"
            model = linearize(recalibrated(model, self.calibration) if recalibrate else model)
        optimizer = build_optimizer(recipe.optimizer, model)
        if origin is not None and recipe.branch.optimizer == "restored":
            origin.restore_momentum(optimizer)
        return model, optimizer

    def average(self, model: nn.Module) -> AveragedModel | None:
        """The average of a network's weights before the first iteration, if the recipe has one."""
        decay = self.recipe.training.average
        return average_of(model, decay) if decay else None

    def _moments(self, field: str) -> frozenset[int]:
        steps = self.recipe.schedule(field, self.order.iterations_per_epoch)
        return frozenset(step for step in steps if step >= self.recipe.branch.at)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of an iteration (0 is the first)."""
        chosen = self.order(step).to(self.recipe.device)
        images = self.data.train.images[chosen]
        if self.recipe.data.augmentation == "flip-crop":
            images = flip_and_crop(images, seed_for(self.recipe.seed, "augmentation", step))
        return self.normalize(images), self.data.train.labels[chosen]

    @property
    def evaluated(self) -> dict[str, int]:
        """How many images of each split the network is evaluated on, the first ones."""
        train, test = len(self.data.train.labels), len(self.data.test.labels)
        return {"train": min(train, _TRAIN_EVALUATION_SIZE), "test": test}

    def evaluate(self, snapshot: Snapshot, most: int | None = None) -> dict[str, float]:
        """Loss and accuracy on training and test images, at most so many of each; learning rate."""
        values = {"learning_rate": snapshot.optimizer.param_groups[0]["lr"]}
        for name, size in self.evaluated.items():
            split, limit = self.data.split(name), min(size, most or size)
            images, labels = split.images[:limit], split.labels[:limit]
            found = evaluate(snapshot.model, lambda part, i=images: self.normalize(i[part]), labels)
            values |= {f"{name}_{quantity}": value for quantity, value in found.items()}
        return values

    def measure(self, model: nn.Module) -> Kernel:
        """The kernel of a network on the probe."""
        return measure_kernel(model, self.probe, self.recipe.kernel, self.calibration)


def measure_kernel(
    model: nn.Module, probe: Tensor, recipe: KernelRecipe, calibration: Tensor
) -> Kernel:
    """The kernel of a network on the probe, in evaluation mode.

    Args:
        model: the network; its weights, buffers, gradients and mode are left as they were.
        probe: inputs of the probe, [n, …].
        recipe: which kernel.
        calibration: training inputs [N, …] to estimate BatchNorm's statistics on, if the recipe
            says so.

    Raises:
        ModelError: if the network has no exact eNTK.
        KernelError: if the kernel is not finite, or zero.
    """
    measured = recalibrated(model, calibration) if recipe.batchnorm == "recalibrated" else model
    with evaluation_mode(measured):
        kernel = entk(
            measured, probe, outputs=recipe.outputs, by_layer=recipe.by_layer, memory=recipe.memory
        )
    kernel.check_usable()
    return kernel


def usable_device(name: str) -> torch.device:
    """The device of a name such as cpu or cuda:1.

    Raises:
        RecipeError: if there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"device {name!r} cannot be used here: {reason}") from None


@contextmanager
def reproducible(recipe: Recipe) -> Iterator[None]:
    """Compute on the recipe's threads, and on CUDA by algorithms that give the same bits."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(recipe.threads or threads)
    torch.use_deterministic_algorithms(deterministic or recipe.device.startswith("cuda"))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
