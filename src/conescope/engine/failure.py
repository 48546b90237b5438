"""Texts for errors: what went wrong in somebody's code, and which module or hook raised it."""

from __future__ import annotations

import functools
import traceback
from types import CodeType
from typing import Any

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def shown(model: nn.Module, name: str) -> str:
    """A name of a parameter or module as its owner knows it, without what conescope's wrapper adds.

    Args:
        model: the model that the engine was given; a wrapper says in `wrapped_as` under which name
            it holds its user's model.
        name: in that model.
    """
    prefix = getattr(model, "wrapped_as", None)
    if prefix is None:
        return name
    return "" if name == prefix else name.removeprefix(f"{prefix}.")


def describe_failure(error: BaseException, model: nn.Module) -> str:
    """An error as one line, with the hook in which it was raised, if it was in one.

    Args:
        error: as it was caught.
        model: whose modules may carry hooks of other libraries.
    """
    said = (str(error).strip() or "no message").splitlines()[0]
    told = f"{type(error).__name__}: {said}"
    hooks = _hooks(model)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in hooks:
            module, package = hooks[frame.f_code]
            return (
                f"{told}, raised by a hook of {package} on module {module!r}; remove that hook, or "
                f"measure the model without {package}'s wrapper"
            )
    return told


def _hooks(model: nn.Module) -> dict[CodeType, tuple[str, str]]:
    """Code of a hook → the module on which it is, and the package that it is from."""
    found: dict[CodeType, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for kind in _HOOKS:
            for hook in getattr(module, kind).values():
                function = _function(hook)
                code = getattr(function, "__code__", None)
                if isinstance(code, CodeType):
                    package = (getattr(function, "__module__", None) or "?").partition(".")[0]
                    found.setdefault(code, (shown(model, name), package))
    return found


def _function(hook: Any) -> Any:
    """The function behind partial applications, methods and objects that can be called."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    if not hasattr(hook, "__code__") and hasattr(type(hook), "__call__"):  # noqa: B004
        hook = getattr(type(hook).__call__, "__func__", type(hook).__call__)
    return hook
