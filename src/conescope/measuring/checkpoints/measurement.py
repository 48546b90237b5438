"""Measuring a series of checkpoints into a run folder."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from conescope.engine import KernelEstimate
from conescope.errors import CheckpointError, KernelError, ModelError, SameWeightsWarning
from conescope.kernel.matrix import Outputs
from conescope.measuring.adapt import Adapted, Pool, Select
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.loading import fingerprint
from conescope.measuring.checkpoints.subject import Checkpoints, Subject
from conescope.measuring.choice import Choice
from conescope.measuring.probe import Probe
from conescope.runs.progress import Progress
from conescope.runs.reader import Run, is_finished, read_run, seconds_spent, write_kernel
from conescope.runs.record import begin_session, begin_source
from conescope.runs.store import Folder
from conescope.runs.user_code import build_model


def measure_checkpoints(
    build: Callable[[], nn.Module] | nn.Module,
    checkpoints: str | Path | Collection[str | Path],
    probe: Probe,
    *,
    out: str | Path,
    labels: Tensor | Sequence[int] | None = None,
    step_pattern: str | None = None,
    steps: Steps | None = None,
    outputs: Outputs = "trace",
    draws: int | None = None,
    select: Select | None = None,
    pool: Pool | None = None,
    params: str | Iterable[str] | None = None,
    by_layer: bool = False,
    memory: str | float | None = None,
) -> Run:
    r"""Measure the kernel of each of a series of checkpoints.

    What is stored in `out` already is not measured again, so a series can grow.

    Args:
        build: what returns the model, on its device; or the model, which is copied.
        checkpoints: a glob such as `ckpts/*.safetensors`, a folder, or files and folders, see
            `conescope.measuring.checkpoints.find_checkpoints`.
        probe: the model's inputs for n samples: a tensor, several by place, or several by name.
        out: the run folder to write.
        labels: [n], the samples' classes as whole numbers; they may be given later, by the same
            call. None if there are none.
        step_pattern: a regular expression whose one group is the step in a name: `ckpt_(\d+)`.
        steps: the steps, where names give none: a list in the checkpoints' order, name → step, a
            function of the path, or a CSV file, see `find_checkpoints`.
        outputs: which outputs enter the kernel, see `Kernel.outputs`.
        draws: number of random cotangents that estimate the class trace; None for the exact one.
        select: from what the model returns to its outputs: a function, or a field's name or
            number. By default a tensor is taken as it is, and of anything else its "logits".
        pool: for outputs [n, T, …] of T tokens: "last" or "mean".
        params: names or patterns of parameters or modules; None for all that are not frozen.
        by_layer: whether to store the summand of each layer, too.
        memory: what the engine may use beside the model and the result, such as "2GB".

    Returns:
        The run, as `load_run` gives it.

    Raises:
        CheckpointError: if a checkpoint cannot be read, does not fit, or has changed since.
        ModelError: if the model or the probe has no exact kernel as it stands.
        DataError: if the labels are no classes, or not as many as samples.
        KernelError: if the choice of the kernel is wrong, or a kernel is not finite.
        StoreError: if `out` holds something else, or cannot be written.

    Warns:
        SameWeightsWarning: if two checkpoints hold the same weights.
    """
    model = build_model(copy.deepcopy(build) if isinstance(build, nn.Module) else build, "build")
    name = getattr(build, "__qualname__", type(model).__name__)
    subject = Checkpoints(model, name, probe, checkpoints, step_pattern, labels, steps)
    choice = Choice(outputs, draws, select, pool, params, by_layer, memory)
    measure(subject, choice, Path(out), command=f"conescope.measure_checkpoints({name}, …)")
    return read_run(out)


def measure(
    subject: Subject,
    choice: Choice,
    path: Path,
    *,
    command: str,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Measure whatever is not stored yet.

    Args:
        subject: the model and its past.
        choice: which kernel.
        path: the run folder; made if need be.
        command: what makes this run, for the record.
        progress: who is told how many moments are done.
        should_stop: asked between two moments.

    Returns:
        Whether all is measured.

    Raises:
        ConescopeError: see `measure_checkpoints`; what was stored before stays, and the same call
            goes on from there.
    """
    adapted = choice.adapt(subject.model, subject.probe)
    adapted.check()
    subject.check()
    folder = Folder(path)
    with folder.owned(), subject.computing():
        series = _Series(folder, subject, adapted, choice, command)
        if progress is not None:
            progress.begin(path.name, 0, len(subject.paths))
        for done, step in enumerate(subject.paths, start=1):
            if should_stop():
                return False
            series.measure(step)
            if progress is not None:
                progress.advance(done)
        series.finish()
    return True


class _Series:
    """The kernels of a run folder, and of which weights they are."""

    def __init__(
        self, folder: Folder, subject: Subject, adapted: Adapted, choice: Choice, command: str
    ) -> None:
        self._folder, self._subject, self._adapted = folder, subject, adapted
        self._choice, self._command = choice, command
        self._seen: dict[str, Path] = {}
        self._spent, self._begun = seconds_spent(folder), time.monotonic()
        self._has_session = False
        if folder.entries("run"):
            self._begin_session()
        self._stored = {
            entry.values["step"]: entry.values["weights"]
            for entry in folder.files("kernel")
            if folder.is_whole(entry)
        }

    def measure(self, step: int) -> None:
        """Measure and store the kernel of a step, unless it is there."""
        path = self._subject.paths[step]
        self._subject.load(step)
        weights = fingerprint(self._subject.model)
        self._tell_same(weights, path)
        if (stored := self._stored.get(step)) is not None:
            if stored != weights:
                raise CheckpointError(
                    f"{path} has changed since its kernel was stored in {self._folder.path}; "
                    f"choose another folder as out"
                )
            return
        try:
            kernel = self._choice.of(self._adapted)
            (kernel.kernel if isinstance(kernel, KernelEstimate) else kernel).check_usable()
        except (ModelError, KernelError) as error:
            raise type(error)(f"{path}: {error}") from error
        if not self._has_session:  # a choice that fails at once leaves no run behind
            self._begin_session()
        write_kernel(self._folder, step, kernel, self._seconds(), weights=weights)

    def _begin_session(self) -> None:
        source = {
            "name": self._folder.path.resolve().name,
            **self._subject.source,
            **self._adapted.description(),
            **self._choice.description(),
        }
        begin_source(self._folder, source, self._command, labels=self._subject.labels)
        begin_session(self._folder, str(self._adapted.device))
        self._has_session = True

    def finish(self) -> None:
        """Note that all is measured."""
        if not is_finished(self._folder):
            self._folder.append("finished", seconds=self._seconds())

    def _tell_same(self, weights: str, path: Path) -> None:
        other = self._seen.setdefault(weights, path)
        if other != path:
            warnings.warn(
                f"{other} and {path} hold the same weights: S = 0 between them says nothing about "
                f"the training",
                SameWeightsWarning,
                stacklevel=5,
            )

    def _seconds(self) -> float:
        return round(self._spent + time.monotonic() - self._begun, 3)
