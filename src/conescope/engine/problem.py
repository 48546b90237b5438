"""What is asked of the engine, checked: a model, samples, and the cotangents of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conescope.engine.arguments import check_inputs, check_parameters
from conescope.engine.cotangents import Cotangents
from conescope.engine.independence import Witness, refuse_coupling_modules
from conescope.engine.known import look_at, survey_model, witness_of
from conescope.engine.parameters import choose_parameters, refuse_absent_weights
from conescope.engine.state import requiring_grad, untouched
from conescope.engine.survey import Survey
from conescope.errors import ModelError
from conescope.kernel.matrix import Outputs

_MANY_PASSES = 512
"""Gradients of two samples and one cotangent more are a small part of so many."""
_CHEAP_PASS = 2**20
"""Numbers that a pass over all samples keeps, if its time is next to nothing."""

Convention = Callable[[int, Tensor], Cotangents]
"""From the number of outputs, and an empty tensor of their kind, to the cotangents."""


@dataclass(frozen=True)
class Problem:
    """One kernel to be computed.

    Attributes:
        model: the network.
        parameters: those whose kernel is wanted, by name.
        x: n samples.
        y: m samples, or None for x itself.
        full: whether the cotangents stay apart, as for outputs="full".
        cotangents: q vectors over the c outputs.
        survey: what is known of the model.
        witness: compares batches with their parts; None to compare nothing.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    x: Tensor
    y: Tensor | None
    full: bool
    cotangents: Cotangents
    survey: Survey
    witness: Witness | None = None

    @property
    def checks_gradients(self) -> bool:
        """Whether gradients of a few samples are computed again each time, at little cost."""
        n, q = len(self.x), len(self.cotangents)
        return n * q >= _MANY_PASSES or n * self.survey.passing <= _CHEAP_PASS

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the kernel: that of the outputs, and at least float32."""
        return torch.promote_types(self.cotangents.like.dtype, torch.float32)


def convention(outputs: Outputs) -> Convention:
    """The cotangents that a convention means, for any number of outputs."""
    return lambda width, like: Cotangents.of(outputs, width, like)


@contextmanager
def prepared(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    params: str | Iterable[str] | None,
    cotangents: Convention,
    full: bool = False,
) -> Iterator[Problem]:
    """Check all that can be checked on a few samples, survey the model, and leave it as it was.

    Args:
        model: the network; its parameters require gradients inside, those chosen and those that
            did before.
        x: n samples.
        y: m samples, or None.
        params: see `choose_parameters`.
        cotangents: which vectors.
        full: whether they stay apart.

    Raises:
        ModelError: if the model or the samples have no exact kernel as they stand.
        KernelError: if the convention does not fit the outputs.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    parameters = choose_parameters(model, params)
    refuse_absent_weights(model)
    for name, samples in (("x", x), ("y", y)):
        if samples is not None:
            check_inputs(name, samples, parameters)
    check_parameters(model)
    refuse_coupling_modules(model)
    x, y = x.detach(), None if y is None else y.detach()
    like = look_at(model, parameters, x)
    with untouched(model), requiring_grad(parameters.values()):
        survey = survey_model(model, parameters, x, like)
        chosen = cotangents(survey.like.shape[1], survey.like)
        witness = witness_of(model, x, y)
        yield Problem(model, parameters, x, y, full, chosen, survey, witness)
