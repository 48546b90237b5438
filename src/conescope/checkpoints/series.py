"""Finding a series of checkpoints: a glob, a folder or a list → files, each with its step."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from conescope.checkpoints.read import SUFFIXES
from conescope.checkpoints.steps import steps_of
from conescope.errors import CheckpointError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one moment of a training.

    Attributes:
        step: the number in its name, at least 0.
        path: what it is called by: the file, the folder, or the common name of its shards.
        files: what holds its weights; several if they are sharded.
    """

    step: int
    path: Path
    files: tuple[Path, ...]


def find_checkpoints(
    source: str | Path | Collection[str | Path], step_pattern: str | None = None
) -> tuple[Checkpoint, ...]:
    r"""The checkpoints that a glob, a folder or a list names, each with its step.

    A checkpoint is a file (.safetensors, .pt, .pth, .bin or .ckpt), a set of shards
    (`model-00001-of-00003.safetensors`), or a folder as transformers writes it
    (`checkpoint-500/`). A folder that is none itself stands for the checkpoint folders in it or,
    if there are none, for the checkpoint files.

    Args:
        source: a glob such as `ckpts/*.safetensors`, a folder, or several: a list of checkpoints
            in the order of their steps, or a set of anything, which has no order.
        step_pattern: a regular expression whose one group is the step, such as `ckpt_(\d+)`;
            without it, see `steps_of`.

    Returns:
        The series; its steps rise.

    Raises:
        CheckpointError: if there is no checkpoint, a shard is missing, a step cannot be told, two
            checkpoints have the same step, or the steps of a list do not rise.
    """
    has_order = isinstance(source, Sequence) and not isinstance(source, str)
    paths = _matches(source)
    found = _grouped(paths if has_order else sorted(paths, key=str))
    if not found:
        raise CheckpointError(
            f"{source} holds no checkpoint; conescope reads {', '.join(SUFFIXES)}, and folders "
            f"with {' or '.join(_WEIGHTS)}"
        )
    steps = steps_of(list(found), step_pattern)
    series = [
        Checkpoint(step, path, files)
        for step, (path, files) in zip(steps, found.items(), strict=True)
    ]
    if not has_order:
        series.sort(key=lambda checkpoint: checkpoint.step)
    _check_rising(series)
    return tuple(series)


def _matches(source: str | Path | Collection[str | Path]) -> Collection[str | Path]:
    if isinstance(source, Sequence) and not isinstance(source, str):
        return source
    if not isinstance(source, str | Path):
        return {path for each in source for path in _matches(each) or [each]}
    path = Path(source)
    if not path.is_dir():
        return [path] if path.exists() else glob.glob(str(path), recursive=True)
    inside = [p for p in path.iterdir() if not p.name.startswith(".")]
    if folders := [p for p in inside if p.is_dir() and _weights_in(p)]:
        return folders
    return [path] if _weights_in(path) else [p for p in inside if p.suffix in SUFFIXES]


def _grouped(paths: Iterable[str | Path]) -> dict[Path, tuple[Path, ...]]:
    """What each checkpoint is called by → its files; the shards of one set come together."""
    found: dict[Path, tuple[Path, ...]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found[path] = _files_in(path)
        elif not path.exists():
            raise CheckpointError(f"{path} does not exist")
        elif path.suffix not in SUFFIXES:
            raise CheckpointError(
                f"{path} is no checkpoint that conescope knows: it reads {', '.join(SUFFIXES)}; "
                f"leave the file out"
            )
        elif shard := _SHARD.fullmatch(path.stem):
            count = int(shard["count"])
            names = [f"{shard['stem']}-{n + 1:05d}-of-{count:05d}" for n in range(count)]
            shards = tuple(path.with_name(name + path.suffix) for name in names)
            found[path.with_name(shard["stem"] + path.suffix)] = _existing(shards, path)
        else:
            found[path] = (path,)
    return found


def _weights_in(folder: Path) -> Path | None:
    """The file that holds a folder's weights, or says which files do."""
    names = [name for weights in _WEIGHTS for name in (weights, f"{weights}.index.json")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _files_in(folder: Path) -> tuple[Path, ...]:
    weights = _weights_in(folder)
    if weights is None:
        raise CheckpointError(f"{folder} holds neither {' nor '.join(_WEIGHTS)}; leave it out")
    return (weights,) if weights.suffix != ".json" else _existing(_indexed(weights), weights)


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{index} is no index of shards: its weight_map has to give, for each weight, the "
            f"name of a file beside it"
        ) from None
    return tuple(index.with_name(name) for name in sorted(names))


def _existing(shards: tuple[Path, ...], named_by: Path) -> tuple[Path, ...]:
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"{named_by} is one part of a whole of {len(shards)}, and {', '.join(missing)} is "
            f"missing; copy it too"
        )
    return shards


def _check_rising(series: Sequence[Checkpoint]) -> None:
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in series:
        if other := by_step.get(checkpoint.step):
            raise CheckpointError(
                f"{other.path} and {checkpoint.path} both have step {checkpoint.step}; leave one "
                f"out, or say where the step is with a step pattern"
            )
        by_step[checkpoint.step] = checkpoint
    for before, after in pairwise(series):
        if after.step < before.step:
            raise CheckpointError(
                f"the steps are out of order: {after.path} (step {after.step}) comes after "
                f"{before.path} (step {before.step}); sort the list"
            )
