"""A user's own code from `package.module:name`: it runs because the user names it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import reduce
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import nn

from conescope.errors import ConescopeError, ModelError


def import_object(name: str, what: str = "model", error: type[ConescopeError] = ModelError) -> Any:
    """Import what a name such as `package.module:build` stands for.

    Modules are looked for in the current folder, too, as `python -m` does. What the user's own
    code raises comes through as it is; what it prints on import goes to standard error.

    Args:
        name: the module, a colon, and the name in it.
        what: what it is for, in error messages.
        error: the class of the errors.

    Raises:
        ConescopeError: of the class `error`, if the name is malformed, there is no such module or
            attribute, another module of this name is imported already, or its import exits.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(
        map(str.isidentifier, [*module_name.split("."), *attribute.split(".")])
    ):
        raise error(
            f"the {what} {name!r} is not of the form package.module:callable; give the module, a "
            "colon and the name in it"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except SystemExit:
        raise error(
            f"{module_name}, which the {what} {name!r} names, exits when it is imported; put what "
            f"it does as a script below if __name__ == '__main__'"
        ) from None
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise
        raise error(
            f"there is no module {missing.name!r} for the {what} {name!r}; run from the folder "
            f"that holds it, or install it"
        ) from None
    _refuse_namesake(module_name.partition(".")[0], here, error)
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name what it has"
        raise error(f"{module_name} has no {attribute!r}; {hint}") from None


def _refuse_namesake(module: str, here: str, error: type[ConescopeError]) -> None:
    """Raise `error` if a module came from elsewhere, and the current folder holds one, too."""
    own = PathFinder.find_spec(module, [here])
    loaded = getattr(sys.modules[module], "__file__", None)
    if own is None or own.origin is None or module == "__main__":
        return
    if loaded is None or Path(own.origin).resolve() != Path(loaded).resolve():
        raise error(
            f"{own.origin} cannot be imported: the module {module!r} of {loaded or 'Python'} is "
            f"imported already; rename yours, or start a new Python process"
        )


def code_digest(name: str) -> str:
    """Return the sha256 of the file that defines what a name such as `package.module:build` means.

    Files that this file imports do not count.

    Raises:
        ModelError: if there is no such module or attribute.
    """
    found = import_object(name)
    is_defined = inspect.isclass(found) or inspect.isfunction(found)
    module = found.__module__ if is_defined else name.partition(":")[0]
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"


def import_model(name: str) -> nn.Module:
    """Import and call what builds a model.

    Args:
        name: `package.module:build`, where `build()` returns the model (or is the model).

    Raises:
        ModelError: if the name is malformed, there is no such module or attribute, or it gives no
            torch.nn.Module.
    """
    return build_model(import_object(name), name)


def build_model(build: Callable[[], nn.Module] | nn.Module, name: str) -> nn.Module:
    """Return the model that `build` returns, or is.

    Raises:
        ModelError: if it is none.
    """
    if callable(build) and not isinstance(build, nn.Module):
        try:
            inspect.signature(build).bind()
        except TypeError as error:
            raise ModelError(
                f"{name} cannot be called without arguments ({error}); give a function of none"
            ) from None
        except ValueError:  # a builtin, whose arguments Python cannot tell
            pass
    model = build() if callable(build) and not isinstance(build, nn.Module) else build
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name} gives a {type(model).__name__}, not a torch.nn.Module; let it return one"
        )
    return model
