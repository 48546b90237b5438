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


def choose_parameters(model: nn.Module, params: str | Iterable[str] | None = None) -> list[str]:
    """Names of the parameters that some patterns mean, in the model's order.

    Args:
        model: the network.
        params: names or patterns (`*`, `?`; both match dots too) of parameters or modules; None
            for every parameter that is not frozen.

    Raises:
        ModelError: if a pattern means nothing, or no parameter with a derivative is left.
    """
    floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if params is None:
        chosen = {name for name, p in floating.items() if p.requires_grad}
    else:
        chosen = set()
        for pattern in [params] if isinstance(params, str) else params:
            meant = {name for name in floating if _means(pattern, name)}
            if not meant:
                raise _unknown(pattern, model)
            chosen |= meant
    if not chosen:
        raise ModelError(
            "no parameter of the model is both trainable and a real number, so there is no tangent "
            "kernel; unfreeze some (requires_grad_(True)) or name them in `params`"
        )
    return [name for name in floating if name in chosen]


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
    return any(
        fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1)
    )


def _unknown(pattern: str, model: nn.Module) -> ModelError:
    known = [*(name for name, _ in model.named_modules()), *dict(model.named_parameters())]
    near = difflib.get_close_matches(pattern, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ModelError(f"`params` names {pattern!r}, which no parameter of the model matches{hint}")
