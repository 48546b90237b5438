"""A training, and what is kept of its last stretch to be compared with a linear process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from conescope.experiments.experiment import Experiment
from conescope.training.loop import Snapshot


@dataclass(frozen=True)
class Stretch:
    """The iterations that are compared.

    Attributes:
        first: the first of them; θ* is the mean of the weights from here on.
        last: the last of them, the end of the training.
        gap: iterations from one kernel to the next.
        lead: iterations that the linear process makes before `first`, from δ = 0 on.
    """

    first: int = 1000
    last: int = 2000
    gap: int = 20
    lead: int = 500

    @property
    def steps(self) -> range:
        """The iterations at which a kernel is taken."""
        return range(self.first, self.last + 1, self.gap)


@dataclass(frozen=True)
class Trained:
    """What is kept of a run: weights at the kernels' iterations, their mean, its gradients' size.

    Attributes:
        weights: [T, P], at `Stretch.steps`.
        centre: θ*, [P]; the mean over all iterations of the stretch.
        squared_gradient: mean of ‖g_B(θ_t)‖² over the iterations of the stretch.
    """

    weights: Tensor
    centre: Tensor
    squared_gradient: float


def trained(experiment: Experiment, stretch: Stretch) -> Trained:
    """Train as the recipe says up to the end of the stretch."""
    model, optimizer = experiment.begin()
    parameters = list(model.parameters())
    held, total, squares = [], torch.zeros((), dtype=torch.float64), 0.0
    for snapshot in experiment.train(Snapshot(0, model, optimizer), 0, stretch.last):
        if snapshot.step < stretch.first:
            continue
        vector = parameters_to_vector(parameters).detach()
        total = total + vector.double()
        if snapshot.step in stretch.steps:
            held.append(vector)
        if snapshot.step > stretch.first:
            gradients = [p.grad for p in parameters if p.grad is not None]
            squares += sum(float(g.square().sum()) for g in gradients)
    length = stretch.last - stretch.first
    centre = (total / (length + 1)).to(held[0].dtype)
    return Trained(torch.stack(held), centre, squares / length)
