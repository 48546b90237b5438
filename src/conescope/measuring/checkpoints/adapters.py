"""Adapters that peft wrote: a few tensors for a model whose other weights stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.state import StateDict

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""The files in which peft saves an adapter."""

_PARTS = re.compile(r"(?:lora_|ia3_|vera_|hada_|lokr_|oft_|ln_tuning_)\w+")
_BASE = "base_model.model."


def adapter_places(names: Iterable[str]) -> dict[str, list[str]]:
    """The name that peft gives a weight in a file → its names in a model that holds adapters.

    In the model the adapter's own name, mostly `default`, follows the part of the name that says
    `lora_A` or the like, or `modules_to_save`; in the file it is left out.
    """
    places: dict[str, list[str]] = {}
    for name in names:
        parts = name.removeprefix(_BASE).split(".")
        for at, part in enumerate(parts[:-1]):
            if part == "modules_to_save":
                short = [*parts[:at], *parts[at + 2 :]]
            elif _PARTS.fullmatch(part) and len(parts) > at + 1:
                has_name = parts[at + 1] not in ("weight", "bias")
                short = [*parts[: at + 1], *parts[at + 2 if has_name else at + 1 :]]
            else:
                continue
            places.setdefault(".".join(short), []).append(name)
            break
    return places


def adapter_in_place(
    weights: Mapping[str, Any], places: Mapping[str, Any], path: Path
) -> tuple[StateDict, set[str]] | None:
    """An adapter under the model's names, and the model's names that it leaves as they are.

    Args:
        weights: what the file holds.
        places: the model's state dict.
        path: the checkpoint, for messages; a file that peft names so is an adapter.

    Returns:
        None if the checkpoint is no adapter alone.

    Raises:
        CheckpointError: if the model holds no adapter, or several, or its adapter and the file's
            have other names.
    """
    ours = adapter_places(places)
    theirs = {name.removeprefix(_BASE): name for name in weights}
    marked = {name for name in theirs if any(map(_PARTS.fullmatch, name.split(".")))}
    if path.name not in ADAPTER_FILES and not (marked and theirs.keys() <= marked | ours.keys()):
        return None
    if not ours:
        raise CheckpointError(
            f"{path} is an adapter alone, and the model holds none; build the model with one: "
            f"peft.PeftModel.from_pretrained(base, folder), or peft.get_peft_model(base, config)"
        )
    if several := [names for names in ours.values() if len(names) > 1]:
        raise CheckpointError(
            f"{path} is an adapter alone, and the model holds several: {', '.join(several[0])}; "
            f"build the model with one"
        )
    full = {names[0].removeprefix(_BASE): names[0] for names in ours.values()}
    known = {short: names[0] for short, names in ours.items()} | full
    placed = {known[name]: weights[theirs[name]] for name in theirs if name in known}
    unknown = [theirs[name] for name in theirs if name not in known]
    lacking = [names[0] for names in ours.values() if names[0] not in placed]
    if unknown or lacking:
        raise CheckpointError(
            f"{path} is an adapter that does not fit the one in the model, and nothing of it was "
            f"loaded: the file lacks {_some(lacking)}, and the model {_some(unknown)}; build the "
            f"model by the adapter's own adapter_config.json"
        )
    return StateDict(placed), {name for name in places if name not in placed}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + more
