"""Pass the scalars of each new kernel to a tracker: one file of this folder for each tracker.

A tracker's file says in `METHOD` by which method its writers are recognised, and in
`write(writer, scalars, step)` how they take the scalars of a kernel. It imports no package: the
writer that the user made has all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from conescope.errors import RecipeError

TRACKERS = {
    "tensorboard": "a SummaryWriter of TensorBoard",
    "wandb": "a run of wandb, or the module trackio",
    "mlflow": "the module mlflow, or a logger of Lightning",
}
"""A tracker's file → the writers that it is for, for messages."""


def to_tracker(
    writer: Any, prefix: str = "conescope/"
) -> Callable[[int, Mapping[str, float]], None]:
    """Return a function for `Watch(…, on_kernel=…)` that passes the scalars on.

    Args:
        writer: what a tracker's users write with; `TRACKERS` lists what is known.
        prefix: put before each scalar's name.

    Raises:
        RecipeError: if the writer is of no tracker that is known.
    """
    adapters = {name: import_module(f"{__name__}.{name}") for name in TRACKERS}
    for adapter in adapters.values():
        if callable(getattr(writer, adapter.METHOD, None)):
            return partial(_pass_on, adapter.write, writer, prefix)
    known = "; or ".join(f"{what} (has {adapters[n].METHOD})" for n, what in TRACKERS.items())
    raise RecipeError(
        f"a {type(writer).__name__} is no tracker that conescope knows; give {known}; "
        f"or hand a function of the step and the scalars to on_kernel"
    )


def _pass_on(
    write: Callable[[Any, Mapping[str, float], int], None],
    writer: Any,
    prefix: str,
    step: int,
    scalars: Mapping[str, float],
) -> None:
    write(writer, {prefix + name: value for name, value in scalars.items()}, step)
