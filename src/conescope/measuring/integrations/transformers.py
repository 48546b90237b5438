"""Watching a training by transformers' `Trainer`; needs `pip install 'conescope[transformers]'`."""

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
    """Measures the model's kernel while a `Trainer` trains it.

    Steps are the trainer's `global_step`: optimiser steps, whatever the accumulation.

    Args:
        probe: inputs of the model without labels, such as `input_ids` and `attention_mask` by name.
        when: at which steps, such as "0, every 100, end".
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
        """Begin, and measure the first step if it is time to."""
        if self.watch is not None:
            self.watch.release()
        self.watch = Watch(model, total_steps=state.max_steps, **self._make)
        self.watch.step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure if it is time to."""
        assert self.watch is not None  # the trainer begins before it steps
        self.watch.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the run folder back."""
        assert self.watch is not None
        self.watch.close()
