"""What transformers does beside `load_state_dict`, done here: names are left out and converted.

Its models say which names an old file may hold or lack, what their base model is called, and how
weights that are written one by one (the experts of a mixture) are fused. All of this is asked of
the installed library; without it, or in versions that have no conversions, nothing happens here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from conescope.measuring.checkpoints.state import StateDict
from conescope.measuring.checkpoints.trial import RAISED, Trial, empty_copy

_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"(^|\.)masked_bias$")
_TOLERANCE = 1e-2  # between a buffer and what a half-precision file has of it


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers' own, which `from_pretrained` could read."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


def left_out_of_the_model(model: nn.Module, weights: StateDict, names: Iterable[str]) -> set[str]:
    """Those of a checkpoint's unexpected names that no longer have a place, and need none.

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


def left_out_of_the_file(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the names missing in a checkpoint whose values a transformers model has by itself.

    These are buffers and frozen parameters that it does not miss
    (`_keys_to_ignore_on_load_missing`). What trains is never among them.
    """
    patterns = [*_patterns(model, "_keys_to_ignore_on_load_missing")]
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name for name in names if name not in trained and _matches(name, patterns)}


def convert_on_trial(model: nn.Module, weights: StateDict, *, with_values: bool) -> Trial | None:
    """Load a checkpoint into a copy of a transformers model as `from_pretrained` would.

    Args:
        model: the model; it stays as it is.
        weights: the checkpoint.
        with_values: whether the trial's values are wanted, or only their names and shapes.

    Returns:
        What came of it; None if the model is none of transformers', the library is too old, or it
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
    with torch.no_grad(), _without_progress_bar():
        settings = config(device_map=places, weight_mapping=conversions(copied))
        try:
            info, _ = convert(model=copied, state_dict=tensors, load_config=settings)
        except RAISED:
            return None
    missing, unexpected = {*info.missing_keys}, {*info.unexpected_keys}
    mismatched = {name for name, *_ in info.mismatched_keys}
    kept = StateDict(copied.state_dict())
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


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _heads(model: Any, names: Iterable[str], weights: StateDict) -> set[str]:
    """List what a checkpoint holds beside a base model, if `model` is one: heads on top of it."""
    base = model.base_model_prefix
    if not base or hasattr(model, base) or not any(n.startswith(f"{base}.") for n in weights):
        return set()
    return {name for name in names if name in weights and not name.startswith(f"{base}.")}


def _patterns(model: nn.Module, attribute: str) -> Iterator[tuple[str, str]]:
    """A pattern of names, and the place in the model of the module for which it holds."""
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
