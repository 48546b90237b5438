"""Loading on trial: what a model's own `load_state_dict` makes of a checkpoint.

Modules may translate names and values when they load, by hooks or by methods of their own, so
names cannot be compared before the model has had its say. It has it on a copy whose tensors are on
the meta device: they have shapes and no values, and what is loaded takes their places uncopied.
"""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from conescope.measuring.checkpoints.state import StateDict, state_dict

RAISED = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError,
    ArithmeticError,
)  # fmt: skip
"""The errors that tell, while a checkpoint is loaded, that it does not fit."""

_UNCOPYABLE = (
    TypeError, RuntimeError, ValueError, AttributeError, pickle.PicklingError, copy.Error
)  # fmt: skip
_NAMED = re.compile(r'size mismatch for ([^\s:]+):|parameter named "([^"]+)"')


@dataclass
class Trial:
    """The outcome of loading a checkpoint into a copy of a model.

    Attributes:
        values: what was loaded, under the names of the model's state dict.
        source: what to hand to the model's `load_state_dict` to load it in earnest.
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
    """A copy of a model whose parameters and buffers are on the meta device and hold nothing."""
    tensors = [*model.parameters(), *model.buffers()]
    return _copied(model, {id(t): _on_meta(t) for t in tensors if not _is_lazy(t)})


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy but for what is in `memo`; what cannot be copied, such as a lock, is shared."""
    try:
        return copy.deepcopy(model, dict(memo))
    except _UNCOPYABLE:
        shared = memo | {id(value): value for value in _uncopyable(model, memo)}
        return copy.deepcopy(model, shared)


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> Iterable[Any]:
    """The values of attributes that cannot be copied, of all modules of a model."""
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
    """Load into a copy; gives what came of it, and whether the copy's values did not matter."""
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
            loaded = state_dict(copied.state_dict())
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
    """A hook that takes down the lists in which modules note what does not fit."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.errors: list[str] = []

    def __call__(self, *arguments: Any) -> None:
        """See `torch.nn.Module.register_load_state_dict_pre_hook`."""
        *_, self.missing, self.unexpected, self.errors = arguments


def is_of_another_kind(value: Tensor, place: Tensor) -> bool:
    """Whether one of them holds real, complex or whole numbers and the other does not."""
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (value, place)]
    return kinds[0] != kinds[1]


def tied(places: StateDict) -> list[list[str]]:
    """The names that share one tensor, for each tensor that has several."""
    ties: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, place in places.items():
        if not isinstance(place, Tensor) or _is_lazy(place) or place.is_meta:
            continue
        if place.numel():
            ties.setdefault((place.data_ptr(), place.shape, place.stride()), []).append(name)
    return [names for names in ties.values() if len(names) > 1]
