"""Watch: measure the kernel during a training loop without changing what the loop does."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conescope.argument_types import checked
from conescope.errors import BudgetWarning, DamageWarning, KernelError, StoreError
from conescope.kernel.estimates import Measured, measured_distance, trace_of
from conescope.kernel.matrix import Outputs
from conescope.kernel.series import KernelSeries, as_step
from conescope.measuring.adapt import Pool, Select
from conescope.measuring.choice import Choice
from conescope.measuring.pace import Pace
from conescope.measuring.probe import Probe, class_labels, count
from conescope.measuring.undisturbed import undisturbed
from conescope.runs.contents import read_kernel, weights_hash
from conescope.runs.environment import is_first_process
from conescope.runs.journal import Entry, Kind
from conescope.runs.reader import Run, read_run
from conescope.runs.schedule import Schedule
from conescope.runs.writer import RunWriter

Told = Callable[[int, Mapping[str, float]], None]
"""Called with the step and the scalars of each new kernel (see `Watch`)."""


@checked
class Watch:
    """A watch measures a model's kernel during a training loop, and stores it in a run folder.

    Call `step` after every optimiser step, and once before the first::

        with cs.Watch(model, probe, when="0, every 100", out="runs/mine") as watch:
            watch.step(0)
            for step in range(1, 1001):
                ...  # anything
                watch.step(step)

    Weights, buffers, gradients, modes and random states are the same bits with and without it.
    A folder of the same model and probe is continued; what it holds is not measured again.
    Of several processes that train together, the first one measures.

    Args:
        model: any module, also compiled or wrapped for data-parallel training.
        probe: its inputs for n samples: a tensor, or several as a tuple or by name.
        when: the schedule of the steps to measure at, such as "0, 50, every 100".
        out: the run folder.
        labels: [n], the classes of the samples as whole numbers, for alignment with them and
            class blocks; a later watch of the same folder may add or correct them.
        outputs: which outputs enter the kernel, see `Kernel.outputs`.
        select: from what the model returns to its outputs, see `conescope.measuring.adapt.adapt`.
        pool: for outputs [n, T, …] of T tokens, "last" or "mean"; None to leave them as they are.
        params: names or patterns of the parameters whose kernel is taken; None for every one that
            is not frozen now.
        by_layer: whether to store the summands of each layer, too.
        draws: number of random cotangents for an estimate of the class trace, at least 2; None
            for the exact kernel. For models of many outputs, such as a vocabulary.
        projection: number of dimensions, a multiple of 8, to which per-sample gradients are
            projected at random for an estimate of the class trace; None for no projection. For
            probes of many samples: it costs and stores n numbers for each dimension, not n².
        memory: budget of one measurement beyond the model and the result, "2GB" or bytes.
        budget: the share of the wall time that measuring may take, in (0, 1); None for no limit.
            Where it does not suffice, only every second, fourth, … scheduled step is measured.
        total_steps: the length of the training, if known.
        name: the name of the run; by default that of the folder.
        on_kernel: called with the step and the scalars of each new kernel: "trace", and from the
            second on "distance_from_first" and "distance_from_previous" (the kernel distance S,
            arXiv:2503.16316, eq. 4) and "velocity" (eq. 5, per iteration).

    Attributes:
        path: the run folder.

    Raises:
        ModelError: if the model cannot be measured, or rejects the probe.
        RecipeError: if `when` is no schedule, or `budget` no share.
        DataError: if the labels are no classes, or not as many as samples.
        KernelError: if `outputs`, `draws` and `projection` do not go together.
        StoreError: if the folder holds kernels of something else, or belongs to another process.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        when: str,
        out: str | Path,
        labels: Tensor | Sequence[int] | None = None,
        outputs: Outputs = "trace",
        select: Select | None = None,
        pool: Pool | None = None,
        params: str | Iterable[str] | None = None,
        by_layer: bool = False,
        draws: int | None = None,
        projection: int | None = None,
        memory: str | float | None = None,
        budget: float | None = None,
        total_steps: int | None = None,
        name: str | None = None,
        on_kernel: Told | None = None,
    ) -> None:
        self.path = Path(out)
        self._choice = Choice(outputs, draws, select, pool, params, by_layer, memory, projection)
        self._schedule = Schedule(when)
        self._schedule.check_loop(total_steps)
        self._pace = Pace(budget)
        self._adapted = self._choice.adapt(model, probe)
        self._labels = None if labels is None else class_labels(labels, count(probe))
        with undisturbed(self._adapted.module):
            self._adapted.check(outputs)
        self._total_steps, self._on_kernel = total_steps, on_kernel
        self._first: int | None = None
        self._last: int | None = None
        self._skipped: list[int] = []
        self._noted = 0
        self._writer = RunWriter(self.path)
        self._stored: dict[int, Entry] = {}
        self._closed = False
        self._measures = is_first_process()
        if self._measures:
            described = self._adapted.description()
            self._claim(
                {
                    "name": name or self.path.name,
                    "description": f"{described['model']}, watched while something else trains it",
                    **described,
                    **self._choice.description(),
                    "when": when,
                }
            )

    def step(self, step: int) -> bool:
        """Measure the kernel, if the schedule says so and the budget allows it.

        Args:
            step: number of optimiser steps done; rising from call to call. The same step again
                does nothing.

        Returns:
            Whether a kernel was measured.

        Raises:
            KernelError: if the step is no count, lies before the last one, or the kernel holds
                NaN.
            ModelError: if the model has no exact kernel as it stands, or its weights hold NaN.
            StoreError: if the kernel cannot be stored, the watch is closed, or the folder holds
                the kernels of another training.
        """
        step = as_step(step)
        if not self._is_new(step) or not self._measures:
            return False
        if not self._schedule.fires(step, self._total_steps):
            return False
        if step in self._stored:
            self._check_weights(step)
            return False
        if not self._pace.passes():
            self._skip(step)
            return False
        with self._pace.measuring():
            self._measure(step)
        return True

    def close(self) -> None:
        """End the watch of a training that is over, and give the folder back."""
        if self._measures and not self._closed:
            self._note_skipped()
            if self._stored and self._total_steps in (None, self._last):
                self._writer.finish()
        self.release()

    def release(self) -> None:
        """Give the folder back as unfinished, so that another watch can go on with it."""
        self._closed = True
        self._writer.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.release()

    @property
    def run(self) -> Run:
        """Everything measured so far, as `conescope.load_run` gives it."""
        return read_run(self.path)

    @property
    def series(self) -> KernelSeries:
        """The kernels measured so far, in this session and before."""
        return self.run.series

    @property
    def skipped(self) -> tuple[int, ...]:
        """The steps of this session at which no kernel was measured, to keep to the budget."""
        return tuple(self._skipped)

    def _claim(self, source: Mapping[str, Any]) -> None:
        """Own the folder, begin the run or go on with it, and find out what it holds."""
        self._writer.open()
        try:
            command = shlex.join(["python", *sys.orig_argv[1:]])
            self._writer.begin_source(
                source, command, total_steps=self._total_steps, labels=self._labels
            )
            self._writer.begin_session(str(self._adapted.device))
        except BaseException:
            self._writer.close()
            raise
        self._stored = self._writer.whole(Kind.KERNEL)

    def _is_new(self, step: int) -> bool:
        """Return whether a step is another one than in the last call."""
        if self._closed:
            raise StoreError("the watch is closed; make a new one to go on in its folder")
        if self._last is not None and step < self._last:
            raise KernelError(
                f"step {step} comes after step {self._last}, but steps must rise; for another "
                f"training make another Watch with another folder as out"
            )
        before, self._last = self._last, step
        self._first = step if self._first is None else self._first
        return step != before

    def _check_weights(self, step: int) -> None:
        """Check that a stored kernel is of this training.

        A session that begins at the folder's first kernel begins a training; if its weights
        differ, it is another one. Later on, a resumed training may not be reproducible.
        """
        if self._adapted.weights() == weights_hash(self._stored[step]):
            return
        message = (
            f"the weights at step {step} are not those whose kernel {self.path} holds; that "
            f"kernel is kept"
        )
        if step == self._first == min(self._stored):
            raise StoreError(f"{message}: this is another training; choose another folder as out")
        warnings.warn(
            f"{message}: resumed training takes another way than the one that was interrupted",
            DamageWarning,
            stacklevel=3,
        )

    def _measure(self, step: int) -> None:
        with undisturbed(self._adapted.module):
            kernel, outputs = self._choice.with_outputs(self._adapted)
        self._note_skipped()
        weights = self._adapted.weights()
        entry = self._writer.write_kernel(step, kernel, outputs, weights=weights)
        if self._on_kernel is not None:
            self._on_kernel(step, self._scalars(step, kernel))
        self._stored[step] = entry

    def _scalars(self, step: int, kernel: Measured) -> dict[str, float]:
        scalars = {"trace": trace_of(kernel)}
        earlier = [before for before in sorted(self._stored) if before < step]
        if earlier:
            first, previous = (
                measured_distance(read_kernel(self._writer.folder, self._stored[before]), kernel)
                for before in (earlier[0], earlier[-1])
            )
            scalars |= {
                "distance_from_first": first,
                "distance_from_previous": previous,
                "velocity": previous / (step - earlier[-1]),
            }
        return scalars

    def _skip(self, step: int) -> None:
        if not self._skipped:
            warnings.warn(
                f"budget={self._pace.share} leaves no time for a kernel at step {step}; such "
                f"steps are skipped from here on, see watch.skipped",
                BudgetWarning,
                stacklevel=3,
            )
        self._skipped.append(step)

    def _note_skipped(self) -> None:
        if fresh := self._skipped[self._noted :]:
            self._writer.skip(fresh, self._pace.share)
        self._noted = len(self._skipped)
