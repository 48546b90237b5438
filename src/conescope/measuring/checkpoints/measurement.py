"""Measure the kernels of a series of checkpoints into a run folder."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from conescope.argument_types import checked
from conescope.engine.tracing.forward import FORWARD_ERRORS, describe_failure
from conescope.errors import (
    CheckpointError,
    KernelError,
    ModelError,
    SameWeightsWarning,
    SkippedWarning,
)
from conescope.kernel.matrix import Outputs
from conescope.measuring.adapt import Adapted, Pool, Select
from conescope.measuring.checkpoints.equal_tensors import SeenTensors, parameter_digests
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.loading import fingerprint
from conescope.measuring.checkpoints.subject import Checkpoints, Subject
from conescope.measuring.choice import Choice
from conescope.measuring.probe import Probe
from conescope.runs.contents import weights_hash
from conescope.runs.environment import notebook_progress
from conescope.runs.journal import Kind
from conescope.runs.progress import Progress
from conescope.runs.reader import Run, read_run
from conescope.runs.user_code import build_model
from conescope.runs.writer import RunWriter


@checked
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
    projection: int | None = None,
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
        checkpoints: a glob, a folder, or files and folders, see `measuring.checkpoints`.
        probe: the model's inputs for n samples: a tensor, several by place, or several by name.
        out: the run folder to write.
        labels: [n], the samples' classes as whole numbers, or None; the same call may add them.
        step_pattern: a regular expression whose one group is the step in a name: `ckpt_(\d+)`.
        steps: the steps, where names give none: a list in the checkpoints' order, name → step, a
            function of the path, or a CSV file, see `find_checkpoints`.
        outputs: which outputs enter the kernel, see `Kernel.outputs`.
        draws: number of random cotangents that estimate the class trace; None for the exact one.
        projection: number of dimensions, a multiple of 8, of a projection that estimates it.
        select: see `conescope.measuring.adapt.adapt`.
        pool: see `conescope.measuring.adapt.adapt`.
        params: names or patterns of parameters or modules; None for all that are not frozen.
        by_layer: whether to store the summand of each layer, too.
        memory: as for `conescope.entk`.

    Returns:
        The run, as `load_run` gives it.

    Raises:
        CheckpointError: if a checkpoint cannot be read, does not fit, or has changed since.
        ModelError: if the model or the probe has no exact kernel as it stands.
        DataError: if the labels are no classes, or not as many as samples.
        KernelError: if the choice of the kernel is wrong, or a kernel is not finite.
        StoreError: if `out` holds something else, or cannot be written.

    Warns:
        SameWeightsWarning: if two checkpoints hold the same weights, or mostly the same.
    """
    model = build_model(copy.deepcopy(build) if isinstance(build, nn.Module) else build, "build")
    name = getattr(build, "__qualname__", type(model).__name__)
    subject = Checkpoints(model, name, probe, checkpoints, step_pattern, labels, steps)
    choice = Choice(outputs, draws, select, pool, params, by_layer, memory, projection)
    command = f"conescope.measure_checkpoints({name}, …)"
    measure(subject, choice, Path(out), command=command, progress=notebook_progress())
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
    """Measure the kernels that are not stored yet.

    Args:
        subject: the model, its probe, and the steps whose weights it can take on.
        choice: which kernel.
        path: the run folder; made if need be.
        command: what makes this run, for the record.
        progress: what is told how many steps are measured.
        should_stop: asked between two steps; on true the measurement ends.

    Returns:
        Whether all is measured.

    Raises:
        ConescopeError: see `measure_checkpoints`; what was stored before stays, and the same call
            goes on from there.
    """
    adapted = choice.adapt(subject.model, subject.probe)
    with _own_backward_told(subject.model):
        adapted.check()
    subject.check()
    with RunWriter(path) as writer, _nothing_left(writer), subject.computing():
        series = _Series(writer, subject, adapted, choice, command)
        if progress is not None:
            progress.begin(path.name, 0, len(subject.paths))
        for done, step in enumerate(subject.paths, start=1):
            if should_stop():
                return False
            try:
                series.measure(step)
            except (CheckpointError, KernelError) as error:
                if not subject.skips_failed:
                    raise
                warnings.warn(f"left out: {error}", SkippedWarning, stacklevel=2)
            if progress is not None:
                progress.advance(done)
        series.finish()
    return True


@contextmanager
def _nothing_left(writer: RunWriter) -> Iterator[None]:
    """Delete the lock of a run folder in which nothing was stored, while it is owned."""
    try:
        yield
    finally:
        if not writer.has_begun:
            with suppress(OSError):
                (writer.path / "lock").unlink(missing_ok=True)
                writer.path.rmdir()


@contextmanager
def _own_backward_told(model: nn.Module) -> Iterator[None]:
    """Turn what the code of a model raises in its own backward pass into one of our errors.

    Such code is a method `backward` of a `torch.autograd.Function`, which torch calls by `apply`.

    Raises:
        ModelError: in place of that error.
    """
    try:
        yield
    except FORWARD_ERRORS as error:
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if torch.autograd.function.__file__ not in places[:-1]:
            raise
        raise ModelError(
            f"the backward pass that {type(model).__name__} brings refuses to run: "
            f"{describe_failure(error, model)}; a model that cannot be differentiated "
            f"in evaluation mode has no kernel here"
        ) from error


class _Series:
    """The kernels of a run folder, each with a hash of the weights it was measured at."""

    def __init__(
        self, writer: RunWriter, subject: Subject, adapted: Adapted, choice: Choice, command: str
    ) -> None:
        self._writer, self._subject, self._adapted = writer, subject, adapted
        self._choice, self._command = choice, command
        self._seen: dict[str, Path] = {}
        self._seen_tensors = SeenTensors()
        self._has_session = False
        if writer.has_begun:
            self._begin_session()
        self._stored = writer.whole(Kind.KERNEL)
        self._known = subject.known(writer.folder)

    def finish(self) -> None:
        """Note that all is measured.

        Raises:
            CheckpointError: if there is no kernel, since every step was left out.
        """
        if not self._has_session:
            raise CheckpointError(
                "every checkpoint was left out, and nothing is measured; see the warnings for "
                "what each lacks"
            )
        self._writer.finish()

    def measure(self, step: int) -> None:
        """Measure and store the kernel of a step, unless it is there."""
        path = self._subject.paths[step]
        if step in self._known and step in self._stored:
            self._warn_of_same(weights_hash(self._stored[step]) or "", path)
            return
        self._subject.load(step)
        weights = fingerprint(self._subject.model)
        self._warn_of_same(weights, path)
        self._warn_of_shared(path)
        if (stored := self._stored.get(step)) is not None:
            if weights_hash(stored) != weights:
                raise CheckpointError(
                    f"{path} has changed since its kernel was stored in {self._writer.path}; "
                    f"choose another folder as out"
                )
            return
        try:
            with _own_backward_told(self._subject.model):
                kernel, outputs = self._choice.with_outputs(
                    self._adapted, self._subject.preconditioner
                )
        except (ModelError, KernelError) as error:
            raise type(error)(f"{path}: {error}") from error
        if not self._has_session:  # a choice that fails at once leaves no run behind
            self._begin_session()
        if (noted := self._subject.origin(step)) is not None:
            self._writer.write_revision(step, noted)
        self._writer.write_kernel(step, kernel, outputs, weights=weights)

    def _begin_session(self) -> None:
        source = {
            "name": self._writer.path.resolve().name,
            **self._subject.source,
            **self._adapted.description(),
            **self._choice.description(),
        }
        self._writer.begin_source(
            source, self._command, labels=self._subject.labels, texts=self._subject.texts
        )
        self._writer.begin_session(str(self._adapted.device))
        self._has_session = True

    def _warn_of_same(self, weights: str, path: Path) -> None:
        other = self._seen.setdefault(weights, path)
        if other != path:
            warnings.warn(
                f"{other} and {path} hold the same weights: S = 0 between them says nothing about "
                f"the training",
                SameWeightsWarning,
                stacklevel=5,
            )

    def _warn_of_shared(self, path: Path) -> None:
        """Warn of earlier checkpoints that have most parameters in common with the model."""
        shared = self._seen_tensors.add(str(path), *parameter_digests(self._subject.model))
        for one, another, share in shared:
            warnings.warn(
                f"{one} and {another} hold the same values in {share:.0%} of the parameters that "
                f"are trained in this series: parts of one may be in the other by mistake, or are "
                f"frozen between them; conescope audit says which",
                SameWeightsWarning,
                stacklevel=5,
            )
