"""Telling a tracker the scalars of each kernel: TensorBoard, Weights & Biases, trackio, others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from conescope.errors import RecipeError
from conescope.measuring.watch import Told


@runtime_checkable
class ScalarWriter(Protocol):
    """What takes one scalar at a time, such as TensorBoard's `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Take a scalar."""


@runtime_checkable
class MetricsLogger(Protocol):
    """What takes all scalars of a step, such as a run of `wandb`, or the module `trackio`."""

    def log(self, data: dict[str, float], /, *, step: int) -> Any:
        """Take scalars by name."""


def to_tracker(tracker: ScalarWriter | MetricsLogger, prefix: str = "conescope/") -> Told:
    """A function for `Watch(…, on_kernel=…)` that passes the scalars on.

    Args:
        tracker: anything with `add_scalar(name, value, step)` or `log(dict, step=…)`.
        prefix: put before each name.

    Raises:
        RecipeError: if the tracker has neither.
    """
    if isinstance(tracker, ScalarWriter):

        def add_each(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                tracker.add_scalar(prefix + name, value, step)

        return add_each
    if isinstance(tracker, MetricsLogger):

        def log_all(step: int, scalars: Mapping[str, float]) -> None:
            tracker.log({prefix + name: value for name, value in scalars.items()}, step=step)

        return log_all
    raise RecipeError(
        f"a {type(tracker).__name__} has neither add_scalar(name, value, step) nor "
        f"log(dict, step=…); give a TensorBoard SummaryWriter, a wandb run, or the module trackio"
    )
