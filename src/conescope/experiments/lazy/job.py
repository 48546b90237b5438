"""What the seeds of one comparison have in common: model, samples, settings, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conescope.engine.tracing.forward import FORWARD_ERRORS, describe_failure
from conescope.errors import ModelError
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.samples import Samples
from conescope.measuring.adapt import Adapted, Pool, Select, adapt
from conescope.measuring.undisturbed import undisturbed
from conescope.runs.progress import Progress

_EVALUATED = 64
"""Samples of a batch of an evaluation."""


@dataclass(frozen=True)
class Job:
    """All that the seeds of one comparison have in common.

    Attributes:
        build: returns the model at the start of a seed, when torch's generator has this seed.
        samples: what is trained on and tested with.
        settings: how.
        select: how to get the outputs from what the model returns, see `adapt`.
        pool: see `adapt`.
        progress: what is told how far it is, or None.
        should_stop: asked before every iteration.
    """

    build: Callable[[int], nn.Module]
    samples: Samples
    settings: Finetuning
    select: Select | None = None
    pool: Pool | None = None
    progress: Progress | None = None
    should_stop: Callable[[], bool] = lambda: False

    def start(self, seed: int) -> nn.Module:
        """Build the model at the start of a seed, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build(seed)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"the function that builds the model returns a {type(model).__name__}; let it "
                f"return a torch.nn.Module"
            )
        return model.eval()

    def adapted(self, model: nn.Module) -> Adapted:
        """Make a model ready for numbers of samples, or for images and the like themselves.

        Raises:
            ModelError: if it takes no such inputs, nothing in it is trained, or its outputs are no
                logits of the classes.
        """
        if not any(p.requires_grad for p in model.parameters()):
            raise ModelError(
                "the model is frozen: no parameter requires a gradient, so nothing would be "
                "trained; unfreeze some with requires_grad_(True)"
            )
        inputs = self.samples.inputs
        given = inputs[:2] if isinstance(inputs, Tensor) else inputs
        adapted = adapt(model, given, select=self.select, pool=self.pool)
        try:
            with torch.no_grad(), undisturbed(adapted.module):
                outputs = self.outputs(adapted.module, torch.arange(2))
        except FORWARD_ERRORS as error:
            raise ModelError(
                f"the model rejects two of the samples: {describe_failure(error, model)}; give "
                f"them as its forward() takes a batch"
            ) from error
        classes = len(self.samples.classes)
        if outputs.dim() == 0:
            raise ModelError(
                "the model returns one number, as a loss is; let it return logits [n, classes], "
                "or say where they are with `select`"
            )
        if outputs.dim() != 2 or len(outputs) != 2 or outputs.shape[1] < classes:
            raise ModelError(
                f"two samples give outputs of shape {list(outputs.shape)}, and {classes} classes "
                f"need logits [2, {classes}]; choose them with `select` or `pool`, or give the "
                f"model a head of {classes} outputs"
            )
        return adapted

    def trained(self, model: nn.Module, adapted: Adapted) -> nn.Module:
        """Return the module whose parameters are trained: the model itself where it is enough.

        The linearisation of a model that maps one tensor to one tensor is the faster one.
        """
        if isinstance(self.samples.inputs, Tensor) and self.select is None and self.pool is None:
            with torch.no_grad(), undisturbed(model):
                if isinstance(self.outputs(model, torch.arange(1)), Tensor):
                    return model
        return adapted.module

    def outputs(self, module: nn.Module, places: Tensor) -> Tensor:
        """Return the logits of some of the samples."""
        inputs = self.samples.inputs
        chosen = inputs[places] if isinstance(inputs, Tensor) else places
        return module(chosen.to(next(module.parameters()).device))

    def logits(self, module: nn.Module, places: Tensor) -> Tensor:
        """Return the logits of some of the samples without a graph, on the CPU."""
        with torch.no_grad():
            parts = [self.outputs(module, part).cpu().float() for part in places.split(_EVALUATED)]
        return torch.cat(parts)

    def begin(self, name: str, total: int) -> None:
        """Tell that a part of the work begins."""
        if self.progress is not None:
            self.progress.begin(name, 0, total)

    def advance(self, step: int) -> None:
        """Tell that an iteration is done."""
        if self.progress is not None:
            self.progress.advance(step)
