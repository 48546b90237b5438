"""Small run folders to attack: how each is made or gone on with, and the numbers it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import conescope as cs
from conescope.experiments.branches import branch_recipe
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run, read_status
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe

TINY = [
    "--model.name=mlp",
    "--model.width=0.1",
    "--training.steps=24",
    "--training.batch_size=16",
    "--training.evaluate=0, every 8",
    "--training.average=0.9",
    "--probe.size=10",
    "--kernel.when=0, every 4",
    "--snapshots.keep=0, every 12",
    "--snapshots.resume=every 5",
    "--threads=1",
]
"""The fields of a recipe that trains in a second, beside its data set, digits."""


@dataclass(frozen=True)
class Subject:
    """A kind of run folder.

    Attributes:
        name: what it is.
        make: makes a folder, or goes on with what is there; gives the same numbers each time.
    """

    name: str
    make: Callable[[Path], object]


def subjects(folder: Path) -> list[Subject]:
    """Return the kinds of run folders; the branch's parent is made in `folder`."""
    parent = folder / "parent"
    train(parent)
    return [
        Subject("run", train),
        Subject("branch", lambda path: _train(path, branch_recipe(parent, 12))),
        Subject("watch", watch),
        Subject("measured series", lambda path: _measure(folder / "checkpoints", path)),
    ]


def train(path: Path) -> None:
    """Train by the recipe `TINY`, without figures and report."""
    _train(path, load_recipe("digits", TINY))


def _train(path: Path, recipe: cs.Recipe) -> None:
    run_experiment(recipe, path, command="torture")


def numbers(path: Path) -> dict[str, bytes]:
    """Return every number that a reader of a run folder gets, by name.

    Raises:
        ConescopeError: if the folder cannot be read.
    """
    run, found = load_run(path), {}
    read_status(path)
    for name, series in (("kernel", run.series), ("averaged", run.averaged)):
        for step, kernel in zip(series.steps, series.measured, strict=True) if series else ():
            found[f"{name} {step}"] = _bits(kernel.values)
            draws = getattr(kernel, "draws", None)
            found[f"{name} {step} draws"] = b"" if draws is None else _bits(draws)
    for name, values in run.scalars.items():
        found[name] = np.asarray(values, dtype=float).tobytes()
    found["labels"] = b"" if run.labels is None else run.labels.numpy().tobytes()
    found["recipe"] = b"" if run.recipe is None else run.recipe.to_yaml().encode()
    return found


def _bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor of any type, such as bfloat16, which numpy does not have."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def kept(path: Path) -> dict[str, Any]:
    """Return the checksums of the snapshots that a finished run of `subjects` keeps."""
    entries = Folder(path).files(Kind.SNAPSHOT)
    return {
        e.values["file"]: e.values["sha256"] for e in entries if e.values["step"] in (0, 12, 24)
    }


def _network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((torch.arange(p.numel()) % 7 - 3).reshape(p.shape) / 8)
    return model


def watch(path: Path) -> None:
    """Train a small network below a watch."""
    model, probe = _network(), torch.arange(18.0).reshape(6, 3) / 8 - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    labels = [0, 1, 2, 3, 0, 1]
    with cs.Watch(model, probe, when="0, every 4", out=path, draws=3, labels=labels) as watch:
        for step in range(25):
            if step > 0:
                optimizer.zero_grad()
                (model(probe) - 1).square().mean().backward()
                optimizer.step()
            watch.step(step)


def _measure(checkpoints: Path, path: Path) -> None:
    """Measure the kernels of six checkpoints, which are made if need be."""
    if not checkpoints.exists():
        checkpoints.mkdir()
        for step in range(6):
            weights = {name: w + step / 9 for name, w in _network().state_dict().items()}
            torch.save(weights, checkpoints / f"step_{step}.pt")
    probe = torch.arange(18.0).reshape(6, 3) / 8 - 1
    cs.measure_checkpoints(_network, str(checkpoints / "*.pt"), probe, out=path)
