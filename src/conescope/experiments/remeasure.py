"""Measure another kernel of the snapshots that a run kept."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from torch.optim import SGD, Optimizer

from conescope.argument_types import checked
from conescope.engine import preconditioner
from conescope.errors import CheckpointError, KernelError
from conescope.experiments.experiment import Experiment
from conescope.experiments.stored import load_run, read_recipe
from conescope.kernel.matrix import BatchNorm, Outputs
from conescope.measuring.checkpoints.measurement import measure
from conescope.measuring.checkpoints.subject import Subject
from conescope.measuring.choice import Choice
from conescope.measuring.undisturbed import recalibrated
from conescope.runs.contents import by_step, check_same_data, is_finished
from conescope.runs.environment import notebook_progress, reproducible
from conescope.runs.journal import Kind
from conescope.runs.reader import Run
from conescope.runs.schedule import Schedule
from conescope.runs.snapshots import read_snapshot
from conescope.runs.store import Folder
from conescope.training.models import last_position, returning


class Snapshots(Subject):
    """The snapshots that a run of a recipe kept, with the recipe's model and probe.

    Args:
        path: the run's folder.
        batchnorm: whether BatchNorm's statistics are those of the snapshot, or estimated anew on
            training inputs; None for the recipe's choice.
        when: a schedule of the snapshots to measure; None for all that were kept.
        preconditioned: whether kernels are those that the optimiser preconditions, by its second
            moments in each snapshot; then `when` of None leaves out the run's first iteration.

    Raises:
        CheckpointError: if the run kept no snapshot, or none that `when` names.
        KernelError: if kernels are to be preconditioned, and the optimiser does so by no diagonal
            that is known, or not at all.
        StoreError: if the folder holds no run that conescope trained, or its data are others here.
        ConescopeError: as `Experiment`, if the recipe cannot be carried out here.
    """

    def __init__(
        self,
        path: Path,
        batchnorm: BatchNorm | None = None,
        when: str | None = None,
        preconditioned: bool = False,
    ) -> None:
        self._folder, self.recipe = Folder(path), read_recipe(path)
        self._entries = by_step(self._folder, Kind.SNAPSHOT)
        self._experiment = Experiment(self.recipe)
        is_being_written = not is_finished(self._folder) and self._folder.is_owned()
        if is_being_written:  # a run removes those that it does not keep
            keep = self._experiment.moments.keep
            self._entries = {s: entry for s, entry in self._entries.items() if s in keep}
        self._hint = (
            "it is still being written, so run the same command again when it is further"
            if is_being_written
            else "set snapshots.keep before the run, for example to 'every 1000'"
        )
        has_moments = self.recipe.branch.optimizer == "restored"
        if preconditioned and when is None and not has_moments:
            self._entries.pop(self.recipe.branch.at, None)
        if not self._entries:
            raise CheckpointError(f"{path} holds no snapshot to measure; {self._hint}")
        check_same_data(self._folder, self._experiment.data.digest)
        chosen = list(self._entries) if when is None else self._kept_when(when)
        model, optimizer = self._experiment.begin()
        self.model = model.eval()
        self._optimizer = _preconditioning(optimizer) if preconditioned else None
        returning(last_position, self.model)
        self.probe, self.labels = self._experiment.probe, self._experiment.probe_labels
        self.paths = {s: path / self._entries[s].values["file"] for s in chosen}
        self._batchnorm = batchnorm or self.recipe.kernel.batchnorm
        self.source = {
            "description": f"snapshots of {self.recipe.id}, measured again",
            "run": self.recipe.id,
            "batchnorm": self._batchnorm,
            "loss": self.recipe.training.loss,
        }
        if self._optimizer is not None:
            moments = f"by {type(self._optimizer).__name__}'s second moments"
            self.source["description"] += f", preconditioned {moments}"
            self.source["preconditioned"] = moments

    def _kept_when(self, when: str) -> list[int]:
        per_epoch = self._experiment.order.iterations_per_epoch
        schedule, total = Schedule(when), self.recipe.training.steps
        chosen = [s for s in sorted(self._entries) if schedule.fires(s, total, per_epoch)]
        if not chosen:
            raise CheckpointError(
                f"{self._folder.path} kept no snapshot at {when!r}; it has those of "
                f"{', '.join(f'{step:,}' for step in self._entries)}; {self._hint}"
            )
        return chosen

    def check(self) -> None:
        """Do nothing: the run's own recipe makes a model that fits its snapshots."""

    def load(self, step: int) -> None:
        """See `Subject.load`."""
        snapshot = read_snapshot(self._folder, self._entries[step])
        if self._optimizer is None:
            snapshot.load_weights(self.model)
        else:
            snapshot.load_into(self.model, self._optimizer)
            try:
                self.preconditioner = preconditioner(self._optimizer, self.model)
            except KernelError as error:
                raise KernelError(f"{self.paths[step]}: {error}") from error
        if self._batchnorm == "recalibrated":
            estimated = recalibrated(self.model, self._experiment.calibration)
            self.model.load_state_dict(estimated.state_dict())

    def computing(self) -> AbstractContextManager[None]:
        """Compute on the recipe's threads, by algorithms that give the same bits."""
        return reproducible(self.recipe.device, self.recipe.threads)


def _preconditioning(optimizer: Optimizer) -> Optimizer:
    """Return an optimiser, unless its kernel is the plain one.

    Raises:
        KernelError: if it is.
    """
    names = ("lr", "momentum", "dampening")
    kinds = {tuple(float(group.get(n, 0)) for n in names) for group in optimizer.param_groups}
    if type(optimizer) is SGD and len(kinds) == 1:
        raise KernelError(
            "SGD multiplies all entries of a gradient by the same number, so that its kernel is "
            "the plain one; measure that, without preconditioned"
        )
    return optimizer


@checked
def measure_snapshots(
    run: str | Path,
    *,
    out: str | Path,
    when: str | None = None,
    batchnorm: BatchNorm | None = None,
    outputs: Outputs | None = None,
    draws: int | None = None,
    projection: int | None = None,
    params: str | Iterable[str] | None = None,
    by_layer: bool = False,
    memory: str | float | None = None,
    preconditioned: bool = False,
) -> Run:
    """Measure another kernel of the snapshots that a run kept.

    Args:
        run: the folder of a run that conescope trained.
        out: the run folder to write.
        when: which snapshots, such as "0, every 50 until 500"; None for all that it kept.
        batchnorm: BatchNorm on its "running" statistics, or on ones "recalibrated" on training
            inputs; None for the recipe's choice.
        outputs: as for `measure_checkpoints`; None for the recipe's choice.
        draws: as for `measure_checkpoints`.
        projection: as for `measure_checkpoints`.
        params: as for `measure_checkpoints`.
        by_layer: as for `measure_checkpoints`.
        memory: as for `measure_checkpoints`.
        preconditioned: whether to measure J P Jᵀ, with P the diagonal by which the run's optimiser
            multiplied gradients, see `conescope.preconditioner`. It has none before its first
            step, which `when` of None leaves out.

    Returns:
        The new run.

    Raises:
        ConescopeError: as `measure_checkpoints`; also if the recipe cannot be carried out here, or
            its optimiser has no such diagonal.
    """
    subject = Snapshots(Path(run), batchnorm, when, preconditioned)
    outputs = subject.recipe.kernel.outputs if outputs is None else outputs
    choice = Choice(
        outputs, draws, params=params, by_layer=by_layer, memory=memory, projection=projection
    )
    command = f"conescope.measure_snapshots({str(run)!r}, …)"
    measure(subject, choice, Path(out), command=command, progress=notebook_progress())
    return load_run(out)
