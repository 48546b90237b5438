"""The names in a checkpoint, turned into those of a model whose wrappers are others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conescope.measuring.checkpoints.state import StateDict, state_dict

_WRAPPERS = ("module", "model", "net", "network")
_INSIDE = (  # what wrappers of any part of a model put into the names below
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"
)  # fmt: skip


def renamed(weights: Mapping[str, Any], places: Iterable[str]) -> StateDict:
    """A checkpoint under the names that it has in the model, if wrappers make all the difference.

    Understood are `module.` (DataParallel, DistributedDataParallel), `model.`, `net.` and
    `network.` (Lightning and other trainers), `_orig_mod.` (torch.compile) and what sharding and
    activation checkpointing write, and combinations, in the checkpoint and in the model.
    A name that the model does not have is put beside those that it has: the module may know it
    under its old name. The versions of the modules go with their names.

    Args:
        weights: name → value.
        places: the names in the model's state dict.
    """
    pairs = [(theirs, ours) for theirs in _bare(weights) for ours in _bare(places)]
    theirs, ours = min(pairs, key=lambda pair: len(pair[0].keys() ^ pair[1].keys()))
    modules = _modules(ours)
    values = {ours.get(bare) or _beside(bare, modules): weights[n] for bare, n in theirs.items()}
    noted = state_dict(weights).metadata
    metadata = {
        _beside(bare, modules): noted[path]
        for bare, path in _modules(theirs).items()
        if path in noted
    }
    return StateDict(values, metadata)


def _bare(names: Iterable[str]) -> list[dict[str, str]]:
    """Name without wrappers → name, once for each number of wrappers that can be taken off."""
    names = list(names)
    paths = [tuple(part for part in name.split(".") if part not in _INSIDE) for name in names]
    if len(set(paths)) < len(paths):
        return [dict(zip(names, names, strict=True))]
    found = [paths]
    while _are_wrapped(paths):
        paths = [path[1:] for path in paths]
        found.append(paths)
    return [dict(zip(map(".".join, paths), names, strict=True)) for paths in found]


def _are_wrapped(paths: Iterable[tuple[str, ...]]) -> bool:
    first = {path[0] if len(path) > 1 else "" for path in paths}
    return len(first) == 1 and first <= {*_WRAPPERS}


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Module path without wrappers → module path, of all modules that some names are in."""
    modules: dict[str, str] = {}
    for bare, full in names.items():
        bare_parts, full_parts = bare.split("."), full.split(".")
        while bare_parts:
            part = bare_parts.pop()
            while full_parts and full_parts.pop() != part:
                pass
            modules.setdefault(".".join(bare_parts), ".".join(full_parts))
    return modules


def _beside(bare: str, modules: Mapping[str, str]) -> str:
    """The path that a bare name has in the innermost of the modules that it names."""
    parts = bare.split(".") if bare else []
    for length in range(len(parts), -1, -1):
        if (module := modules.get(".".join(parts[:length]))) is not None:
            return ".".join([*([module] if module else []), *parts[length:]])
    return bare
