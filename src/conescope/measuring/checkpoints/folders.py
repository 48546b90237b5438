"""Folders of checkpoints: which file holds the weights, or which tool makes such a file."""

from __future__ import annotations

import json
from pathlib import Path

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.adapters import ADAPTER_FILES

_WHOLE = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*_WHOLE, *ADAPTER_FILES)
"""The files in which transformers and peft keep the weights of a folder."""

_SHOWN = 3


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder is one checkpoint, be it of a kind that can be read or not."""
    return holds_weights(folder) or _converter(folder) is not None


def holds_weights(folder: Path) -> bool:
    """Whether a folder is one checkpoint that can be read."""
    return _weights_in(folder) is not None


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights.

    Raises:
        CheckpointError: if there are none, or a shard is missing; for the folders of
            torch.distributed.checkpoint and of DeepSpeed it names the tool that converts them.
    """
    weights = _weights_in(folder)
    if weights is None:
        raise CheckpointError(
            _converter(folder) or f"{folder} holds neither {' nor '.join(WEIGHTS)}; leave it out"
        )
    return (weights,) if weights.suffix != ".json" else existing(_indexed(weights), weights)


def existing(shards: tuple[Path, ...], named_by: Path) -> tuple[Path, ...]:
    """The shards of one checkpoint.

    Raises:
        CheckpointError: if one is missing.
    """
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        verb = "is" if len(missing) == 1 else "are"
        raise CheckpointError(
            f"{named_by} is one part of a whole of {len(shards)}, and "
            f"{', '.join(missing[:_SHOWN])}{more} {verb} missing; copy what is missing, too, or, "
            f"if the number is a step and each file a whole, give a step pattern or the steps"
        )
    return shards


def how_to_convert(file: Path) -> str | None:
    """Say what to do with a file of a distributed checkpoint; None if it is no such file."""
    if file.suffix == ".distcp" or file.name == ".metadata":
        return _of_distributed(file.parent, file)
    return None


def _weights_in(folder: Path) -> Path | None:
    """The file that holds a folder's weights, or says which files do."""
    names = [name for weights in _WHOLE for name in (weights, f"{weights}.index.json")]
    return next((folder / n for n in (*names, *ADAPTER_FILES) if (folder / n).is_file()), None)


def _converter(folder: Path) -> str | None:
    """Say how a folder of a kind that is not read becomes a file; None for other folders."""
    for inner in (folder, folder / "pytorch_model_fsdp_0"):
        if (inner / ".metadata").is_file() or any(inner.glob("*.distcp")):
            return _of_distributed(inner, folder)
    deepspeed = ("zero_to_fp32.py", "global_step*", "*_model_states.pt")
    if any(any(folder.glob(pattern)) for pattern in deepspeed):
        whole = folder.parent if any(folder.glob("*_model_states.pt")) else folder
        return (
            f"{folder} is a checkpoint of DeepSpeed, whose weights are in parts; join them by the "
            f"script that it wrote beside them, and measure the result: "
            f"python {whole / 'zero_to_fp32.py'} {whole} {folder}-whole"
        )
    return None


def _of_distributed(folder: Path, named: Path) -> str:
    """Say how to convert one; torch reads these by a pickle that may run code, so we do not."""
    return (
        f"{named} is of torch.distributed.checkpoint, and was not opened: what is in it is listed "
        f"by a pickle that may run code. If you trust where it is from, convert it by "
        f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and measure the result: "
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pt"
    )


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
