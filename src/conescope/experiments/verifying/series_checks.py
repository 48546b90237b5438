"""Checks of a measured series: kernels of checkpoints, or of a run's snapshots, computed again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from conescope.errors import ConescopeError
from conescope.experiments.verifying.recorded import RecordedEnvironments
from conescope.experiments.verifying.results import (
    FACTOR,
    Result,
    about_floor,
    kernel_result,
    one_unit_off,
    stored_result,
)
from conescope.experiments.verifying.verdicts import Check, Verdict
from conescope.measuring.adapt import Adapted
from conescope.measuring.checkpoints.loading import fingerprint
from conescope.measuring.checkpoints.subject import Subject
from conescope.measuring.choice import Choice
from conescope.runs.contents import by_step, weights_hash
from conescope.runs.environment import describe
from conescope.runs.journal import Entry, Kind
from conescope.runs.progress import Progress
from conescope.runs.store import Folder

_MAY_DIFFER = ("name", "description", "loss")


class SeriesChecks:
    """The checks of the kernels of a series that `conescope measure` made.

    Args:
        folder: the run folder.
        subject: the model, the probe and the checkpoints, as in the measurement.
        choice: which kernel was measured.
        share: the share of kernels to compute again, in (0, 1].
        seed: decides which.
        progress: what is told how far it is.
    """

    def __init__(
        self,
        folder: Folder,
        subject: Subject,
        choice: Choice,
        share: float,
        seed: int,
        progress: Progress,
    ) -> None:
        self._folder, self._subject, self._choice = folder, subject, choice
        self._progress = progress
        self._adapted: Adapted = choice.adapt(subject.model, subject.probe)
        self._recorded = RecordedEnvironments(folder)
        stored = {s: e for s, e in by_step(folder, Kind.KERNEL).items() if folder.is_whole(e)}
        self._gone = sorted(stored.keys() - subject.paths.keys())
        self._stored = {step: stored[step] for step in sorted(stored) if step in subject.paths}
        count = math.ceil(share * len(self._stored))
        self._chosen = sorted(random.Random(f"series {seed}").sample([*self._stored], count))

    def __iter__(self) -> Iterator[Check]:
        """Yield the checks."""
        yield from self._source_checks()
        if self._gone:
            shown = ", ".join(f"{step:,}" for step in self._gone[:5])
            yield Check(
                "kernels",
                f"{len(self._gone):,} kernels, first at iteration {shown}",
                Verdict.UNVERIFIED,
                "their checkpoints are gone",
            )
        if not self._chosen:
            return
        threads = self._recorded.threads or torch.get_num_threads()
        with self._subject.computing(), _on_threads(threads):
            self._adapted.check()
            self._subject.load(min(self._subject.paths))
            # the engine chooses its routes once, by these weights
            self._choice.of(self._adapted, self._subject.preconditioner)
            self._progress.begin("verifying", 0, len(self._chosen))
            for done, step in enumerate(self._chosen, start=1):
                yield self._check(step, self._stored[step])
                self._progress.advance(done)

    def _source_checks(self) -> Iterator[Check]:
        """Compare what was measured, such as the probe, with what is here."""
        held = self._folder.entries(Kind.RUN)[0].values.get("source", {})
        here = {
            **self._subject.source, **self._adapted.description(), **self._choice.description(),
        }  # fmt: skip
        changed = [n for n in here if n not in _MAY_DIFFER and held.get(n) != here[n]]
        for name in changed:
            detail = f"it was {held.get(name)!r}, and is {here[name]!r}"
            yield Check("source", name, Verdict.DIFFERENT, detail)
        if not changed:
            yield Check("source", "model, parameters and probe", Verdict.EQUAL)

    def _check(self, step: int, entry: Entry) -> Check:
        subject = f"kernel at iteration {step:,}"
        try:
            self._subject.load(step)
            if weights_hash(entry) != fingerprint(self._subject.model):
                detail = f"{self._subject.paths[step]} has changed since it was measured"
                return Check("kernels", subject, Verdict.DIFFERENT, detail)
            found = self._measured(entry)
            stored = stored_result(self._folder, entry)
            differs = stored.difference(found)
            if differs is None:
                return Check("kernels", subject, Verdict.EQUAL)
            here = describe(str(self._adapted.device))
            place = (Kind.KERNEL, step)
            changed = self._recorded.differing(here, place, place)
            if not changed:
                return Check("kernels", subject, Verdict.DIFFERENT, str(differs))
            floor = self._floor(found, entry)
        except ConescopeError as error:
            return Check("kernels", subject, Verdict.DIFFERENT, str(error))
        detail = about_floor(differs.size, floor, ", ".join(changed))
        if differs.size <= FACTOR * floor:
            return Check("kernels", subject, Verdict.FLOOR, detail, differs.size)
        return Check("kernels", subject, Verdict.DIFFERENT, f"{differs.text}; {detail}")

    def _measured(self, entry: Entry) -> Result:
        preconditioner = self._subject.preconditioner
        measured = self._choice.with_outputs(self._adapted, preconditioner)
        return kernel_result(*measured, entry)

    def _floor(self, found: Result, entry: Entry) -> float:
        """Return how far one rounding of the weights carries the kernel; at least one rounding."""
        generator = torch.Generator().manual_seed(0)
        parameters = [self._adapted.module.get_parameter(name) for name in self._adapted.params]
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(one_unit_off(parameter, generator))
        moved = found.difference(self._measured(entry))
        unit = max(torch.finfo(parameter.dtype).eps for parameter in parameters)
        return max(moved.size if moved else 0.0, unit)


@contextmanager
def _on_threads(count: int) -> Iterator[None]:
    """Compute on a number of threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
