"""Weights into a model: all of them under the right names, or none and a readable difference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from conescope.errors import CheckpointError

_WRAPPERS = ("module", "model")
_COMPILED = "_orig_mod"
_SHOWN = 5


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a model, if each has its place and each place its weight.

    Args:
        model: the model; it changes only if everything fits.
        weights: name → value.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: as `fitted`, or if a parameter is NaN or infinite.
    """
    found = fitted(model, weights, path)
    _check_finite(found, dict(model.named_parameters()), path)
    model.load_state_dict(found)


def fitted(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights under the model's names, which are all there, each of the model's shape.

    Real numbers may have another precision than the model's; whole numbers in their place (as
    quantised weights are stored) are refused.

    What wrappers put before the names is understood, in file and model alike: `module.`
    (DataParallel, DistributedDataParallel), `model.` (Lightning and other trainers),
    `_orig_mod.` (torch.compile), and combinations. Of a tied weight one name is enough.

    Args:
        model: the model; it stays as it is.
        weights: name → value; only shapes are looked at, except for tied weights.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: if names are missing or unexpected, shapes or kinds of number differ, or
            tied weights do.
    """
    places = model.state_dict()
    found, unexpected = _renamed(weights, places)
    for names in _ties(places):
        _fill_tie(found, names, path)
    difference = [
        _listed("missing in the file", [name for name in places if name not in found]),
        _listed("unexpected in the file", unexpected),
        _listed("of another shape or kind", _other_shapes(found, places)),
    ]
    if any(difference):
        raise CheckpointError(
            f"{path} does not fit the model, and nothing of it was loaded:{''.join(difference)}\n"
            f"build the model that was saved, with the same sizes"
        )
    return found


def fingerprint(model: nn.Module) -> str:
    """A checksum of a model's weights and buffers; equal for equal names and values."""
    checksum = hashlib.sha256()
    for name, value in model.state_dict().items():
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        checksum.update(memoryview(data.numpy()))
    return checksum.hexdigest()


def _renamed(
    weights: Mapping[str, Tensor], places: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the model's names, and the names that it does not have."""
    pairs = [(theirs, ours) for theirs in _bare(weights) for ours in _bare(places)]
    theirs, ours = min(pairs, key=lambda pair: len(pair[0].keys() ^ pair[1].keys()))
    found = {ours[bare]: weights[name] for bare, name in theirs.items() if bare in ours}
    return found, [name for bare, name in theirs.items() if bare not in ours]


def _bare(names: Iterable[str]) -> list[dict[str, str]]:
    """Name without wrappers → name, once for each number of wrappers that can be taken off."""
    names = list(names)
    paths = [tuple(part for part in name.split(".") if part != _COMPILED) for name in names]
    if len(set(paths)) < len(paths):
        return [dict(zip(names, names, strict=True))]
    found = [paths]
    while len(first := {path[0] for path in paths}) == 1 and first <= {*_WRAPPERS}:
        paths = [path[1:] for path in paths]
        found.append(paths)
    return [dict(zip(map(".".join, paths), names, strict=True)) for paths in found]


def _other_shapes(found: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> list[str]:
    def told(tensor: Tensor) -> str:
        return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

    return [
        f"{name} ({told(value)} in the file, {told(places[name])} in the model)"
        for name, value in found.items()
        if value.shape != places[name].shape
        or value.is_floating_point() != places[name].is_floating_point()
    ]


def _ties(places: Mapping[str, Tensor]) -> list[list[str]]:
    """The names that share one tensor."""
    ties: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, place in places.items():
        ties.setdefault((place.data_ptr(), place.shape, place.stride()), []).append(name)
    return [names for (pointer, *_), names in ties.items() if pointer and len(names) > 1]


def _fill_tie(found: dict[str, Tensor], names: Sequence[str], path: Path) -> None:
    held = [name for name in names if name in found]
    for name in held[1:]:
        if not torch.equal(found[name], found[held[0]]):
            raise CheckpointError(
                f"{path} does not fit the model: {held[0]} and {name} are one tied weight in the "
                f"model, but differ in the file; build the model without the tie"
            )
    found |= {name: found[held[0]] for name in names if held}


def _listed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"\n  {title} ({len(items)}): {', '.join(items[:_SHOWN])}{more}"


def _check_finite(weights: Mapping[str, Tensor], parameters: Iterable[str], path: Path) -> None:
    bad = [name for name in parameters if not bool(torch.isfinite(weights[name]).all())]
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinite weights:{_listed('not finite', bad)}\n"
            f"leave this checkpoint out, and look at the training before it"
        )
