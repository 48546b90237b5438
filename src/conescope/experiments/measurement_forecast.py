"""Forecast what it costs to measure a series of weights, from one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from conescope.engine import Plan, plan
from conescope.engine.tracing.forward import feedable, forward
from conescope.engine.tracing.survey import layer_of
from conescope.engine.tracing.untouched import untouched
from conescope.experiments.forecast import (
    TIMED_SAMPLES,
    Forecast,
    outputs_bytes,
    seconds_each,
    seconds_of,
)
from conescope.measuring.adapt import Adapted, inner_names
from conescope.measuring.checkpoints.subject import Subject
from conescope.measuring.choice import Choice


def forecast_measurement(subject: Subject, choice: Choice) -> Forecast:
    """Forecast the cost of a measurement: load the first weights, plan their kernel.

    Args:
        subject: whose weights are to be measured; its model gets the first of them.
        choice: the kernel.

    Raises:
        ConescopeError: if it cannot be measured here.
    """
    with subject.computing():
        loading = seconds_of(lambda: subject.load(min(subject.paths)))
        adapted = choice.adapt(subject.model, subject.probe)
        kernel, seconds = _kernel_cost(adapted, choice, subject.preconditioner)
        return Forecast(
            kernel=kernel,
            kernel_seconds=loading + seconds,
            kernels=len(subject.paths),
            iterations=0,
            iteration_seconds=0.0,
            evaluations=0,
            evaluation_seconds=0.0,
            stored_bytes=len(subject.paths) * _kernel_bytes(adapted, choice),
        )


def _kernel_cost(
    adapted: Adapted, choice: Choice, preconditioner: Mapping[str, Tensor] | None
) -> tuple[Plan | None, float]:
    """Return the plan of a kernel, None for a projection; and the seconds of one measurement."""
    if choice.projection is not None:
        few = replace(adapted, x=adapted.x[:TIMED_SAMPLES])
        seconds = seconds_each(lambda: choice.of(few, preconditioner))
        return None, seconds * len(adapted.x) / len(few.x)
    outputs = choice.outputs if choice.draws is None else "sum"
    x = adapted.x.to(adapted.device)
    kernel = plan(
        adapted.module, x, outputs=outputs, params=adapted.params, memory=choice.memory,
        preconditioner=inner_names(preconditioner),
    )  # fmt: skip
    return kernel, kernel.seconds * (choice.draws or 1)


def _kernel_bytes(adapted: Adapted, choice: Choice) -> int:
    """Return the size of what one measurement stores, in bytes."""
    samples, size = len(adapted.x), adapted.module.get_parameter(adapted.params[0]).element_size()
    with untouched(adapted.module):
        one = forward(adapted.module, feedable(adapted.x[:2].to(adapted.device)))[0]
    outputs = outputs_bytes(samples, one.numel(), one.dtype)
    if choice.projection is not None:
        return samples * choice.projection * size + outputs
    rows = samples * (one.numel() if choice.outputs == "full" else 1)
    matrices = 1 + (choice.draws or 0)
    if choice.by_layer:
        matrices += len({layer_of(name) for name in adapted.params})
    return rows**2 * size * matrices + outputs
