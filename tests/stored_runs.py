"""Run folders compared file by file, by the tests of what has to come out as the same bits."""

from pathlib import Path

import numpy as np
import torch

from conescope.experiments.stored import load_run
from conescope.runs.journal import Kind
from conescope.runs.store import Folder


def everything(path: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run folder's journal names, by file and name."""
    folder, found = Folder(path), {}
    for kind in (Kind.KERNEL, Kind.SNAPSHOT):
        for entry in folder.files(kind):
            for name, tensor in folder.read_tensors(entry).items():
                found[f"{entry.values['file']}:{name}"] = tensor
    return found


def assert_same_run(a: Path, b: Path) -> None:
    first, second = everything(a), everything(b)
    kept = {name for name in first if "snapshots/" not in name or "00000060" in name}
    assert len(kept) > 7
    assert kept <= set(second)
    for name in set(first) & set(second):
        assert torch.equal(first[name], second[name]), name
    one, other = load_run(a), load_run(b)
    assert one.series.steps == other.series.steps
    np.testing.assert_array_equal(one.series.distances(), other.series.distances())
    for name, values in one.scalars.items():
        np.testing.assert_array_equal(values, other.scalars[name])


def stored_by_a_stop(path: Path) -> list[int]:
    """The iterations of a run's snapshots that stops have stored, if its recipe has "0, end"."""
    steps = [entry.values["step"] for entry in Folder(path).entries(Kind.SNAPSHOT)]
    return [step for step in steps[1:] if step < 60]
