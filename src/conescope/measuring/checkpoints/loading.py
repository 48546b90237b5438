"""Load weights into a model, all of them or none, and tell by a checksum which weights it holds."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conescope.engine.arguments import unwrapped
from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.translation import adapter_in_place, convert_on_trial, renamed
from conescope.measuring.checkpoints.trial import (
    Trial,
    is_pretrained,
    known_without_the_file,
    load_on_trial,
    needless_in_the_file,
    tied,
)
from conescope.measuring.checkpoints.weight_files import StateDict, is_extra_state

_BATCHES = "num_batches_tracked"
_SHOWN = 5


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    path: Path,
    own: Mapping[str, Any] | None = None,
) -> None:
    """Load weights into a model, if each has its place and each place its weight.

    The model loads them by its own `load_state_dict`, once a copy of it has done so on trial.

    Args:
        model: the model; it changes only if everything fits.
        weights: name → value, as `read_weights` gives them.
        path: the checkpoint, for messages.
        own: values for the names that the checkpoint may lack, see `own_state`; None to leave
            them as they are.

    Raises:
        CheckpointError: as `fitted`, or if a parameter is NaN or infinite.
    """
    trial = _fitting(model, weights, path, with_values=True)
    model = unwrapped(model)
    _check_finite(trial.values, {n for n, _ in model.named_buffers(remove_duplicate=False)}, path)
    kept = {n: copy.deepcopy(v) for n, v in (own or {}).items() if n not in trial.source}
    model.load_state_dict(StateDict({**kept, **trial.source}, trial.source.metadata), strict=False)


def fitted(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Find out whether weights fit a model, without loading them.

    They fit if the model's own `load_state_dict(strict=True)` takes them, with all the names that
    its hooks translate; or, for a model of transformers, if `from_pretrained` would. Real numbers
    may have another precision than the model's; whole numbers in their place (as quantised weights
    are stored) are refused.

    What wrappers put before the names is understood, in file and model alike: `module.`
    (DataParallel, DistributedDataParallel), `model.` (Lightning and other trainers),
    `_orig_mod.` (torch.compile), and combinations. Of a tied weight one name is enough. A module's
    extra state may be missing: the module then keeps its own. An adapter by peft fits a model that
    holds one, whose other weights stay.

    Args:
        model: the model; it stays as it is.
        weights: name → value; values are looked at only where two names or two buffers have to
            agree.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: if names are missing or unexpected, shapes or kinds of number differ,
            tied weights do, or the model's own loading raises an error.
    """
    _fitting(model, weights, path, with_values=False)


def own_state(model: nn.Module) -> dict[str, Any]:
    """Copy what a model holds under the names that a checkpoint may lack.

    These are the extra state of modules, BatchNorm's count of batches, and what a transformers
    model has by itself.

    Returns:
        Name → a copy of the value, under the names without the model's outermost wrapper.
    """
    model = unwrapped(model)
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    values = model.state_dict()
    may_lack = known_without_the_file(model, values)
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in values.items()
        if name not in trained
        and (name in may_lack or is_extra_state(name) or name.rpartition(".")[2] == _BATCHES)
    }


def fingerprint(model: nn.Module) -> str:
    """Compute a checksum of a model's weights, buffers and extra state.

    It is equal for equal names and values. Values that are no tensors count by their contents; of
    an object that is no plain value, only its type and its attributes of plain values count.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    checksum = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            checksum.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            checksum.update(_tensor_bytes(value))
        else:
            checksum.update(f"{name} ".encode())
            for part in _bytes_of(value):
                checksum.update(part)
    return checksum.hexdigest()


def _fitting(
    model: nn.Module, weights: Mapping[str, Any], path: Path, *, with_values: bool
) -> Trial:
    """Load on trial, and return the outcome if everything fits; see `fitted`."""
    model = unwrapped(model)
    places = StateDict(model.state_dict())
    is_adapter, left_out = False, set()
    if weights.keys() == places.keys():
        given = StateDict(weights)
    elif adapter := adapter_in_place(weights, places, path):
        is_adapter, (given, left_out) = True, adapter
    else:
        given = renamed(weights, places)
    trial = _excused(load_on_trial(model, given), model, given, left_out)
    if trial.objections() and not is_adapter:
        other = convert_on_trial(model, given, with_values=with_values)
        if other is not None:
            other = _excused(other, model, given, left_out)
            trial = min(trial, other, key=Trial.objections)
    for names in tied(places):
        _check_tie(trial.values, names, path)
    _check_fit(trial, given, places, path, is_pretrained(model))
    return trial


def _excused(trial: Trial, model: nn.Module, given: StateDict, left_out: set[str]) -> Trial:
    """Remove from a trial the objections that do not matter."""
    needless = needless_in_the_file(model, given, trial.unexpected)
    trial.unexpected = [name for name in trial.unexpected if name not in needless]
    excused = left_out | known_without_the_file(model, trial.missing)
    for names in tied(model.state_dict()):
        if not {*names} <= {*trial.missing}:
            excused |= {*names}
    trial.missing = [n for n in trial.missing if n not in excused and not is_extra_state(n)]
    return trial


def _check_fit(
    trial: Trial, given: StateDict, places: StateDict, path: Path, is_transformers: bool
) -> None:
    wrong_kind = [
        name
        for name, value in {**trial.values, **given}.items()
        if isinstance(value, Tensor)
        and isinstance(place := places.get(name), Tensor)
        and _kind(value) != _kind(place)
    ]
    mismatched = dict.fromkeys(n for n in [*given, *trial.mismatched] if n in trial.mismatched)
    mismatched |= dict.fromkeys(wrong_kind)
    difference = [
        _listed("missing in the file", trial.missing),
        _listed("unexpected in the file", trial.unexpected),
        _listed("of another shape or kind", [_compared(n, given, places) for n in mismatched]),
        _listed("refused by the model", trial.errors),
    ]
    if any(difference):
        cure = "build the model that was saved, with the same sizes"
        if is_transformers:
            cure += (
                ", or read the checkpoint by from_pretrained and save it again: "
                "torch.save(model.state_dict(), …)"
            )
        raise CheckpointError(
            f"{path} does not fit the model, and nothing of it was loaded: "
            f"{'; '.join(filter(None, difference))}; {cure}"
        )


def _compared(name: str, given: StateDict, places: StateDict) -> str:
    def described(value: Any) -> str:
        if not isinstance(value, Tensor):
            return type(value).__name__
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"

    if name not in given or name not in places:
        return f"{name} (after the model's own conversion)"
    return f"{name} ({described(given[name])} in the file, {described(places[name])} in the model)"


def _check_tie(found: StateDict, names: Sequence[str], path: Path) -> None:
    held = [name for name in names if name in found and not found[name].is_meta]
    for name in held[1:]:
        if not torch.equal(found[name], found[held[0]]):
            raise CheckpointError(
                f"{path} does not fit the model: {held[0]} and {name} are one tied weight in the "
                f"model, but differ in the file; build the model without the tie"
            )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Tell real, complex and whole numbers apart."""
    return tensor.is_floating_point(), tensor.is_complex()


def _listed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title} ({len(items)}): {', '.join(items[:_SHOWN])}{more}"


def _check_finite(weights: StateDict, buffers: Iterable[str], path: Path) -> None:
    bad = [
        name
        for name, value in weights.items()
        if isinstance(value, Tensor)
        and name not in buffers
        and not is_extra_state(name)
        and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinite weights: {_listed('not finite', bad)}; "
            f"leave this checkpoint out, and look at the training before it"
        )


def _bytes_of(
    value: Any, inside: tuple[int, ...] = (), is_attribute: bool = False
) -> Iterator[bytes | memoryview]:
    """Turn a value into bytes that are equal for equal values, in every process.

    Covered are None, numbers, texts, bytes, tensors and arrays, and whatever lists, tuples, sets
    and dicts (in any order) hold of them. Of another object the type is covered, and the attributes
    as far as they are such values. Left out is what it holds beside its attributes, and what the
    objects among its attributes hold.

    Args:
        value: anything that a state dict may hold.
        inside: the ids of the containers around it, so that one that holds itself ends.
        is_attribute: whether one of them is an object with attributes.
    """
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}(".encode()
    within = (*inside, id(value))
    if id(value) in inside:
        yield b"itself"
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        yield _tensor_bytes(value)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    elif value is None or isinstance(value, str | bytes | bytearray | int | float | complex):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, torch.dtype | torch.device | torch.Size):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        yield from sorted(_whole((k, v), within, is_attribute) for k, v in value.items())
    elif isinstance(value, list | tuple):
        yield from (_whole(item, within, is_attribute) for item in value)
    elif isinstance(value, set | frozenset):
        yield from sorted(_whole(item, within, is_attribute) for item in value)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif hasattr(value, "__dict__") and not is_attribute:
        yield _whole(vars(value), within, True)
    yield b")"


def _tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values, in their order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _whole(value: Any, inside: tuple[int, ...], is_attribute: bool) -> bytes:
    return b"".join(_bytes_of(value, inside, is_attribute)) + b","
