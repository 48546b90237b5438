"""A model from `package.module:callable`: code that runs because the user names it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from conescope.errors import ModelError


def import_model(name: str) -> nn.Module:
    """Import and call what builds a model.

    Modules are looked for in the current folder, too, as `python -m` does. What the user's own
    code raises comes through as it is.

    Args:
        name: `package.module:build`, where `build()` returns the model (or is the model).

    Raises:
        ModelError: if the name is malformed, there is no such module or attribute, or it gives no
            torch.nn.Module.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(
        map(str.isidentifier, [*module_name.split("."), *attribute.split(".")])
    ):
        raise ModelError(f"the model {name!r} is not of the form package.module:callable")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"there is no module {error.name!r} for the model {name!r}; run from the folder that "
            f"holds it, or install it"
        ) from None
    try:
        build: Any = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"{module_name} has no {attribute!r}{hint}") from None
    return build_model(build, name)


def build_model(build: Callable[[], nn.Module] | nn.Module, name: str) -> nn.Module:
    """The model that `build` returns, or is.

    Raises:
        ModelError: if it is none.
    """
    model = build() if callable(build) and not isinstance(build, nn.Module) else build
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module")
    return model
