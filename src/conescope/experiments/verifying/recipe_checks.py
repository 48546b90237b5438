"""Checks of a recipe's run: kernels, evaluations and stretches of its training made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from conescope.errors import ConescopeError, StoreError
from conescope.experiments.verifying.differences import Difference, difference
from conescope.experiments.verifying.recorded import RecordedEnvironments
from conescope.experiments.verifying.results import FACTOR, Result, about_floor
from conescope.experiments.verifying.retraining import Retraining
from conescope.experiments.verifying.stretches import (
    Stretch,
    choose_kernels,
    choose_stretches,
)
from conescope.experiments.verifying.verdicts import Check, Verdict
from conescope.runs.contents import KERNEL_FOLDERS
from conescope.runs.environment import describe
from conescope.runs.journal import Kind
from conescope.runs.progress import Progress

_UNFIT = (KeyError, ValueError, TypeError, IndexError, RuntimeError)
"""What torch raises of an optimiser's state that is not of the recipe's optimiser."""

_GROUPS: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.KERNEL: "kernels",
        Kind.AVERAGED_KERNEL: "kernels",
        Kind.EVALUATION: "evaluations",
        Kind.SNAPSHOT: "training",
        Kind.DIVERGED: "training",
    }
)
_NAMES: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.KERNEL: "kernel",
        Kind.AVERAGED_KERNEL: "kernel of the averaged weights",
        Kind.EVALUATION: "loss and accuracy",
        Kind.DIVERGED: "divergence",
    }
)


@dataclass(frozen=True)
class _Unequal:
    """A result that does not come out as the same bits, in another environment."""

    kind: Kind
    step: int
    found: Result
    difference: Difference
    environment: str


class RecipeChecks:
    """The checks of a run's kernels, evaluations and training.

    Args:
        retraining: the run's training, made again.
        share: the share of kernels, and of iterations, to compute again.
        seed: decides which.
        progress: what is told how far it is.
    """

    def __init__(self, retraining: Retraining, share: float, seed: int, progress: Progress) -> None:
        self._retraining, self._progress = retraining, progress
        self._recorded = RecordedEnvironments(retraining.folder)
        self._here = describe(retraining.experiment.recipe.device)
        states, results = retraining.states, retraining.results
        stored = {step for kind in results for step in results[kind]}
        stored |= {step + 1 for step in results[Kind.DIVERGED]}
        kernels = {step for kind in KERNEL_FOLDERS for step in results[kind]}
        first = Stretch(states[0], states[0])
        at_states = choose_kernels(states, kernels, share, seed)
        self.trained = choose_stretches(states, stored, share, seed)
        self.stretches = [first, *(s for s in at_states if s != first), *self.trained]

    def __iter__(self) -> Iterator[Check]:
        """Yield the checks, and a reason for each group of which nothing can be checked."""
        length = len(self.stretches) + sum(s.stop - s.start for s in self.trained)
        done = 0
        self._progress.begin("verifying", 0, length)
        for stretch in self.stretches:
            try:
                yield from self._checks(stretch, _Shifted(self._progress, done - stretch.start))
            except (ConescopeError, *_UNFIT) as error:
                subject = f"training from iteration {stretch.start:,} to {stretch.stop:,}"
                detail = f"the recipe does not go on from the stored state: {error}"
                yield Check("training", subject, Verdict.DIFFERENT, detail)
            done += 1 + stretch.stop - stretch.start
            self._progress.advance(done)
        states, end = self._retraining.states, max(self._retraining.results[Kind.KERNEL], default=0)
        if not self.trained and end > states[0]:
            yield Check(
                "training",
                f"training from iteration {states[0]:,} to {end:,}",
                Verdict.UNVERIFIED,
                "nothing is stored near enough after a known state for this share; a larger "
                "--share trains further, and snapshots.keep keeps more states",
            )

    def _checks(self, stretch: Stretch, progress: Progress) -> Iterator[Check]:
        unequal, diverges = [], False
        for kind, step, found in self._retraining.follow(stretch, progress):
            diverges = diverges or kind == Kind.DIVERGED
            differs = self._difference(kind, step, found)
            changed = self._changed(stretch, kind, step) if differs else []
            if differs is None:
                yield _check(kind, step, stretch, Verdict.EQUAL)
            elif changed:
                unequal.append(_Unequal(kind, step, found, differs, ", ".join(changed)))
            else:
                yield _check(kind, step, stretch, Verdict.DIFFERENT, str(differs))
        if unequal:
            yield from self._within_floor(stretch, unequal)
        stored = self._retraining.results[Kind.DIVERGED]
        if not diverges and any(stretch.start <= step < stretch.stop for step in stored):
            step = min(stored)
            detail = "the training goes on here, and the journal says that it diverged"
            yield _check(Kind.DIVERGED, step, stretch, Verdict.DIFFERENT, detail)

    def _within_floor(self, stretch: Stretch, unequal: list[_Unequal]) -> Iterator[Check]:
        """Compare results of another environment with how far rounding carries them here."""
        wanted = {(one.kind, one.step): one for one in unequal}
        floors = dict.fromkeys(wanted, 0.0)
        for kind, step, shaken in self._retraining.follow(stretch, NoProgress(), shaken=True):
            if (kind, step) in wanted:
                moved = difference(shaken.tensors, wanted[kind, step].found.tensors)
                floors[kind, step] = moved.size if moved else 0.0
        unit = torch.finfo(getattr(torch, self._retraining.experiment.recipe.dtype)).eps
        for place, one in wanted.items():
            floor = max(floors[place], unit)
            size = self._size(one)
            detail = about_floor(size, floor, one.environment)
            if size <= FACTOR * floor:
                check = _check(one.kind, one.step, stretch, Verdict.FLOOR, detail)
                yield replace(check, size=size)
            else:
                detail = f"{one.difference.text}; {detail}"
                yield _check(one.kind, one.step, stretch, Verdict.DIFFERENT, detail)

    def _difference(self, kind: Kind, step: int, found: Result) -> Difference | None:
        if step not in self._retraining.results[kind]:
            return Difference(float("inf"), f"the training diverges here: {found.texts['reason']}")
        try:
            stored = self._retraining.stored(kind, step)
        except StoreError as error:
            return Difference(float("inf"), str(error))
        return stored.difference(found)

    def _size(self, one: _Unequal) -> float:
        """Return a difference's size; an accuracy may be off by one sample, which lies on a tie."""
        if one.kind != Kind.EVALUATION:
            return one.difference.size
        stored = dict(self._retraining.stored(one.kind, one.step).tensors)
        for name, size in self._retraining.experiment.evaluated.items():
            accuracy, found = f"{name}_accuracy", one.found.tensors
            if accuracy in stored and abs(stored[accuracy] - found[accuracy]) < 1.5 / size:
                stored[accuracy] = found[accuracy]
        left = difference(stored, one.found.tensors)
        return left.size if left else 0.0

    def _changed(self, stretch: Stretch, kind: Kind, step: int) -> list[str]:
        first = None
        if stretch.start != self._retraining.states[0]:
            first = (Kind.SNAPSHOT, stretch.start)
        return self._recorded.differing(self._here, first, (kind, step))


class _Shifted:
    """Progress over several stretches: an iteration counts from where its stretch began."""

    def __init__(self, progress: Progress, shift: int) -> None:
        self._progress, self._shift = progress, shift

    def begin(self, name: str, step: int, total: int) -> None:
        self._progress.begin(name, step + self._shift, total)

    def advance(self, step: int) -> None:
        self._progress.advance(step + self._shift)


class NoProgress:
    """An object that takes note of no progress, where nobody watches."""

    def begin(self, name: str, step: int, total: int) -> None:
        """Do nothing."""

    def advance(self, step: int) -> None:
        """Do nothing."""


def _check(kind: Kind, step: int, stretch: Stretch, verdict: Verdict, detail: str = "") -> Check:
    if kind == Kind.SNAPSHOT and step == stretch.start:
        subject = f"state at iteration {step:,}, from its seed or origin"
    elif kind == Kind.SNAPSHOT:
        subject = f"training from iteration {stretch.start:,} to {step:,}"
    else:
        subject = f"{_NAMES[kind]} at iteration {step:,}"
    return Check(_GROUPS[kind], subject, verdict, detail)
