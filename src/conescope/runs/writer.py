"""RunWriter: the only way to write to a run folder, for a run, a watch or a measurement."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from conescope.errors import DamageWarning, StoreError
from conescope.kernel.estimates import Measured
from conescope.runs import contents
from conescope.runs.environment import describe, differences
from conescope.runs.journal import Entry, Kind
from conescope.runs.snapshots import SnapshotState
from conescope.runs.store import Folder

_RESUMABLE = 2
"""The number of snapshots to go on from that are held, beside those that stay."""

_MAY_CHANGE = ("name", "description", "when")
_CODE = "code of "
_NO_CODE: Mapping[str, str] = MappingProxyType({})


class RunWriter:
    """The owner of a run folder, and the one thing that appends to its journal.

    It owns the folder from `open` (or the beginning of a `with` block) to `close`, and writes
    nothing before and after. Wall time goes on from that of earlier sessions. Each of the methods
    that write raises `StoreError` if the folder cannot be written; what was stored before stays.

    Args:
        path: the run folder; it is made when something is written.

    Attributes:
        folder: the folder, to read from.

    Raises:
        StoreError: if the journal cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self._owned = ExitStack()
        self._is_open, self._spent, self._begun = False, 0.0, 0.0

    def open(self) -> None:
        """Own the folder, see `Folder.owned`; `StoreError` also if it says not what the run is."""
        self._owned.enter_context(self.folder.owned())
        if not self.has_begun and self.folder.entries(*set(Kind) - {Kind.MENDED}):
            self._owned.close()
            raise StoreError(
                f"{self.path}/journal.jsonl has lost its first line, which says what the run is; "
                f"move the folder away, and run the same command again"
            )
        self._is_open = True
        for file in contents.unnamed_files(self.folder) if self.has_begun else ():
            self._own.append(Kind.REMOVED, file=file)
        self._spent, self._begun = contents.seconds_spent(self.folder), time.monotonic()

    def close(self) -> None:
        """Give the folder back."""
        self._is_open = False
        self._owned.close()

    def __enter__(self) -> RunWriter:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    @property
    def has_begun(self) -> bool:
        """Whether the journal names the recipe or the source of the run."""
        return contents.has_run(self.folder)

    @property
    def _own(self) -> Folder:
        """The folder, to write to."""
        if not self._is_open:
            raise StoreError(f"the writer of {self.path} is not open; open it before it writes")
        return self.folder

    def _seconds(self) -> float:
        """Return the wall time spent on the run so far, over all sessions."""
        return round(self._spent + time.monotonic() - self._begun, 3)

    def begin_recipe(
        self, recipe: Mapping[str, Any], text: str, command: str, labels: Sequence[int] | None
    ) -> None:
        """Note which recipe the run carries out, unless the folder says so already.

        Args:
            recipe: all its fields as nested plain values.
            text: the same as YAML, for people; written anew if recipe.yaml is damaged.
            command: the shell command that makes the run.
            labels: the classes of the probe's samples, if there are any.
        """
        if not self.has_begun:
            noted = {} if labels is None else {"labels": list(labels)}
            self._own.append(Kind.RUN, recipe=recipe, command=command, **noted)
        if not self.whole(Kind.RECIPE):
            self._own.write_file(Kind.RECIPE, "recipe.yaml", text.encode())

    def begin_source(
        self,
        source: Mapping[str, Any],
        command: str,
        *,
        total_steps: int | None = None,
        labels: list[int] | None = None,
        texts: list[str] | None = None,
    ) -> None:
        """Note the source of a run without a recipe, or check that the folder has the same source.

        Args:
            source: "name", "description" and "when", which may change, and whatever else makes two
                kernels comparable, which may not; JSON values.
            command: the shell command that makes the run.
            total_steps: its length in iterations, if known.
            labels: the classes of the probe's samples, if known; newer ones replace older ones.
            texts: how each text of the probe begins, if it is of texts; as for `labels`.

        Raises:
            StoreError: if the folder has another source; the message says what differs.
        """
        begun = self.folder.entries(Kind.RUN)
        if not begun:
            self._own.append(Kind.RUN, source={**source}, command=command, total_steps=total_steps)
        else:
            _check_same(self.path, begun[0].values.get("source"), source)
        if labels is not None and labels != contents.labels(self.folder):
            self._own.append(Kind.LABELS, labels=labels)
        if texts is not None and texts != contents.texts(self.folder):
            self._own.append(Kind.TEXTS, texts=texts)

    def begin_session(
        self, device: str, code: Mapping[str, str] = _NO_CODE, data: str | None = None
    ) -> None:
        """Note versions, machine and a user's own code; warn if the last session had others.

        Args:
            device: where to compute.
            code: a name such as package.module:build → sha256 of the file of a user's own code.
            data: what identifies data that may differ between machines, such as a sha256.

        Raises:
            StoreError: if the last session had other data.
        """
        contents.check_same_data(self.folder, data)
        environment = describe(device) | {_CODE + name: code[name] for name in code}
        if data is not None:
            environment[contents.DATA] = data
        sessions = self.folder.entries(Kind.SESSION)
        before = sessions[-1].values["environment"] if sessions else environment
        changed = differences(before, environment)
        if changed:
            extent = "" if any(n.startswith(_CODE) for n in changed) else "in the last digits "
            warnings.warn(
                f"{self.path} was begun with another {', '.join(changed)}: the rest may differ "
                f"{extent}from an uninterrupted run",
                DamageWarning,
                stacklevel=3,
            )
        self._own.append(Kind.SESSION, environment=environment)

    def whole(self, kind: Kind) -> dict[int, Entry]:
        """Return the entries of a kind, by step, whose files are there and undamaged.

        The journal no longer names the other files afterwards, so what it names is whole.

        Args:
            kind: a kind of entry that names a file.

        Warns:
            DamageWarning: for each file that is missing or damaged.
        """
        found = {}
        for entry in self.folder.files(kind):
            if self.folder.is_whole(entry):
                found[entry.values.get("step", 0)] = entry
                continue
            self._own.forget(entry)
            text = "is missing or damaged, and is made anew if it can be"
            warnings.warn(f"{self.path / entry.values['file']} {text}", DamageWarning, stacklevel=3)
        return found

    def write_revision(self, step: int, noted: Mapping[str, Any]) -> None:
        """Note which revision on the Hugging Face Hub has the weights of a step.

        Args:
            step: the iteration.
            noted: the fields "name", "commit", "stage", "begins" and "config" of such a line.
        """
        self._own.append(Kind.REVISION, step=step, **noted)

    def write_kernel(
        self,
        step: int,
        kernel: Measured,
        probe_outputs: Tensor | None = None,
        *,
        weights: str | None = None,
        kind: Kind = Kind.KERNEL,
    ) -> Entry:
        """Store the kernel of one step with its layers and random draws if any, or its features.

        Args:
            step: the iteration at which it was measured.
            kernel: exact, or estimated by random cotangents or a projection.
            probe_outputs: the outputs of the same network on the probe, [n, c], to store with it.
            weights: a hash of the weights, by which a later session knows them again.
            kind: one of `contents.KERNEL_FOLDERS`.

        Returns:
            The entry, by which `contents.read_kernel` reads it again.
        """
        noted = {"step": step, "seconds": self._seconds()}
        noted |= {} if weights is None else {"weights": weights}
        tensors, fields = contents.as_stored(kernel, probe_outputs)
        file = f"{contents.KERNEL_FOLDERS[kind]}/{step:08d}.safetensors"
        self._own.write_tensors(kind, file, tensors, **noted, **fields)
        return self.folder.files(kind)[-1]

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Note the loss, accuracy and learning rate of one step.

        Args:
            step: the iteration.
            values: each of `contents.SCALARS`.
        """
        self._own.append(Kind.EVALUATION, step=step, seconds=self._seconds(), **values)

    def write_snapshot(self, state: SnapshotState, keep: Collection[int]) -> None:
        """Store a snapshot, and remove old ones that served only to go on from.

        Args:
            state: the state of the training.
            keep: the iterations whose snapshots stay; of the others the newest two do.

        Raises:
            StoreError: if it cannot be written; everything before stays as it was.
        """
        file = f"{contents.SNAPSHOTS}/{state.step:08d}.safetensors"
        self._write_state(Kind.SNAPSHOT, file, state, seconds=self._seconds())
        stored = contents.by_step(self.folder, Kind.SNAPSHOT)
        passing = [entry for step, entry in stored.items() if step not in keep]
        for entry in passing[:-_RESUMABLE]:
            self._own.remove(entry)

    def write_origin(self, state: SnapshotState) -> None:
        """Store a branch's own copy of the snapshot that it starts from, unless it has one."""
        if not self.whole(Kind.ORIGIN):
            self._write_state(Kind.ORIGIN, "origin.safetensors", state)

    def write_result(self, file: str, data: bytes) -> None:
        """Store what one seed of a comparison gave."""
        self._own.write_file(Kind.RESULT, file, data)

    def _write_state(self, kind: Kind, file: str, state: SnapshotState, **noted: Any) -> None:
        self._own.write_tensors(kind, file, state.tensors(), **state.plain_values(), **noted)

    def skip(self, steps: Sequence[int], budget: float | None) -> None:
        """Note the steps at which no kernel was taken, to keep to a share of the wall time."""
        self._own.append(Kind.SKIPPED, steps=list(steps), budget=budget)

    def diverge(self, step: int, reason: str) -> None:
        """Note that the training has diverged, and why."""
        self._own.append(Kind.DIVERGED, step=step, reason=reason, seconds=self._seconds())

    def finish(self) -> None:
        """Note that the run is complete, unless the folder says so already."""
        if not contents.is_finished(self.folder):
            self._own.append(Kind.FINISHED, seconds=self._seconds())


def _check_same(path: Path, held: Mapping[str, Any] | None, source: Mapping[str, Any]) -> None:
    if held is None:
        raise StoreError(f"{path} holds the run of a recipe; choose another folder as out")
    names = [name for name in {**held, **source} if name not in _MAY_CHANGE]
    changed = [name for name in names if held.get(name) != source.get(name)]
    if changed:
        each = (f"{name} was {held.get(name)!r} and is {source.get(name)!r}" for name in changed)
        raise StoreError(
            f"{path} holds kernels of something else: {'; '.join(each)}; choose another folder as "
            f"out"
        )
