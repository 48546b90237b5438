"""Load a checkpoint on trial into a copy of the model, and collect what does not fit.

Modules may translate names and values when they load, by hooks or by methods of their own, so
names cannot be compared before the model's own code has run. It runs on a copy whose tensors are on
the meta device: they have shapes and no values, and what is loaded takes their places uncopied.
"""

from __future__ import annotations

import copy
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from conescope.measuring.checkpoints.weight_files import StateDict

RAISED = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError,
    ArithmeticError,
)  # fmt: skip
"""The errors that tell, while a checkpoint is loaded, that it does not fit."""

_UNCOPYABLE = (
    TypeError, RuntimeError, ValueError, AttributeError, pickle.PicklingError, copy.Error
)  # fmt: skip
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"(^|\.)masked_bias$")
_TOLERANCE = 1e-2  # relative, between a buffer and what a half-precision file has of it
_NAMED = re.compile(r'size mismatch for ([^\s:]+):|parameter named "([^"]+)"')


@dataclass
class Trial:
    """The outcome of loading a checkpoint into a copy of a model.

    Attributes:
        values: what was loaded, under the names of the model's state dict.
        source: what to hand to the `load_state_dict` of the model itself.
        missing: names that the checkpoint should have had.
        unexpected: names that have no place in the model.
        mismatched: names whose values do not fit their places, by shape or kind.
        errors: whatever else was said against loading.
    """

    values: StateDict
    source: StateDict
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def objections(self) -> int:
        """Count what speaks against loading the checkpoint; 0 if it fits."""
        kinds = (self.missing, self.unexpected, self.mismatched, self.errors)
        return sum(map(len, kinds))


def load_on_trial(model: nn.Module, weights: StateDict) -> Trial:
    """Load a checkpoint into a copy of a model by the model's own `load_state_dict`.

    A full copy is made only if the model's code has to read or write values while it loads.

    Args:
        model: the model; it stays as it is.
        weights: the checkpoint under the model's names, or those that its hooks translate.
    """
    if not weights:
        return Trial(weights, weights, missing=[*model.state_dict()])
    trial, is_sure = _load(empty_copy(model), weights)
    if is_sure:
        return trial
    return _load(_copied(model, {}), weights)[0]


def empty_copy(model: nn.Module) -> nn.Module:
    """Copy a model, with parameters and buffers on the meta device, where they have no values."""
    tensors = [*model.parameters(), *model.buffers()]
    return _copied(model, {id(t): _on_meta(t) for t in tensors if not _is_lazy(t)})


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a model is one of transformers' own, which `from_pretrained` could read."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing what it loads, and a progress bar, to the terminal."""
    from transformers.utils import logging

    level, was_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()


def needless_in_the_file(model: nn.Module, weights: StateDict, names: Iterable[str]) -> set[str]:
    """Return those of a checkpoint's unexpected names that the model does not need.

    These are names that a transformers model in `model` leaves out when it loads
    (`_keys_to_ignore_on_load_unexpected`, and the constants of masks and positions that all its
    models once saved), and buffers that any module holds without saving them, if the checkpoint
    has the same values.
    """
    persistent = {*model.state_dict()}
    computed = {n: b for n, b in model.named_buffers() if n not in persistent}
    patterns = [*_patterns(model, "_keys_to_ignore_on_load_unexpected")]
    for path, module in model.named_modules():
        if is_pretrained(module):
            patterns += [(f"{path}." if path else "", old) for old in _OLD_BUFFERS]
    return {
        name
        for name in names
        if _matches(name, patterns)
        or (name in computed and _is_same(weights.get(name), computed[name]))
    }


def known_without_the_file(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return those of the names missing in a checkpoint whose values the model has by itself.

    These are buffers and frozen parameters that a transformers model does not miss
    (`_keys_to_ignore_on_load_missing`). What trains is never among them.
    """
    patterns = [*_patterns(model, "_keys_to_ignore_on_load_missing")]
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name for name in names if name not in trained and _matches(name, patterns)}


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy all but what is in `memo`; what cannot be copied, such as a lock, is shared."""
    try:
        return copy.deepcopy(model, dict(memo))
    except _UNCOPYABLE:
        shared = memo | {id(value): value for value in _uncopyable(model, memo)}
        return copy.deepcopy(model, shared)


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> Iterable[Any]:
    """Find the attributes' values that cannot be copied, in all modules of a model."""
    memo = memo | {id(module): module for module in model.modules()}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except _UNCOPYABLE:
                yield value


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty


def _load(copied: nn.Module, weights: StateDict) -> tuple[Trial, bool]:
    """Load into a copy; return the outcome, and whether the copy's own values played no part."""
    lists = _Lists()
    for module in copied.modules():
        module.register_load_state_dict_pre_hook(lists)
    plain = {n: v if isinstance(v, Tensor) else copy.deepcopy(v) for n, v in weights.items()}
    state = StateDict(plain)
    for path, _ in copied.named_modules(remove_duplicate=False):
        state.metadata[path] = {**weights.metadata.get(path, {}), "assign_to_params_buffers": True}
    raised, loaded = "", state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of copies to the meta device
        try:
            copied.load_state_dict(state, strict=False)
            loaded = StateDict(copied.state_dict())
        except RAISED as error:
            raised = f"{type(error).__name__}: {error}"
    trial = Trial(StateDict({}), weights, [*lists.missing], [*lists.unexpected])
    for message in lists.errors:
        named = _NAMED.search(message)
        (trial.mismatched if named else trial.errors).append(
            (named[1] or named[2]) if named else message
        )
    if raised:
        if not lists.errors:
            trial.errors.append(f"the model's own loading raised {raised}")
        return trial, bool(lists.errors)
    empty = {name for name, v in loaded.items() if isinstance(v, Tensor) and v.is_meta}
    kept = {n: v for n, v in loaded.items() if n not in empty | {*trial.missing}}
    trial.values = StateDict(kept, loaded.metadata)
    return trial, not empty - {*trial.missing}


class _Lists:
    """A hook that keeps the lists in which modules note what does not fit."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.errors: list[str] = []

    def __call__(self, *arguments: Any) -> None:
        """Keep the lists, see `torch.nn.Module.register_load_state_dict_pre_hook`."""
        *_, self.missing, self.unexpected, self.errors = arguments


def tied(places: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of each tensor that has several in a state dict."""
    ties: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, place in places.items():
        if not isinstance(place, Tensor) or _is_lazy(place) or place.is_meta:
            continue
        if place.numel():
            ties.setdefault((place.data_ptr(), place.shape, place.stride()), []).append(name)
    return [names for names in ties.values() if len(names) > 1]


def _patterns(model: nn.Module, attribute: str) -> Iterator[tuple[str, str]]:
    """Find the patterns in an attribute of each module, with the path at which they hold."""
    for path, module in model.named_modules():
        for pattern in getattr(module, attribute, None) or ():
            yield f"{path}." if path else "", pattern


def _matches(name: str, patterns: Iterable[tuple[str, str]]) -> bool:
    return any(
        name.startswith(prefix) and re.search(pattern, name.removeprefix(prefix))
        for prefix, pattern in patterns
    )


def _is_same(value: Any, buffer: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != buffer.shape:
        return False
    both = value.detach().cpu().double(), buffer.detach().cpu().double()
    return torch.allclose(*both, rtol=_TOLERANCE, atol=0, equal_nan=True)
