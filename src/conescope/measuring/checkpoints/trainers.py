"""The model's state dict is found in what a trainer saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.state import StateDict, is_extra_state, state_dict

_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "model_state",
         "net_state_dict")  # fmt: skip
_VAGUE = ("params", "weights")
_AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema",
             "model_ema_state_dict", "params_ema")  # fmt: skip


def state_dict_in(content: Any, file: Path) -> StateDict:
    """The state dict that a file's content is, or holds under one of the usual keys.

    Where the averaged weights of the model are beside those that it trains, the latter are taken.

    Args:
        content: what `torch.load` returned.
        file: what it was read from, for messages.

    Raises:
        CheckpointError: if there is none, or several to choose from.
    """
    if not isinstance(content, Mapping):
        raise _no_state_dict(content, file)
    if _is_state_dict(content) and all(isinstance(value, Tensor) for value in content.values()):
        return state_dict(content)
    for keys in (_KEYS, _VAGUE, _AVERAGES):
        held = [key for key in keys if _is_state_dict(content.get(key))]
        if len(held) > 1:
            raise CheckpointError(
                f"{file} holds several state dicts, under the keys {', '.join(held)}; save the one "
                f"that is to be measured alone: torch.save(content[{held[0]!r}], …)"
            )
        if held:
            return state_dict(content[held[0]])
    if _is_state_dict(content):
        return state_dict(content)
    raise _no_state_dict(content, file)


def _is_state_dict(content: Any) -> bool:
    """Whether this is tensors by name, among which a module may have put other values.

    What `state_dict()` returned is known by its attribute, the versions of the modules.
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    has_versions = isinstance(getattr(content, "_metadata", None), Mapping)
    return any(isinstance(value, Tensor) for value in content.values()) and (
        has_versions
        or not any(_holds_tensors(value) for name, value in content.items() if _is_key(name))
    )


def _is_key(name: str) -> bool:
    """Whether a trainer may have chosen a name, rather than a module of a model."""
    return "." not in name and not is_extra_state(name)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(inner, Tensor | Mapping) for inner in value.values()
    )


def _no_state_dict(content: Any, file: Path) -> CheckpointError:
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
    return CheckpointError(
        f"{file} holds no state dict but a {type(content).__name__}"
        f"{f' with the keys {keys}' if keys else ''}; save model.state_dict(), alone or under "
        f"one of the keys {', '.join((*_KEYS, *_VAGUE))}"
    )
