"""The parameters of anybody's model: found inside its wrappers, and chosen by pattern."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from conescope.errors import ModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def choose_parameters(
    model: nn.Module, params: str | Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that some names or patterns mean, in the model's order.

    Args:
        model: the network.
        params: names or patterns (`*`, `?`; both match dots too) of parameters or modules; None
            for every parameter that is not frozen. A tied weight answers to each of its names.

    Returns:
        Name → parameter; a tied weight comes once, under its first name.

    Raises:
        ModelError: if a pattern means nothing, or no parameter with a derivative is left.
    """
    named = [
        (name, p)
        for name, p in model.named_parameters(remove_duplicate=False)
        if (p.is_floating_point() or p.is_complex())
        and (isinstance(p, UninitializedParameter) or p.numel() > 0)
    ]
    if params is not None and not isinstance(params, Iterable):
        raise ModelError(
            f"`params` is {params!r}; give names or patterns of parameters or modules, or None"
        )
    if params is None:
        meant = {id(p) for _, p in named if p.requires_grad}
    else:
        meant = set()
        for pattern in [params] if isinstance(params, str) else params:
            found = {id(p) for name, p in named if _means(pattern, name)}
            if not found:
                raise _unknown(pattern, model)
            meant |= found
    if not meant:
        if params is not None:
            raise ModelError(
                "`params` names no parameter; leave it out for all that are not frozen"
            )
        raise ModelError(
            "the model has no trainable parameters with a derivative, so it has no tangent kernel; "
            "unfreeze some (requires_grad_(True)) or name them in `params`"
        )
    return {name: p for name, p in model.named_parameters() if id(p) in meant}


def refuse_absent_weights(model: nn.Module) -> None:
    """Raise `ModelError`, with the cure, for parameters whose values are not all here."""
    named = dict(model.named_parameters())
    if not named:
        raise ModelError("the model has no parameters, so it has no tangent kernel")
    sharded = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    for name, p in named.items():
        if isinstance(p, UninitializedParameter):
            raise ModelError(f"parameter {name!r} is lazy and has no shape yet; run a batch first")
        if p.is_meta:
            raise ModelError(f"parameter {name!r} is on the meta device; load its values first")
        if p.is_inference():
            raise ModelError(
                f"parameter {name!r} was made in inference mode and has no gradient; make the "
                f"model outside of torch.inference_mode()"
            )
        if sharded or hasattr(p, "placements"):  # as torch's DTensor has
            raise ModelError(
                f"parameter {name!r} is sharded over processes; gather the weights in a whole "
                f"model (a state dict of full tensors) and measure that"
            )


def _means(pattern: str, parameter: str) -> bool:
    parts = parameter.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return not pattern or any(p == pattern or fnmatchcase(p, pattern) for p in prefixes)


def _unknown(pattern: str, model: nn.Module) -> ModelError:
    named = model.named_parameters(remove_duplicate=False)
    known = [*(name for name, _ in model.named_modules()), *(name for name, _ in named)]
    near = [name for name in difflib.get_close_matches(pattern, known, n=1) if name != pattern]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if pattern in known:
        hint = ", since what it names has no real or complex numbers with a derivative"
    return ModelError(f"`params` names {pattern!r}, which no parameter of the model matches{hint}")
