"""Find the checkpoints of a checkpoint source: a glob, a folder, or files and folders.

A folder is one checkpoint if transformers, peft, torch.distributed.checkpoint or DeepSpeed (up to
ZeRO stage 2) wrote it, or if it is of a kind that is refused with the name of the tool that
converts it; any other folder holds checkpoints.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.distributed_files import METADATA
from conescope.measuring.checkpoints.given_steps import Steps, given_steps
from conescope.measuring.checkpoints.steps import STEP_WORD, steps_of
from conescope.measuring.checkpoints.translation import ADAPTER_FILES
from conescope.measuring.checkpoints.weight_files import SUFFIXES, some_of, suffix_of
from conescope.runs.foreign import read_json

WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""The files in which transformers saves all weights of a model."""

_WEIGHTS = (*WHOLE_FILES, *ADAPTER_FILES)
_DEEPSPEED_STEPS, _DEEPSPEED_STATES = "global_step*", "*model_states.pt"
_DEEPSPEED_WHOLE = "mp_rank_00_model_states.pt"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model's weights, with its step.

    Attributes:
        step: the number in its name, or the one given for it, at least 0.
        path: its name: the file, the folder, or the common name of its shards.
        files: the files that hold its weights; several if they are sharded.
    """

    step: int
    path: Path
    files: tuple[Path, ...]


def find_checkpoints(
    source: str | Path | Collection[str | Path],
    step_pattern: str | None = None,
    steps: Steps | None = None,
) -> tuple[Checkpoint, ...]:
    r"""Find the checkpoints of a checkpoint source, each with its step.

    A checkpoint is a file (.safetensors, .pt, .pth, .bin or .ckpt, the last four also followed by
    .tar), a set of shards (`model-00001-of-00003.safetensors`), or a folder as transformers, peft,
    torch.distributed.checkpoint or DeepSpeed write it (`checkpoint-500/`). A folder that is none
    itself stands for the checkpoint folders in it or, if there are none, for the checkpoint files.

    Args:
        source: a glob such as `ckpts/*.safetensors`, a folder, or several: a list of checkpoints
            in the order of their steps, or a set of anything, which has no order.
        step_pattern: a regular expression whose one group is the step, such as `ckpt_(\d+)`;
            without it, see `steps_of`.
        steps: the steps themselves, see `given_steps`; None to read them from the names.

    Returns:
        The checkpoints, in the order of their steps.

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
            f"with {' or '.join(_WEIGHTS)}"
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
    own = _weights_in(path)
    if own is not None and own.parent != path and own.name != _DEEPSPEED_WHOLE:  # FSDP's
        return [path]
    inside = [p for p in path.iterdir() if not p.name.startswith(".")]
    folders = [p for p in inside if p.is_dir() and _is_checkpoint(p)]
    if folders and (any(map(_weights_in, folders)) or not own):
        return folders
    return [path] if _is_checkpoint(path) else [p for p in inside if suffix_of(p) in SUFFIXES]


def _grouped(paths: Iterable[str | Path], are_told: bool) -> dict[Path, tuple[Path, ...]]:
    """Map the name of each checkpoint to its files; the shards of one checkpoint are together."""
    found: dict[Path, tuple[Path, ...]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found[path] = files_in(path)
        elif not path.exists():
            raise CheckpointError(f"{path} does not exist; look for a typing mistake in its name")
        elif path.suffix == ".distcp" or path.name == METADATA:
            raise CheckpointError(f"{path} is part of a checkpoint; give its folder, {path.parent}")
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
    """Find the other shards of a checkpoint: their common name and all of them, or the file alone.

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
    return path.with_name(shard["stem"] + suffix), _existing(shards, path)


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


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one checkpoint, be it of a kind that can be read or not."""
    return _weights_in(folder) is not None or _converter(folder) is not None


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights of a folder that is one checkpoint.

    Raises:
        CheckpointError: if it is none, or a shard is missing.
    """
    weights = _weights_in(folder)
    if weights is None:
        raise CheckpointError(
            _converter(folder) or f"{folder} holds neither {' nor '.join(_WEIGHTS)}; leave it out"
        )
    return (weights,) if weights.suffix != ".json" else _existing(_indexed(weights), weights)


def _existing(shards: tuple[Path, ...], named_by: Path) -> tuple[Path, ...]:
    """Return the shards of one checkpoint, if none is missing."""
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        verb = "is" if len(missing) == 1 else "are"
        raise CheckpointError(
            f"{named_by} is one part of a whole of {len(shards)}, and "
            f"{some_of(missing)} {verb} missing; copy what is missing, too, or, "
            f"if the number is a step and each file a whole, give a step pattern or the steps"
        )
    return shards


def _weights_in(folder: Path) -> Path | None:
    """Find the file of a folder that holds its weights, or the index of the files that do."""
    names = [name for weights in WHOLE_FILES for name in (weights, f"{weights}.index.json")]
    names += [*ADAPTER_FILES, METADATA, f"pytorch_model_fsdp_0/{METADATA}"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    return found or _deepspeed_weights(folder)


def _deepspeed_weights(folder: Path) -> Path | None:
    """Find the one file in which DeepSpeed saved all weights, as it does up to ZeRO stage 2.

    It is in the folder or, with what DeepSpeed put beside it, in its one `global_step500`.
    Stage 3 and models in parts have several files of states; those are not read.
    """
    inner = [p for p in folder.glob(_DEEPSPEED_STEPS) if p.is_dir()]
    for place in (folder, *(inner if len(inner) == 1 else ())):
        if [p.name for p in place.glob(_DEEPSPEED_STATES)] == [_DEEPSPEED_WHOLE]:
            return place / _DEEPSPEED_WHOLE
    return None


def _converter(folder: Path) -> str | None:
    """Say how to convert a folder of a kind that is not read; return None for other folders."""
    for inner in (folder, folder / "pytorch_model_fsdp_0"):
        if any(inner.glob("*.distcp")):
            return f"{inner} lacks its list of contents, {METADATA}; copy it, too"
    deepspeed = ("zero_to_fp32.py", _DEEPSPEED_STEPS, _DEEPSPEED_STATES)
    if any(any(folder.glob(pattern)) for pattern in deepspeed):
        whole = folder.parent if any(folder.glob(_DEEPSPEED_STATES)) else folder
        return (
            f"{folder} is a checkpoint of DeepSpeed, whose weights are in parts; join them by the "
            f"script that it wrote beside them, and measure the result: "
            f"python {whole / 'zero_to_fp32.py'} {whole} {folder}-whole"
        )
    return None


def _indexed(index: Path) -> tuple[Path, ...]:
    """Read an index of shards, whose files have to be beside it."""
    try:
        names = set(read_json(index, CheckpointError)["weight_map"].values())
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{index} is no index of shards: its weight_map must give, for each weight, the "
            f"name of a file beside it"
        ) from None
    return tuple(index.with_name(name) for name in sorted(names))
