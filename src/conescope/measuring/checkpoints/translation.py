"""Translate a checkpoint whose names are not the model's: wrappers, peft, transformers.

Wrappers put words before and between the names. An adapter that peft wrote holds a few tensors for
a model whose other weights stay as they are, and leaves the adapter's name out. A model of
transformers says itself how old names are converted, and how weights that are written one by one
(the experts of a mixture) are fused; without the library, or in versions that have no conversions,
nothing is converted.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.trial import (
    RAISED,
    Trial,
    empty_copy,
    is_pretrained,
    quiet_transformers,
    tied,
)
from conescope.measuring.checkpoints.weight_files import StateDict, some_of

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""The files in which peft saves an adapter."""

_ADAPTER_PART = re.compile(
    r"(?:(?:rand)?lora_|ia3_|vera_|hada_|lokr_|b?oft_|hra_|ln_tuning_|fourierft_|miss_|shira_|c3a_"
    r"|road_|trainable_tokens_)\w+"
)
PEFT_PREFIX = "base_model.model."
"""The prefix that peft puts before the names of a base model's weights."""

_MAGNITUDE = "lora_magnitude_vector"  # whose `.weight` peft leaves out in a file
_OUTER_WRAPPERS = {"module", "model", "net", "network"}
_INNER_WRAPPERS = (  # of any part of a model; they stand between the names
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"
)  # fmt: skip


def renamed(weights: Mapping[str, Any], places: Iterable[str]) -> StateDict:
    """Give a checkpoint the names that it has in the model, if only wrappers make the difference.

    Understood are `module.` (DataParallel, DistributedDataParallel), `model.`, `net.` and
    `network.` (Lightning and other trainers), `_orig_mod.` (torch.compile) and what sharding and
    activation checkpointing write, and combinations, in the checkpoint and in the model.
    A name that the model does not have goes to the module that its first parts name, which may
    know it under its old name. The versions of the modules go with their names.

    Args:
        weights: name → value.
        places: the names in the model's state dict.
    """
    pairs = [(theirs, ours) for theirs in _bare(weights) for ours in _bare(places)]
    theirs, ours = min(pairs, key=lambda pair: len(pair[0].keys() ^ pair[1].keys()))
    modules = _modules(ours)
    values = {ours.get(bare) or _inside(bare, modules): weights[n] for bare, n in theirs.items()}
    noted = StateDict(weights).metadata
    metadata = {
        _inside(bare, modules): noted[path]
        for bare, path in _modules(theirs).items()
        if path in noted
    }
    return StateDict(values, metadata)


def convert_on_trial(model: nn.Module, weights: StateDict, *, with_values: bool) -> Trial | None:
    """Load a checkpoint into a copy of a transformers model as `from_pretrained` would.

    Args:
        model: the model; it stays as it is.
        weights: the checkpoint.
        with_values: whether the trial's values are wanted, or only their names and shapes.

    Returns:
        The outcome; None if the model is none of transformers', the library is too old, or it
        cannot make sense of the checkpoint.
    """
    library = _library() if is_pretrained(model) else None
    if library is None:
        return None
    conversions, convert, config = library
    copied: Any = empty_copy(model)
    tensors = {n: v for n, v in weights.items() if isinstance(v, Tensor)}
    if not with_values:
        tensors = {name: value.to("meta") for name, value in tensors.items()}
    places = {"": "cpu" if with_values else "meta"}
    with torch.no_grad(), quiet_transformers():
        settings = config(device_map=places, weight_mapping=conversions(copied))
        try:
            info, _ = convert(model=copied, state_dict=tensors, load_config=settings)
        except RAISED:
            return None
    missing, unexpected = {*info.missing_keys}, {*info.unexpected_keys}
    mismatched = {name for name, *_ in info.mismatched_keys}
    kept = StateDict(copied.state_dict(), metadata={})
    for name in missing | mismatched:
        kept.pop(name, None)
    for name, value in weights.items():
        if name in missing and name not in tensors:
            kept[name] = value
            missing.discard(name)
        elif name not in tensors and name not in kept:
            unexpected.add(name)
    errors = [f"{n}: {text.splitlines()[-1]}" for n, text in info.conversion_errors.items()]
    unexpected -= _heads(model, unexpected, weights)
    return Trial(kept, kept, sorted(missing), sorted(unexpected), sorted(mismatched), errors)


def _library() -> tuple[Any, Any, Any] | None:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
    except ImportError:
        return None
    if "load_config" not in inspect.signature(convert_and_load_state_dict_in_model).parameters:
        return None
    return get_model_conversion_mapping, convert_and_load_state_dict_in_model, LoadStateDictConfig


def _heads(model: Any, names: Iterable[str], weights: StateDict) -> set[str]:
    """List what a checkpoint holds beside a base model, if `model` is one: heads on top of it."""
    base = model.base_model_prefix
    if not base or hasattr(model, base) or not any(n.startswith(f"{base}.") for n in weights):
        return set()
    return {name for name in names if name in weights and not name.startswith(f"{base}.")}


def adapter_in_place(
    weights: Mapping[str, Any], places: Mapping[str, Any], path: Path
) -> tuple[StateDict, set[str]] | None:
    """Give an adapter the names that it has in a model, and list the names that it leaves alone.

    Args:
        weights: what the file holds.
        places: the model's state dict.
        path: the checkpoint, for messages; a file that peft names so is an adapter.

    Returns:
        The adapter, and the model's names whose weights stay; None if the checkpoint is no adapter
        alone.

    Raises:
        CheckpointError: if the model holds no adapter, or several, or its adapter and the file's
            have other names.
    """
    ours = _adapter_names(places)
    theirs = {
        name.removeprefix(PEFT_PREFIX).replace(f"{_MAGNITUDE}.weight", _MAGNITUDE): name
        for name in weights
    }
    marked = {name for name in theirs if any(map(_ADAPTER_PART.fullmatch, name.split(".")))}
    bare = {name.removeprefix(PEFT_PREFIX): name for name in places}
    is_adapter = marked and theirs.keys() <= marked | ours.keys()
    if marked & ours.keys():  # with weights of the base, such as embeddings of more tokens
        is_adapter = theirs.keys() <= marked | ours.keys() | bare.keys()
    if path.name not in ADAPTER_FILES and not is_adapter:
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
    full = {names[0].removeprefix(PEFT_PREFIX): names[0] for names in ours.values()}
    known = bare | {short: names[0] for short, names in ours.items()} | full
    placed = {known[name]: weights[theirs[name]] for name in theirs if name in known}
    unknown = [theirs[name] for name in theirs if name not in known]
    shared = {n for names in tied(places) for n in names if not placed.keys().isdisjoint(names)}
    lacking = [names[0] for names in ours.values() if names[0] not in placed.keys() | shared]
    if unknown or lacking:
        raise CheckpointError(
            f"{path} is an adapter that does not fit the one in the model, and nothing of it was "
            f"loaded: the file lacks {some_of(lacking) or 'nothing'}, and the model "
            f"{some_of(unknown) or 'nothing'}; build the model by the adapter's own "
            f"adapter_config.json"
        )
    return StateDict(placed), {name for name in places if name not in placed}


def _adapter_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Map the name that peft gives a weight in a file to its names in a model of adapters.

    In the model the adapter's own name, mostly `default`, follows the part of the name that says
    `lora_A` or the like, or `modules_to_save`; in the file it is left out.
    """
    places: dict[str, list[str]] = {}
    for name in names:
        parts = name.removeprefix(PEFT_PREFIX).split(".")
        for at, part in enumerate(parts[:-1]):
            if part == "modules_to_save":
                short = [*parts[:at], *parts[at + 2 :]]
            elif _ADAPTER_PART.fullmatch(part) and len(parts) > at + 1:
                has_name = parts[at + 1] not in ("weight", "bias")
                rest = parts[at + 2 if has_name else at + 1 :]
                short = [*parts[: at + 1], *([] if part == _MAGNITUDE else rest)]
            else:
                continue
            places.setdefault(".".join(short), []).append(name)
            break
    return places


def _bare(names: Iterable[str]) -> list[dict[str, str]]:
    """Map names without their 0, 1, 2 … outer wrappers to the names, one map for each number."""
    names = list(names)
    paths = [tuple(p for p in name.split(".") if p not in _INNER_WRAPPERS) for name in names]
    if len(set(paths)) < len(paths):
        return [dict(zip(names, names, strict=True))]
    found = [paths]
    while _are_wrapped(paths):
        paths = [path[1:] for path in paths]
        found.append(paths)
    return [dict(zip(map(".".join, paths), names, strict=True)) for paths in found]


def _are_wrapped(paths: Iterable[tuple[str, ...]]) -> bool:
    first = {path[0] if len(path) > 1 else "" for path in paths}
    return len(first) == 1 and first <= _OUTER_WRAPPERS


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Map the paths of all modules that some names are in, without wrappers, to their paths."""
    modules: dict[str, str] = {}
    for bare, full in names.items():
        bare_parts, full_parts = bare.split("."), full.split(".")
        while bare_parts:
            part = bare_parts.pop()
            while full_parts and full_parts.pop() != part:
                pass
            modules.setdefault(".".join(bare_parts), ".".join(full_parts))
    return modules


def _inside(bare: str, modules: Mapping[str, str]) -> str:
    """Return the path that a bare name has in the innermost of the modules that it names."""
    parts = bare.split(".") if bare else []
    for length in range(len(parts), -1, -1):
        if (module := modules.get(".".join(parts[:length]))) is not None:
            return ".".join([*([module] if module else []), *parts[length:]])
    return bare
