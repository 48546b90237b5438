"""Subject of a measurement: a model, its probe, and the weights of the model at several steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.loading import fitted, load_weights, own_state
from conescope.measuring.checkpoints.sources import find_checkpoints
from conescope.measuring.checkpoints.weight_files import read_weights
from conescope.measuring.probe import Probe, class_labels, count
from conescope.runs.store import Folder


class Subject(ABC):
    """A model, a probe, and the weights that a training gave the model at several steps.

    Attributes:
        model: the model, in evaluation mode, with the weights of the step loaded last.
        probe: its inputs for n samples.
        source: where the weights are from, as text: "description", and what else must be equal
            for kernels to be comparable.
        paths: step → the path that names its weights in messages; the steps rise.
        labels: the classes of the samples; None if they are not known.
        texts: how each of the samples begins; None if they are no texts.
        skips_failed: whether a step that cannot be measured is left out with a warning.
        preconditioner: that of the step loaded last, for preconditioned kernels; None for plain
            ones.
    """

    model: nn.Module
    probe: Probe
    source: dict[str, str]
    paths: Mapping[int, Path]
    labels: list[int] | None
    texts: list[str] | None = None
    skips_failed: bool = False
    preconditioner: Mapping[str, Tensor] | None = None

    @abstractmethod
    def check(self) -> None:
        """Check that all weights fit, without loading them, before anything is measured.

        Raises:
            CheckpointError: if some cannot be read, or do not fit the model.
        """

    @abstractmethod
    def load(self, step: int) -> None:
        """Give the model the weights of a step.

        Raises:
            CheckpointError: if they cannot be read or do not fit; the model is as before.
            StoreError: if a snapshot of a run is damaged.
        """

    def known(self, folder: Folder) -> Collection[int]:  # noqa: ARG002
        """Return the steps whose weights need not be loaded, if the run has their kernels.

        Their weights are known to be those that the kernels were measured at. By default there are
        none: all are loaded, and compared by a checksum.

        Args:
            folder: the run folder.

        Raises:
            CheckpointError: if the weights are known to be others.
        """
        return ()

    def origin(self, step: int) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Return what the run notes of the step, see `RunWriter.write_revision`; None for none."""
        return None

    def computing(self) -> AbstractContextManager[None]:
        """Return the context to measure in; by default torch computes as it is set."""
        return nullcontext()


class Checkpoints(Subject):
    """Checkpoints that any training wrote.

    Args:
        model: the model; its weights will change.
        name: what builds the model.
        probe: its inputs.
        series: a glob, a folder, or files, see `find_checkpoints`.
        step_pattern: where the step is in a name, see `find_checkpoints`.
        labels: the classes of the samples, if they are known.
        steps: the steps, if the names do not tell them, see `find_checkpoints`.
        texts: how each of the samples begins, if they are texts.

    Raises:
        CheckpointError: if there is no series.
        DataError: if the labels are no classes, or not as many as samples.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        probe: Probe,
        series: str | Path | Collection[str | Path],
        step_pattern: str | None = None,
        labels: Tensor | Sequence[int] | None = None,
        steps: Steps | None = None,
        texts: list[str] | None = None,
    ) -> None:
        self.labels = None if labels is None else class_labels(labels, count(probe))
        found = find_checkpoints(series, step_pattern, steps)
        self.model, self.probe, self.texts = model.eval(), probe, texts
        self._own = own_state(model)
        self.paths = {checkpoint.step: checkpoint.path for checkpoint in found}
        self._files = {checkpoint.step: checkpoint.files for checkpoint in found}
        self.source = {"description": f"checkpoints of {name} in {found[0].path.parent}"}

    def check(self) -> None:
        """See `Subject.check`; values are not read where the format allows it."""
        for step, files in self._files.items():
            fitted(self.model, read_weights(files), self.paths[step])

    def load(self, step: int) -> None:
        """See `Subject.load`."""
        load_weights(self.model, read_weights(self._files[step]), self.paths[step], self._own)
