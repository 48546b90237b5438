"""The revisions of a repository on the Hub, as the subject of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.loading import load_weights, own_state
from conescope.measuring.checkpoints.subject import Subject
from conescope.measuring.checkpoints.weight_files import read_weights
from conescope.measuring.hub.revisions import Fetcher, Series
from conescope.measuring.hub.same_model import SameModel
from conescope.measuring.probe import Probe, class_labels, count
from conescope.runs import contents
from conescope.runs.journal import Kind
from conescope.runs.store import Folder


class HubCheckpoints(Subject):
    """Revisions on the Hub, each fetched when the one before is measured.

    A revision is known by its commit, so one that is measured already is not fetched again.

    Args:
        series: the revisions.
        model: the model; its weights will change.
        probe: its inputs.
        folder: where the revisions are put, each for as long as it is measured.
        description: what is measured, for people.
        labels: the classes of the samples, if they are known.
        skips_failed: whether a revision that cannot be measured is left out with a warning.
        same_model: what compares the configurations of the revisions; None for no comparison.
        check_loaded: what checks the model each time that it has new weights.
        texts: how each of the samples begins, if they are texts.

    Raises:
        DataError: if the labels are no classes, or not as many as samples.
    """

    def __init__(
        self,
        series: Series,
        model: nn.Module,
        probe: Probe,
        folder: Path,
        description: str,
        labels: Tensor | Sequence[int] | None = None,
        skips_failed: bool = False,
        same_model: SameModel | None = None,
        check_loaded: Callable[[], None] = lambda: None,
        texts: list[str] | None = None,
    ) -> None:
        self.labels = None if labels is None else class_labels(labels, count(probe))
        self.model, self.probe, self.skips_failed = model.eval(), probe, skips_failed
        self.source = {"description": description, "repository": series.source}
        self._own, self._same_model = own_state(model), same_model
        self._commits_last = series.repositories.commits_last
        self._check_loaded, self.texts = check_loaded, texts
        self._by_step = {each.place.step: each for each in series.revisions}
        self.paths = {step: each.path for step, each in self._by_step.items()}
        self._pending = list(self._by_step)
        self._fetcher = Fetcher(series, folder)

    def check(self) -> None:
        """Do nothing: a revision is compared with the model when it is here."""

    def known(self, folder: Folder) -> Collection[int]:
        """See `Subject.known`; a revision is known by its commit."""
        stored = contents.by_step(folder, Kind.KERNEL)
        revisions = contents.revisions(folder).items()
        noted = {step: entry.values for step, entry in revisions if step in stored}
        steps = {values["name"]: step for step, values in noted.items()}
        for step, revision in self._by_step.items():
            name = revision.place.name
            if steps.get(name, step) != step:
                raise CheckpointError(
                    f"{name} is at step {step:,} now, and was at {steps[name]:,} when it was "
                    f"measured in {folder.path}: it is counted from the last step of the stage "
                    f"before, of which other revisions are known now; choose another folder as out"
                )
            if step in noted and noted[step]["commit"] != revision.ref.commit:
                if not self._commits_last:
                    del noted[step]  # its weights are compared instead
                    continue
                raise CheckpointError(
                    f"{revision.path} has changed since its kernel was stored in {folder.path}: "
                    f"it was commit {noted[step]['commit'][:12]} and is "
                    f"{revision.ref.commit[:12]}; choose another folder as out"
                )
        found = noted.keys() & self._by_step.keys()
        same = self._same_model
        for step in sorted(found):
            if same is not None and noted[step].get("config") != same.digest:
                same.check(self._by_step[step].ref)  # another revision was the first one then
        self._pending = [step for step in self._by_step if step not in found]
        self._fetcher.keep_only(self._by_step[step] for step in self._pending)
        return found

    def load(self, step: int) -> None:
        """See `Subject.load`; the next revision is fetched from now on."""
        later = [self._by_step[each] for each in self._pending if each > step]
        revision = self._by_step[step]
        checkpoint = self._fetcher.fetch(revision, later[0] if later else None)
        if self._same_model is not None:
            self._same_model.check(revision.ref)
        load_weights(self.model, read_weights(checkpoint.files), checkpoint.path, self._own)
        self._check_loaded()

    def origin(self, step: int) -> Mapping[str, Any]:
        """See `Subject.origin`."""
        revision = self._by_step[step]
        place = revision.place
        return {
            "name": place.name,
            "commit": revision.ref.commit,
            "stage": place.stage,
            "begins": place.begins,
            "config": None if self._same_model is None else self._same_model.digest,
        }
