"""SGD about a point as a linear process: gradient noise, curvature, and the process itself.

Parameters, gradients and offsets δ = θ − θ* are one vector [P] each, in the order of
`model.parameters()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from conescope.training.losses import Loss

Product = Callable[[Tensor], Tensor]
"""A curvature: δ [P] → its product with δ, [P]."""


def linear_process(
    force: Callable[[int, Tensor], Tensor],
    size: int,
    *,
    steps: int,
    rate: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield δ after each iteration of v ← β v + f_t(δ) + λ δ, δ ← δ − η v, from 0 on.

    This is the update of `torch.optim.SGD` with the gradient f_t. With f_t(δ) = H δ + ξ_t it is
    an Ornstein–Uhlenbeck process in discrete time (Mandt, Hoffman & Blei, JMLR 18:134, 2017).

    Args:
        force: f, of an iteration from 0 on and δ [P].
        size: P.
        steps: number of iterations.
        rate: learning rate η.
        momentum: β.
        decay: weight decay λ.
        dtype: that of δ.
    """
    offset, velocity = torch.zeros(2, size, dtype=dtype)
    for step in range(steps):
        velocity = momentum * velocity + force(step, offset) + decay * offset
        offset = offset - rate * velocity
        yield offset


@dataclass(frozen=True)
class Weighted:
    """Samples with weights, whose weighted sum stands for the mean over all samples.

    Attributes:
        inputs: [n, …].
        labels: [n].
        weights: [n].
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor


class Landscape:
    """The loss of a network as a function of its parameters as one vector.

    Args:
        model: a network whose samples do not depend on each other; it is called in evaluation
            mode, and its own parameters are left as they are.
        loss_of: the loss, from logits, labels and `reduction`.

    Raises:
        ValueError: if the network has buffers, such as the running statistics of BatchNorm.
    """

    def __init__(self, model: nn.Module, loss_of: Loss) -> None:
        if any(True for _ in model.buffers()):
            raise ValueError(
                "a network with BatchNorm has no loss at a point, apart from its batches; choose "
                "a cell without it"
            )
        self.model, self.loss_of = model, loss_of
        self.shapes = {name: p.shape for name, p in model.named_parameters()}

    def logits(self, point: Tensor, inputs: Tensor) -> Tensor:
        """Return the logits of inputs [n, …] with the parameters `point`; [n, c]."""
        parts = point.split([shape.numel() for shape in self.shapes.values()])
        held = {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return functional_call(self.model, held, (inputs,))

    def gradient(self, point: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of the mean loss of samples; [P]."""
        return grad(lambda at: self.loss_of(self.logits(at, inputs), labels))(point)

    def linearised_gradient(
        self, point: Tensor, offset: Tensor, inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Return g + H δ of samples: their gradient to first order in the offset δ; [P]."""
        found = jvp(lambda at: self.gradient(at, inputs, labels), (point,), (offset,))
        return found[0] + found[1]

    def hessian(self, point: Tensor, samples: Weighted) -> Product:
        """Return products with the Hessian of the weighted sum of samples' losses."""
        at = point.clone().requires_grad_()
        logits = self.logits(at, samples.inputs)
        slopes = samples.weights[:, None] * self.slopes(logits, samples.labels)
        (gradient,) = torch.autograd.grad(logits, at, slopes, create_graph=True)
        return _derivative(gradient, at)

    def gauss_newton(self, point: Tensor, samples: Weighted) -> Product:
        """Return products with Σ w Jᵀ A J, A the Hessian of a sample's loss in its logits."""
        at = point.clone().requires_grad_()
        found = self.logits(at, samples.inputs)
        dual = torch.zeros_like(found, requires_grad=True)
        (pulled,) = torch.autograd.grad(found, at, dual, create_graph=True)
        push = _derivative(pulled, dual)  # Jᵀ u is linear in u, and its derivative along δ is J δ
        logits = found.detach().requires_grad_()
        bend = _derivative(self.slopes(logits, samples.labels), logits)
        pull = _derivative(found, at)
        return lambda offset: pull(samples.weights[:, None] * bend(push(offset)))

    def slopes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of each sample's loss in its logits; [n, c]."""
        loss = self.loss_of(logits, labels, reduction="sum")
        return torch.autograd.grad(loss, logits, create_graph=True)[0]

    def bends(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the trace of the Hessian of each sample's loss in its logits; [n]."""
        product = _derivative(self.slopes(logits, labels), logits)
        axes = (axis.expand_as(logits) for axis in torch.eye(logits.shape[1]))
        return torch.stack([(product(axis) * axis).sum(dim=1) for axis in axes]).sum(dim=0)

    def choose(
        self, point: Tensor, inputs: Tensor, labels: Tensor, count: int, generator: torch.Generator
    ) -> Weighted:
        """Choose samples that carry the curvature of the mean loss over all samples, unbiased.

        A sample is taken with a probability π proportional to ‖∇l‖ + tr ∇²l, l its loss as a
        function of its logits, and at most 1, and has the weight 1 / (N π). Fitted samples have
        hardly any curvature, and plain choices of a few would miss those that are not.

        Args:
            point: the parameters, [P].
            inputs: all samples, [N, …].
            labels: their labels, [N].
            count: the number of samples to choose, up to rounding.
            generator: decides the choice (systematic sampling).
        """
        logits = self.logits(point, inputs).requires_grad_()
        sizes = self.slopes(logits, labels).norm(dim=1) + self.bends(logits, labels)
        chance = inclusion(sizes.detach().double(), count)
        marks = torch.floor(chance.cumsum(0) + torch.rand(1, generator=generator))
        chosen = marks.diff(prepend=torch.zeros(1)).bool().nonzero()[:, 0]
        weights = (1 / (len(labels) * chance[chosen])).to(inputs.dtype)
        return Weighted(inputs[chosen], labels[chosen], weights)


def _derivative(value: Tensor, at: Tensor) -> Product:
    """Return products with the transposed derivative of a value in its argument."""
    return lambda direction: torch.autograd.grad(value, at, direction, retain_graph=True)[0]


def inclusion(size: Tensor, count: int) -> Tensor:
    """Return probabilities proportional to sizes [N], at most 1, whose sum is `count`, [N].

    With no more than `count` sizes, all probabilities are 1.
    """
    if count >= len(size):
        return torch.ones_like(size)
    certain = torch.zeros_like(size, dtype=torch.bool)
    while True:
        rest = count - int(certain.sum())
        chance = torch.where(certain, 1.0, size * rest / size[~certain].sum())
        beyond = chance > 1
        if not beyond.any():
            return chance
        certain |= beyond


def largest_eigenvalue(product: Product, size: int, steps: int = 30) -> float:
    """Return the eigenvalue of largest modulus of a curvature, by power iteration."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        vector = product(vector / vector.norm())
    return float(vector.norm())
