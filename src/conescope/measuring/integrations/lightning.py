"""Watch a training by Lightning; needs `pip install 'conescope[lightning]'`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from conescope.errors import MissingPackageError
from conescope.measuring.probe import Probe
from conescope.measuring.watch import Watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingPackageError.of("lightning", "lightning") from error


class WatchCallback(Callback):
    """A callback that measures the kernel of a `LightningModule` while a `Trainer` trains it.

    An iteration is one of the trainer's `global_step`: an optimiser step, however many batches it
    accumulates.

    Args:
        probe: inputs of the module's `forward`.
        when: at which iterations, such as "0, every 100, end".
        out: the run folder.
        module: name of the part to measure; the whole module by default.
        options: further arguments of `conescope.Watch`.

    Attributes:
        watch: the watch of the newest training; None before the first.
    """

    def __init__(
        self, probe: Probe, *, when: str, out: str | Path, module: str = "", **options: Any
    ) -> None:
        self.watch: Watch | None = None
        self._module = module
        self._make: dict[str, Any] = {"probe": probe, "when": when, "out": out, **options}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the watch, and measure if the first iteration is scheduled."""
        steps = trainer.estimated_stepping_batches
        model = pl_module.get_submodule(self._module)
        total = None if math.isinf(steps) else int(steps)
        self.watch = Watch(model, total_steps=total, **self._make)
        self.watch.step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if this iteration is scheduled."""
        assert self.watch is not None  # the trainer starts before its first batch
        self.watch.step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the watch: the training is over."""
        assert self.watch is not None
        self.watch.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Release the run folder, so that another watch can go on with it."""
        if self.watch is not None:
            self.watch.release()
