"""Verify a run folder, or an archive of one: compute parts of it again, and compare."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from conescope.argument_types import checked
from conescope.errors import ConescopeError, DamageWarning
from conescope.experiments.archives.importing import import_run
from conescope.experiments.stored import load_run, read_status
from conescope.experiments.verifying.recipe_checks import NoProgress
from conescope.experiments.verifying.run_checks import Request, run_checks
from conescope.experiments.verifying.verdicts import Check, Verdict, Verification
from conescope.report.derived_checks import derived_checks
from conescope.runs.environment import notebook_progress
from conescope.runs.progress import Progress


@checked
def verify(
    path: str | Path,
    *,
    share: float = 0.05,
    seed: int = 0,
    branches: bool = False,
    data: str | None = None,
    device: str | None = None,
    trust_code: bool = False,
) -> Verification:
    """Verify a run: compute kernels, stretches of training and derived numbers again.

    Results are compared bit by bit. Those that were made in another environment (machine,
    versions, threads) may differ by what rounding makes, which is measured.

    Args:
        path: a run folder, or an archive that `conescope export` wrote.
        share: the share of the kernels with a stored state, and of the training's iterations, to
            compute again, in (0, 1].
        seed: decides which.
        branches: whether to verify the run's children in its folder `branches`, too.
        data: where the data set is; None for the place that the recipe names.
        device: where to compute; None for the recipe's device.
        trust_code: whether to run code that the run names by package.module:name.

    Returns:
        All checks; `held` says whether nothing is different.

    Raises:
        StoreError: if there is no run, or the archive is torn, damaged or made to harm.
        RecipeError: if `share` is no share.
    """
    request = Request(share, seed, data, device, trust_code)
    with damage_as_checks():
        progress = notebook_progress() or NoProgress()
        checks = list(checks_of(Path(path), request, progress, branches=branches))
    return Verification(str(path), share, seed, checks)


@contextmanager
def damage_as_checks() -> Iterator[None]:
    """Do not warn of damaged lines inside a `with` block: a check names them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)
        yield


def checks_of(
    path: Path, request: Request, progress: Progress, *, branches: bool = False
) -> Iterator[Check]:
    """Yield the checks of `verify` as they are made.

    Args:
        path: a run folder or an archive.
        request: what to compute again.
        progress: what is told how far it is.
        branches: whether to verify children, too.

    Raises:
        StoreError: see `verify`.
    """
    if os.path.isfile(path):  # which is false for a name that no file can have
        with TemporaryDirectory() as folder:
            unpacked = Path(folder) / "run"
            import_run(path, unpacked, progress)
            yield Check("archive", f"{path.name}, its files and checksums", Verdict.EQUAL)
            yield from checks_of(unpacked, request, progress, branches=branches)
        return
    yield from run_checks(path, request, progress)
    yield from _derived(path)
    if branches:
        for journal in sorted((path / "branches").glob("*/journal.jsonl")):
            child = journal.parent
            for check in checks_of(child, request, progress, branches=True):
                yield replace(check, subject=f"{child.name}: {check.subject}")


def _derived(path: Path) -> Iterator[Check]:
    status = read_status(path)
    if status.running:
        detail = "a process is working on the run, and its report comes later"
        yield Check("derived", "derived numbers", Verdict.UNVERIFIED, detail)
    elif status.kernels:
        try:
            run = load_run(path)
        except (ConescopeError, KeyError) as error:  # KeyError: a file lacks a tensor
            detail = f"the kernels cannot be read: {error}"
            yield Check("derived", "derived numbers", Verdict.UNVERIFIED, detail)
            return
        try:
            yield from derived_checks(run)
        except ConescopeError as error:
            yield Check("derived", "derived numbers", Verdict.DIFFERENT, str(error))
