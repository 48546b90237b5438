"""Read what a run folder holds, one kind of journal line or file at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from conescope.errors import KernelError, StoreError
from conescope.kernel.estimates import COTANGENTS, PROJECTED_DRAWS, Measured, projection_kind
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel, Randomness
from conescope.kernel.series import KernelSeries
from conescope.runs.journal import LINES, Entry, Kind
from conescope.runs.store import REPAIR, Folder

SCALARS = tuple(n for n in LINES[Kind.EVALUATION].fields if n not in ("step", "seconds"))
"""What is evaluated: losses (cross-entropy in nats), accuracies in [0, 1], the learning rate."""

KERNEL_FOLDERS: Mapping[Kind, str] = MappingProxyType(
    {Kind.KERNEL: "kernels", Kind.AVERAGED_KERNEL: "averaged"}
)
"""Kind of kernel, of the weights or of their average → the folder of its files."""

SNAPSHOTS = "snapshots"
"""The folder of the snapshots' files."""

LAYER = "layer."
"""The prefix of the names of tensors that hold the kernel of a single layer."""

DRAWS = "draws"
"""The name of the tensor that holds the kernel of each random cotangent."""

FEATURES = "features"
"""The name of the tensor that holds features, in place of a kernel."""

PROBE_OUTPUTS = "probe_outputs"
"""The name of the tensor with the outputs on the probe, and of the field with its shape."""

DATA = "data"
"""The name, in a session's environment, of what identifies data that differ between machines."""

_TIMED = (Kind.KERNEL, Kind.EVALUATION, Kind.SNAPSHOT, Kind.FINISHED)


def has_run(folder: Folder) -> bool:
    """Return whether the journal names the recipe or the source of the run."""
    return bool(folder.entries(Kind.RUN))


def by_step(folder: Folder, kind: Kind) -> dict[int, Entry]:
    """Return the entries of the stored files of a kind by their step, in rising order."""
    entries = {entry.values["step"]: entry for entry in folder.files(kind)}
    return {step: entries[step] for step in sorted(entries)}


def read_kernel(folder: Folder, entry: Entry) -> Measured:
    """Read the features that an entry names, or the kernel with its stored draws and layers.

    Raises:
        StoreError: as `read_with_outputs`.
    """
    return read_with_outputs(folder, entry)[0]


def read_with_outputs(folder: Folder, entry: Entry) -> tuple[Measured, Tensor | None]:
    """Read what `read_kernel` does, and the outputs on the probe, [n, c]; None if none are stored.

    Raises:
        StoreError: if its file is missing or damaged, or holds no kernel as its line says, or
            other outputs than its line says.
    """
    tensors, file = folder.read_tensors(entry), folder.path / entry.values["file"]
    name, field = (FEATURES, "groups") if FEATURES in tensors else ("values", "outputs")
    if name not in tensors or field not in entry.values:
        raise StoreError(f"{file} holds no {name}, or its line says no {field}; {REPAIR}")
    try:
        kernel = _measured(tensors, entry)
    except KernelError as error:
        raise StoreError(f"{file} holds no kernel: {error}; {REPAIR}") from error
    outputs, shape = tensors.get(PROBE_OUTPUTS), entry.values.get(PROBE_OUTPUTS)
    held = None if outputs is None else list(outputs.shape)
    if held != shape or (held is not None and held[0] != len(kernel.values)):
        found = f"{_told(held)} for {len(kernel.values)} samples, and its line says {_told(shape)}"
        raise StoreError(f"{file} holds {found}; {REPAIR}")
    if outputs is not None and not (outputs.is_floating_point() and outputs.isfinite().all()):
        raise StoreError(f"{file} holds outputs on the probe that are no finite numbers; {REPAIR}")
    return kernel, outputs


def _told(shape: list[int] | None) -> str:
    return "no outputs on the probe" if shape is None else f"outputs on the probe {shape}"


def read_series(
    folder: Folder, entries: Mapping[int, Entry]
) -> tuple[KernelSeries, dict[int, Tensor]]:
    """Read the kernels that entries name by their step, and the outputs on the probe, by step.

    Raises:
        ConescopeError: as `read_with_outputs` and `KernelSeries`.
    """
    found = {step: read_with_outputs(folder, entry) for step, entry in entries.items()}
    outputs = {step: each for step, (_, each) in found.items() if each is not None}
    return KernelSeries(list(found), [kernel for kernel, _ in found.values()]), outputs


def _measured(tensors: Mapping[str, Tensor], entry: Entry) -> Measured:
    if FEATURES in tensors:
        return Features(tensors[FEATURES], entry.values["groups"], _randomness(entry))
    layers = {
        name.removeprefix(LAYER): part for name, part in tensors.items() if name.startswith(LAYER)
    }
    outputs, draws = entry.values["outputs"], tensors.get(DRAWS)
    return Kernel(tensors["values"], outputs, layers, draws=draws, randomness=_randomness(entry))


def _randomness(entry: Entry) -> Randomness | None:
    """Return what an estimate was made with, which for runs follows from the seed in the entry."""
    seed = entry.values.get("seed")
    if seed is None:
        return None
    is_projection = "groups" in entry.values
    return Randomness(projection_kind(PROJECTED_DRAWS) if is_projection else COTANGENTS, seed)


def weights_hash(entry: Entry) -> str | None:
    """Return the hash of the weights that a kernel's entry holds; None if it holds none."""
    return entry.values.get("weights")


def as_stored(kernel: Measured, outputs: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by which a kernel or features are stored, and what their line states.

    Args:
        kernel: what was measured.
        outputs: the outputs on the probe, [n, c], if they are stored with it.
    """
    tensors: dict[str, Tensor] = {}
    fields: dict[str, Any] = {"outputs": "trace"}
    if isinstance(kernel, Features):
        tensors[FEATURES], fields["groups"] = kernel.values, kernel.groups
    else:
        tensors["values"], fields["outputs"] = kernel.values, kernel.outputs
        tensors |= {f"{LAYER}{name}": part for name, part in kernel.by_layer.items()}
        if kernel.draws is not None:
            tensors[DRAWS], fields["draws"] = kernel.draws, len(kernel.draws)
    if kernel.randomness is not None:
        fields["seed"] = kernel.randomness.seed
    if outputs is not None:
        tensors[PROBE_OUTPUTS], fields[PROBE_OUTPUTS] = outputs, list(outputs.shape)
    return tensors, fields


def scalars(folder: Folder) -> dict[str, np.ndarray]:
    """Return the evaluations: "step" and each of `SCALARS`, an array [E] each."""
    found = {entry.values["step"]: entry.values for entry in folder.entries(Kind.EVALUATION)}
    return {
        name: np.array([found[step][name] for step in sorted(found)]) for name in ("step", *SCALARS)
    }


def evaluated_steps(folder: Folder) -> set[int]:
    """Return the iterations of which loss and accuracy are stored."""
    return {entry.values["step"] for entry in folder.entries(Kind.EVALUATION)}


def labels(folder: Folder) -> list[int] | None:
    """Return the classes of the probe's samples, as last noted; None if they never were."""
    entries = folder.entries(Kind.RUN, Kind.LABELS)
    noted = [entry.values["labels"] for entry in entries if "labels" in entry.values]
    return noted[-1] if noted else None


def texts(folder: Folder) -> list[str] | None:
    """Return how each text of the probe begins, as last noted; None if that never was."""
    noted = folder.entries(Kind.TEXTS)
    return noted[-1].values["texts"] if noted else None


def check_same_data(folder: Folder, data: str | None) -> None:
    """Check that data are those of the newest session, if it noted what identifies them.

    Raises:
        StoreError: if they are others.
    """
    sessions = folder.entries(Kind.SESSION)
    held = sessions[-1].values["environment"].get(DATA) if sessions else None
    if held is not None and held != data:
        raise StoreError(
            f"{folder.path} was trained on {held}, but the data here are {data}; use those that it "
            f"was trained on"
        )


def skipped_steps(folder: Folder) -> tuple[int, ...]:
    """Return the steps that were skipped to save time and not measured since, rising."""
    entries = folder.entries(Kind.SKIPPED)
    skipped = {step for entry in entries for step in entry.values["steps"]}
    return tuple(sorted(skipped - by_step(folder, Kind.KERNEL).keys()))


def revisions(folder: Folder) -> dict[int, Entry]:
    """Return what is noted of the revisions on the Hugging Face Hub, by step, in rising order."""
    found = {entry.values["step"]: entry for entry in folder.entries(Kind.REVISION)}
    return {step: found[step] for step in sorted(found)}


def stages(folder: Folder) -> dict[str, int]:
    """Return the iteration at which each stage of a training began; nothing for a single stage."""
    noted = [entry.values for entry in revisions(folder).values()]
    found = {values["stage"]: values["begins"] for values in noted}
    return found if len(found) > 1 else {}


def newest_step(folder: Folder) -> int:
    """Return the newest step of which something is stored; 0 if nothing is."""
    timed = folder.entries(Kind.KERNEL, Kind.EVALUATION, Kind.SNAPSHOT)
    return max((entry.values["step"] for entry in timed), default=0)


def seconds_spent(folder: Folder) -> float:
    """Return the wall time spent on the run, over all its sessions, in seconds."""
    return max((entry.values["seconds"] for entry in folder.entries(*_TIMED)), default=0.0)


def why_diverged(folder: Folder) -> str | None:
    """Return why the training could not go on; None if it did not diverge."""
    diverged = folder.entries(Kind.DIVERGED)
    return diverged[0].values["reason"] if diverged else None


def is_finished(folder: Folder) -> bool:
    """Return whether the run is complete: nothing was made or lost after the line that says so.

    Files are not looked at, see `is_whole`.
    """
    ends = [
        entry
        for entry in folder.entries(Kind.KERNEL, Kind.FINISHED, Kind.MENDED, Kind.REMOVED)
        if entry.kind != Kind.REMOVED or _is_kernel(entry.values["file"])
    ]
    return bool(ends) and ends[-1].kind == Kind.FINISHED and not folder.journal.lost


def is_whole(folder: Folder) -> bool:
    """Return whether each file that the journal names is there, with the right checksum."""
    return all(folder.is_whole(entry) for kind in Kind for entry in folder.files(kind))


def unnamed_files(folder: Folder) -> list[str]:
    """Return the files of kernels and snapshots of which the journal says nothing, if several.

    A kill may leave one, written just before its line. Several mean that the journal has lost its
    end, which its chain cannot tell.
    """
    places = (folder.path / name for name in (*KERNEL_FOLDERS.values(), SNAPSHOTS))
    files = {
        f"{place.name}/{name}"
        for place in places
        if place.is_dir()
        for name in os.listdir(place)
        if not name.startswith(".")
    }
    unnamed = files - _files_said(folder)
    if len(unnamed) > 1:  # or another process has written them since the journal was read
        unnamed = files - _files_said(Folder(folder.path))
    return sorted(unnamed) if len(unnamed) > 1 else []


def _files_said(folder: Folder) -> set[str | None]:
    return {entry.values.get("file") for entry in folder.entries(*Kind)}


def losses(folder: Folder) -> tuple[str, ...]:
    """Return what a reader has to know of damage, each as a text; nothing if all is there.

    A run that conescope trains computes again what is lost. A run without a recipe may be unable
    to, so what was ever lost stays on record.
    """
    lost = list(folder.journal.lost)
    if not any("recipe" in entry.values for entry in folder.entries(Kind.RUN)):
        for entry in folder.entries(Kind.MENDED):
            lost += [f"{text}, before the journal was mended" for text in entry.values["lost"]]
    stored = {entry.values["file"] for kind in KERNEL_FOLDERS for entry in folder.files(kind)}
    removed = {entry.values["file"] for entry in folder.entries(Kind.REMOVED)}
    lost += [f"the line of {file} is missing" for file in unnamed_files(folder)]
    missing = sorted(file for file in removed - stored if _is_kernel(file))
    return (*lost, *(f"{file} was damaged, and is not made anew" for file in missing))


def _is_kernel(file: str) -> bool:
    return file.partition("/")[0] in KERNEL_FOLDERS.values()
