"""Verify a run folder: everything that can be checked without its figures and report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from conescope.errors import ConescopeError, RecipeError
from conescope.experiments.archives.layout import left_out_of
from conescope.experiments.stored import read_recipe
from conescope.experiments.verifying.differences import difference
from conescope.experiments.verifying.folder_checks import (
    absence_checks,
    file_checks,
    open_folder,
    recipe_check,
)
from conescope.experiments.verifying.recipe_checks import RecipeChecks
from conescope.experiments.verifying.recorded import RecordedEnvironments
from conescope.experiments.verifying.retraining import Retraining
from conescope.experiments.verifying.series_checks import SeriesChecks
from conescope.experiments.verifying.verdicts import Check, Verdict
from conescope.measuring.checkpoints.subject import Subject
from conescope.measuring.choice import Choice
from conescope.runs.environment import reproducible
from conescope.runs.journal import Kind
from conescope.runs.progress import Progress
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.training.recipe import PARTS, Recipe

Rebuild = Callable[[str], tuple[Subject, Choice]]
"""From the command that measured a series to what it measured."""


@dataclass(frozen=True)
class Request:
    """What to verify of a run, and how.

    Attributes:
        share: the share of kernels, and of iterations of training, to compute again, in (0, 1].
        seed: decides which.
        data: where the data set is; None for the place that the recipe names.
        device: where to compute; None for the recipe's device.
        trusts_code: whether code that the run names by package.module:name may be run.
        rebuild: gives model, probe, checkpoints and choice of a series again, from the command
            that measured it; None if a series cannot be measured again.

    Raises:
        RecipeError: if the share is none.
    """

    share: float = 0.05
    seed: int = 0
    data: str | None = None
    device: str | None = None
    trusts_code: bool = False
    rebuild: Rebuild | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError(f"share is above 0 and at most 1, such as 0.05, not {self.share}")


def run_checks(path: Path, request: Request, progress: Progress) -> Iterator[Check]:
    """Verify a run folder, and yield a check for each result.

    Args:
        path: the run folder.
        request: what to compute again.
        progress: what is told how far it is.

    Raises:
        StoreError: if the folder holds no run, or its journal cannot be read.
        RecipeError: if its recipe is none.
    """
    folder, checks = open_folder(path)
    yield from checks
    running = folder.is_owned()
    yield from file_checks(folder, left_out_of(path), running=running)
    if running:
        yield Check(
            "journal", "what comes later", Verdict.UNVERIFIED, "a process is working on the run"
        )
    if "recipe" not in folder.entries(Kind.RUN)[0].values:
        yield from _series_checks(folder, request, progress)
        return
    recipe = read_recipe(path)
    yield recipe_check(folder, recipe)
    yield from _recipe_checks(folder, recipe, request, progress)


def _recipe_checks(
    folder: Folder, recipe: Recipe, request: Request, progress: Progress
) -> Iterator[Check]:
    names = [getattr(recipe, section).name for section in PARTS]
    if (own := [name for name in names if ":" in name]) and not request.trusts_code:
        yield _nothing(
            f"the recipe names {' and '.join(own)}, code that a run of it runs; if you know what "
            f"it does, let it run by --trust-code"
        )
        return
    recorded = RecordedEnvironments(folder)
    with reproducible(recipe.device, recipe.threads or recorded.threads):
        try:
            retraining = Retraining(folder, _placed(recipe, request))
        except ConescopeError as error:
            yield _nothing(str(error))
            return
        experiment = retraining.experiment
        for name in recorded.changed_code(experiment.code):
            yield Check(
                "code", f"code of {name}", Verdict.DIFFERENT, "its file has changed since the run"
            )
        averages = bool(recipe.training.average)
        yield from absence_checks(folder, experiment.moments, averages=averages)
        if recipe.branch.run is not None:
            yield _origin_check(folder, recipe)
        yield from RecipeChecks(retraining, request.share, request.seed, progress)


def _series_checks(folder: Folder, request: Request, progress: Progress) -> Iterator[Check]:
    command = str(folder.entries(Kind.RUN)[0].values.get("command"))
    if request.rebuild is None or not command.startswith("conescope measure "):
        yield _nothing(
            "the weights are not in the folder, and what measured them was Python code: "
            f"{command[:200]}; so only what follows from the stored kernels is verified"
        )
        return
    if not request.trusts_code:
        yield _nothing(
            f"they can be measured again by {command!r}, which reads the files and runs the code "
            f"that it names; if you know them, let it by --trust-code"
        )
        return
    try:
        subject, choice = request.rebuild(command)
        checks = SeriesChecks(folder, subject, choice, request.share, request.seed, progress)
    except ConescopeError as error:
        yield _nothing(f"{command!r} cannot be made again here: {error}")
        return
    yield from checks


def _placed(recipe: Recipe, request: Request) -> Recipe:
    data = recipe.data if request.data is None else replace(recipe.data, path=request.data)
    return replace(recipe, data=data, device=request.device or recipe.device)


def _origin_check(folder: Folder, recipe: Recipe) -> Check:
    """Compare a branch's own copy of its origin with its parent's snapshot, if that is here."""
    subject, branch = "origin.safetensors", recipe.branch
    own = read_snapshot(folder, folder.files(Kind.ORIGIN)[-1])
    for parent in (folder.path.resolve().parent.parent, Path(branch.run or "")):
        try:
            if read_recipe(parent).id != branch.parent:
                continue
            held = read_snapshot(Folder(parent), find_snapshot(Folder(parent), branch.at))
        except ConescopeError:
            continue
        found = difference(own.tensors(), held.without_linearization().tensors())
        verdict = Verdict.EQUAL if found is None else Verdict.DIFFERENT
        subject += f", iteration {branch.at:,} of {parent}"
        return Check("origin", subject, verdict, found.text if found else "")
    detail = f"iteration {branch.at:,} of {branch.parent} is not in {branch.run}"
    return Check("origin", subject, Verdict.UNVERIFIED, detail)


def _nothing(reason: str) -> Check:
    return Check("kernels", "kernels, evaluations and training", Verdict.UNVERIFIED, reason)
