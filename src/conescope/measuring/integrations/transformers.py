"""Watch a training by transformers' `Trainer`; needs `pip install 'conescope[transformers]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from conescope.errors import MissingPackageError
from conescope.measuring.probe import Probe
from conescope.measuring.watch import Watch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingPackageError.of("transformers", "transformers") from error


class WatchCallback(TrainerCallback):
    """A callback that measures the model's kernel while a `Trainer` trains it.

    An iteration is one of the trainer's `global_step`: an optimiser step, however many batches it
    accumulates.

    Args:
        probe: inputs of the model without labels, such as `input_ids` and `attention_mask` by name.
        when: at which iterations, such as "0, every 100, end".
        out: the run folder.
        options: further arguments of `conescope.Watch`.

    Attributes:
        watch: the watch of the newest training; None before the first.
    """

    def __init__(self, probe: Probe, *, when: str, out: str | Path, **options: Any) -> None:
        self.watch: Watch | None = None
        self._make: dict[str, Any] = {"probe": probe, "when": when, "out": out, **options}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """Make the watch, and measure if the first iteration is scheduled."""
        if self.watch is not None:
            self.watch.release()
        self.watch = Watch(model, total_steps=state.max_steps, **self._make)
        self.watch.step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure if this iteration is scheduled."""
        assert self.watch is not None  # the trainer begins before it steps
        self.watch.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the watch: the training is over."""
        assert self.watch is not None
        self.watch.close()
