"""What the sections of a run's analysis share: the run, and what is expensive to compute.

Every such value is computed when a section first asks for it, and then kept. Command line, figures
and report walk over the same sections of one analysis, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from conescope.errors import DataError, KernelError
from conescope.report.plot import Mark
from conescope.report.stage_marks import stage_marks
from conescope.runs.reader import Run
from conescope.statistics.cone import Cone, cone
from conescope.statistics.cone.phases import MINIMUM
from conescope.statistics.cone.verdict import ENOUGH
from conescope.statistics.spectrum import SpectrumSeries, spectra
from conescope.training.data.dataset import Split, is_at_hand
from conescope.training.data.sampling import choose_probe, load_chosen
from conescope.training.recipe import Recipe

_GRADUAL = 2
"""The number of falls in a row from which on the learning rate decays gradually."""


@dataclass(frozen=True)
class Stretch:
    """A part of a training at one learning rate, or while it changes gradually.

    Attributes:
        rate: the learning rate at its end; NaN if it was not recorded.
        first: iteration of the evaluation that first saw it; 0 for the first.
        last: iteration of the evaluation that last saw it, or of the last kernel. Between
            the two evaluations that a drop lies between, no kernel counts.
        kernels: the number of kernels in it.
    """

    rate: float
    first: int
    last: int
    kernels: int


@dataclass(frozen=True)
class RunAnalysis:
    """A run, and values of it that several sections read.

    Attributes:
        run: finished or not.
        labels: [n], the classes of the probe's samples; None if they are not known.
        inputs: [n, …], the probe's samples; None if they are not at hand.
    """

    run: Run
    labels: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def bytes_are_text(self) -> bool:
        """Whether token ids are the bytes of a text."""
        recipe = self.run.recipe
        return isinstance(recipe, Recipe) and recipe.data.name == "text"

    @cached_property
    def stretches(self) -> Sequence[Stretch]:
        """The parts of the run between drops of its learning rate, as its evaluations saw them."""
        steps, rates = (np.asarray(self.run.scalars[name]) for name in ("step", "learning_rate"))
        kernels = np.array(self.run.series.steps)
        begins = [0, *(_drops(rates) + 1).tolist()]
        found = []
        for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
            first = int(steps[begin]) if begin > 0 else 0
            last = int(steps[end - 1]) if end < len(steps) else int(kernels[-1])
            rate = float(rates[end - 1]) if len(rates) else float("nan")
            count = int(np.count_nonzero((first <= kernels) & (kernels <= last)))
            found.append(Stretch(rate, first, last, count))
        return found

    @cached_property
    def main_stretch(self) -> Stretch:
        """The first stretch with enough kernels for a verdict; the longest if none has them."""
        return max(self.stretches, key=lambda part: min(part.kernels, ENOUGH))

    @cached_property
    def cone(self) -> Cone:
        """The motion of the kernel in the main stretch.

        Raises:
            KernelError: if it has fewer than ten kernels, some are identical or hold NaN.
        """
        return self._cone_in(self.main_stretch)

    @cached_property
    def cones(self) -> Sequence[Cone | None]:
        """The motion in each stretch; None for one of fewer than ten kernels.

        Raises:
            KernelError: if some kernels are identical or hold NaN.
        """
        return [
            None
            if part.kernels < MINIMUM
            else self.cone
            if part is self.main_stretch
            else self._cone_in(part)
            for part in self.stretches
        ]

    @property
    def cone_if_any(self) -> Cone | None:
        """The motion of the kernel in the main stretch; None where it cannot be told."""
        try:
            return self.cone
        except KernelError:
            return None

    @cached_property
    def spectra(self) -> SpectrumSeries:
        """The eigenvalues over training.

        Raises:
            KernelError: if a kernel is zero or holds NaN.
        """
        return spectra(self.run.series.steps, self.run.series.kernels)

    @property
    def moments(self) -> list[Mark]:
        """The phase boundary if any, drops of the learning rate and begins of stages, as marks."""
        found = self.cone_if_any
        marks = []
        if found is not None and found.boundary is not None:
            t = found.boundary
            marks.append(Mark("phase boundary *t**", "x", t.value, t.low, t.high))
        for stretch in self.stretches[1:]:
            t = stretch.first
            marks.append(Mark(f"drop to *η* = {stretch.rate:g}", "x", t, t, t, style="dashed"))
        return marks + stage_marks(self.run.stages)

    def _cone_in(self, part: Stretch) -> Cone:
        return cone(self.run.series, span=(part.first, part.last))


def _drops(rates: np.ndarray) -> np.ndarray:
    """Return the places of evaluations after which the learning rate drops, of rates [E].

    Where it falls between several evaluations in a row, as by a cosine, it decays gradually, and
    there is no drop.
    """
    places = np.flatnonzero(np.diff(rates) < 0)
    rows = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return np.concatenate([row for row in rows if len(row) < _GRADUAL] or [places[:0]])


def analyse(run: Run) -> RunAnalysis:
    """Return the analysis of a run, with its probe's samples and labels as far as they are known.

    Labels are those that the run stores, or else those of the recipe's data. Nothing is downloaded.
    """
    probe = _probe_at_hand(run)
    if probe is None:
        return RunAnalysis(run, run.labels)
    labels = probe.last_labels if run.labels is None else run.labels
    return RunAnalysis(run, labels, probe.inputs)


def _probe_at_hand(run: Run) -> Split | None:
    """Return the probe's samples from the recipe's data; None if these are not at hand."""
    recipe = run.recipe
    if not isinstance(recipe, Recipe) or not is_at_hand(recipe.data):
        return None
    try:
        data = load_chosen(recipe.data, recipe.seed)
    except DataError:
        return None
    split = data.split(recipe.probe.split)
    chosen = choose_probe(split, recipe.probe, data.classes, recipe.seed)
    return Split(split.inputs[chosen], split.labels[chosen])
