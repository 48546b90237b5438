"""Finding a series of checkpoints: a glob, a folder or a list → files, each with its step."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.folders import (
    WEIGHTS,
    existing,
    files_in,
    holds_weights,
    how_to_convert,
    is_checkpoint_folder,
)
from conescope.measuring.checkpoints.given_steps import Steps, given_steps
from conescope.measuring.checkpoints.read import SUFFIXES, suffix_of
from conescope.measuring.checkpoints.steps import STEP_WORD, steps_of

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one moment of a training.

    Attributes:
        step: the number in its name, or the one given for it, at least 0.
        path: what it is called by: the file, the folder, or the common name of its shards.
        files: what holds its weights; several if they are sharded.
    """

    step: int
    path: Path
    files: tuple[Path, ...]


def find_checkpoints(
    source: str | Path | Collection[str | Path],
    step_pattern: str | None = None,
    steps: Steps | None = None,
) -> tuple[Checkpoint, ...]:
    r"""The checkpoints that a glob, a folder or a list names, each with its step.

    A checkpoint is a file (.safetensors, .pt, .pth, .bin or .ckpt, the last four also followed by
    .tar), a set of shards (`model-00001-of-00003.safetensors`), or a folder as transformers or
    peft write it (`checkpoint-500/`). A folder that is none itself stands for the checkpoint
    folders in it or, if there are none, for the checkpoint files.

    Args:
        source: a glob such as `ckpts/*.safetensors`, a folder, or several: a list of checkpoints
            in the order of their steps, or a set of anything, which has no order.
        step_pattern: a regular expression whose one group is the step, such as `ckpt_(\d+)`;
            without it, see `steps_of`.
        steps: the steps themselves, see `given_steps`; None to read them from the names.

    Returns:
        The series; its steps rise.

    Raises:
        CheckpointError: if there is no checkpoint, a shard is missing, a step cannot be told, two
            checkpoints have the same step, or the steps of a list do not rise.
    """
    if steps is not None and step_pattern is not None:
        raise CheckpointError("the steps are given, and a step pattern, too; leave one of them out")
    has_order = isinstance(source, Sequence) and not isinstance(source, str)
    paths = _matches(source)
    are_told = steps is not None or step_pattern is not None
    found = _grouped(paths if has_order else sorted(paths, key=str), are_told)
    if not found:
        raise CheckpointError(
            f"{source} holds no checkpoint; conescope reads {', '.join(SUFFIXES)}, and folders "
            f"with {' or '.join(WEIGHTS)}"
        )
    if steps is None:
        numbers = steps_of(list(found), step_pattern)
    else:
        numbers = given_steps(list(found), steps, has_order=has_order)
    series = [
        Checkpoint(step, path, files)
        for step, (path, files) in zip(numbers, found.items(), strict=True)
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
    folders = [p for p in inside if p.is_dir() and is_checkpoint_folder(p)]
    if folders and (any(map(holds_weights, folders)) or not holds_weights(path)):
        return folders
    return [path] if is_checkpoint_folder(path) else [p for p in inside if suffix_of(p) in SUFFIXES]


def _grouped(paths: Iterable[str | Path], are_told: bool) -> dict[Path, tuple[Path, ...]]:
    """What each checkpoint is called by → its files; the shards of one set come together."""
    found: dict[Path, tuple[Path, ...]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found[path] = files_in(path)
        elif not path.exists():
            raise CheckpointError(f"{path} does not exist; look for a typing mistake in its name")
        elif cure := how_to_convert(path):
            raise CheckpointError(cure)
        elif (suffix := suffix_of(path)) not in SUFFIXES:
            named = "name it .pt if torch.save wrote it, or " if suffix == ".tar" else ""
            raise CheckpointError(
                f"{path} is no checkpoint that conescope knows: it reads {', '.join(SUFFIXES)}; "
                f"{named}leave the file out"
            )
        else:
            name, files = _shards_of(path, suffix, are_told)
            found[name] = files
    return found


def _shards_of(path: Path, suffix: str, are_told: bool) -> tuple[Path, tuple[Path, ...]]:
    """The common name of the shards that a file is one of, and all of them; or the file alone.

    `step-00100-of-01000.pt` is named like a shard, but is one only if all others are there, too.
    """
    shard = _SHARD.fullmatch(path.name.removesuffix(suffix))
    if shard is None or not 1 <= int(shard["number"]) <= int(shard["count"]):
        return path, (path,)
    count = int(shard["count"])
    names = [f"{shard['stem']}-{n + 1:05d}-of-{count:05d}" for n in range(count)]
    shards = tuple(path.with_name(name + suffix) for name in names)
    may_be_a_step = are_told or STEP_WORD.search(shard["stem"] + "-")
    if may_be_a_step and not all(file.is_file() for file in shards):
        return path, (path,)
    return path.with_name(shard["stem"] + suffix), existing(shards, path)


def _check_rising(series: Sequence[Checkpoint]) -> None:
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in series:
        if other := by_step.get(checkpoint.step):
            raise CheckpointError(
                f"{other.path} and {checkpoint.path} both have step {checkpoint.step}; leave one "
                f"out, or say where the step is with a step pattern, or give the steps"
            )
        by_step[checkpoint.step] = checkpoint
    for before, after in pairwise(series):
        if after.step < before.step:
            raise CheckpointError(
                f"the steps are out of order: {after.path} (step {after.step}) comes after "
                f"{before.path} (step {before.step}); sort the list"
            )
