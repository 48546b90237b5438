"""Audit a series of checkpoints by the fingerprints of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from conescope.argument_types import checked
from conescope.errors import CheckpointError
from conescope.measuring.audit.findings import Audit, Finding, steps_listed
from conescope.measuring.audit.fingerprints import Fingerprint, fingerprint_of
from conescope.measuring.audit.identical import STATISTICS, identical, is_known_buffer
from conescope.measuring.audit.opened_series import AuditedCheckpoint, opened
from conescope.measuring.audit.path_order import out_of_order, squared_distances
from conescope.measuring.audit.stored_fingerprints import StoredFingerprints
from conescope.measuring.audit.structure import (
    differences,
    not_finite,
    spacing,
    usual_structure,
)
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.translation import renamed
from conescope.runs.environment import notebook_progress
from conescope.runs.progress import Progress

_MOVED = 64
"""Numbers of two sketches that have to differ for the distance between them to say something: by
fewer, as where all but one layer rests, paths cross themselves."""


@checked
def audit_checkpoints(
    checkpoints: str | Path | Collection[str | Path],
    *,
    revisions: str | Sequence[str] = (),
    step_pattern: str | None = None,
    steps: Steps | None = None,
    out: str | Path | None = None,
) -> Audit:
    """Find out what is wrong with a series of checkpoints, without a model or a kernel.

    Every tensor of every checkpoint is read once. Found are checkpoints with the same weights,
    parts of one that were served for another, tensors that are missing or of another shape or
    type, NaN, checkpoints off the path of the others or out of order, and missing steps.

    Args:
        checkpoints: a glob, a folder, or files and folders, see
            `conescope.measuring.checkpoints.find_checkpoints`; or `hf://org/name`, whose revisions
            are fetched one at a time.
        revisions: what the names of branches and tags on the Hub have to match, such as `step*`;
            one pattern, or one for each stage of the training.
        step_pattern: see `find_checkpoints`.
        steps: see `find_checkpoints`.
        out: a folder for the fingerprints, from which the same call goes on; None to store nothing.

    Returns:
        What was found; `Audit.alarms` is empty if nothing is wrong.

    Raises:
        CheckpointError: if there is no checkpoint, or a step cannot be told.
        StoreError: if `out` cannot be written.
    """
    patterns = [revisions] if isinstance(revisions, str) else revisions
    folder = None if out is None else Path(out)
    with opened(checkpoints, patterns, step_pattern, steps, folder) as series:
        done = audit(series, folder, progress=notebook_progress())
    assert done is not None
    return done


def audit(
    series: Sequence[AuditedCheckpoint],
    out: Path | None = None,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Audit | None:
    """Audit the checkpoints of an open series.

    Args:
        series: the checkpoints, in the order of their steps; their files are asked for one by one.
        out: a folder for the fingerprints; None to store nothing.
        progress: what is told how many checkpoints are done.
        should_stop: asked before each checkpoint; on true the audit ends.

    Returns:
        What was found; None if it was stopped.

    Raises:
        StoreError: if `out` cannot be written.
    """
    store = None if out is None else StoredFingerprints(out)
    taken: dict[int, Fingerprint] = {}
    findings: list[Finding] = []
    if progress is not None:
        progress.begin("audit", 0, len(series))
    steps = []
    failed: dict[str, list[int]] = {}  # what is wrong, such as a gate, may be so with all
    for done, checkpoint in enumerate(series, start=1):
        if should_stop():
            return None
        steps.append(checkpoint.step)
        try:
            taken[checkpoint.step] = _fingerprint(checkpoint, store)
        except CheckpointError as error:
            failed.setdefault(str(error), []).append(checkpoint.step)
        if progress is not None:
            progress.advance(done)
    for text, where in failed.items():
        findings.append(Finding("unreadable", tuple(where), f"{steps_listed(where)}: {text}"))
    findings += [*spacing(steps), *_findings(taken)]
    findings.sort(key=lambda finding: not finding.is_alarm)
    every = {name: each for one in taken.values() for name, each in one.items()}
    numbers = sum(each.numel for each in every.values() if each.is_real)
    return Audit(tuple(steps), len(every), numbers, tuple(findings))


def _fingerprint(checkpoint: AuditedCheckpoint, store: StoredFingerprints | None) -> Fingerprint:
    known = None if store is None else store.get(checkpoint.name, checkpoint.mark)
    if known is not None:
        return known
    taken = fingerprint_of(checkpoint.files())
    if store is not None:
        store.add(checkpoint.name, checkpoint.mark, taken)
    return taken


def _findings(taken: dict[int, Fingerprint]) -> Iterator[Finding]:
    """Yield what the fingerprints of a series say; step → fingerprint."""
    if not taken:
        return
    usual = usual_structure([*taken.values()])
    steps = [*taken]
    series = [
        one if one.keys() == usual.keys() else dict(renamed(one, usual)) for one in taken.values()
    ]
    yield from differences(steps, series, usual)
    yield from not_finite(steps, series)
    yield from identical(steps, series)
    yield from _order(steps, series, usual)


def _order(
    steps: Sequence[int], series: Sequence[Fingerprint], usual: Fingerprint
) -> Iterator[Finding]:
    """Yield what is out of order: whole checkpoints, then shards of those that are in order."""
    names = [
        name
        for name, each in usual.items()
        if each.is_real and not is_known_buffer(name, each.shape) and not STATISTICS.search(name)
    ]
    found: set[int] = set()
    for finding in _order_of(steps, series, usual, names, "the weights"):
        found |= {*finding.steps}
        yield finding
    shards: dict[str, list[str]] = {}
    for name in names:
        shards.setdefault(usual[name].file, []).append(name)
    for shard, held in shards.items() if len(shards) > 1 else ():
        for finding in _order_of(steps, series, usual, held, f"the weights in {shard}"):
            if not found & {*finding.steps}:
                yield finding


def _order_of(
    steps: Sequence[int],
    series: Sequence[Fingerprint],
    usual: Fingerprint,
    names: Sequence[str],
    what: str,
) -> Iterator[Finding]:
    """Yield what is out of order, by the tensors of some names, among checkpoints that have all."""
    if not names:
        return
    whole = [
        index
        for index, one in enumerate(series)
        if all(
            name in one and one[name].shape == usual[name].shape and not one[name].not_finite
            for name in names
        )
    ]
    points = np.array([np.concatenate([series[k][n].sketch for n in names]) for k in whole])
    apart: list[int] = []  # without doubles, and what moves in a few numbers only
    for at, point in enumerate(points):
        if all((point != points[other]).sum() >= _MOVED for other in apart):
            apart.append(at)
    chosen = [steps[whole[at]] for at in apart]
    yield from out_of_order(chosen, squared_distances(points[apart]), what)
