"""What the caller hands over, checked before any compute is spent."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from conescope.errors import KernelError, ModelError
from conescope.kernel import Outputs
from conescope.parameters import refuse_absent_weights

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def select_parameters(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters whose kernel is taken, by name; a tied parameter comes once.

    Args:
        model: the network.
        names: names of parameters or of modules; None for every parameter that is not frozen.

    Raises:
        ModelError: if a name is unknown, or nothing is left.
    """
    available = dict(model.named_parameters())
    if names is None:
        chosen = {name: p for name, p in available.items() if p.requires_grad}
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            _check_known(name, model, available)
        chosen = {
            name: p
            for name, p in available.items()
            if any(w in ("", name) or name.startswith(w + ".") for w in wanted)
        }
    if not chosen:
        raise ModelError(
            "the model has no trainable parameters, so it has no tangent kernel; "
            "unfreeze some (requires_grad_(True)) or name them in `params`"
        )
    refuse_absent_weights(model)
    return chosen


def _check_known(name: str, model: nn.Module, available: dict[str, nn.Parameter]) -> None:
    known = {*available, *(module for module, _ in model.named_modules())}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"`params` names {name!r}, which the model does not have{hint}")


def check_inputs(name: str, x: Tensor, parameters: dict[str, nn.Parameter]) -> None:
    """Raise `ModelError` unless `x` is a batch of finite numbers on the parameters' device."""
    if not isinstance(x, Tensor):
        raise ModelError(f"`{name}` is a {type(x).__name__}; give the samples as one tensor")
    if x.dim() == 0 or len(x) == 0:
        raise ModelError(
            f"`{name}` holds no samples (shape {tuple(x.shape)}); its first dimension numbers "
            f"them, at least 1"
        )
    for parameter_name, p in parameters.items():
        if p.device != x.device:
            raise ModelError(
                f"`{name}` is on {x.device} but parameter {parameter_name!r} on {p.device}; "
                f"move one of them with .to(…)"
            )
    if x.is_floating_point() and not _is_finite(x):
        raise ModelError(f"`{name}` holds NaN or infinite values; look at the data")


def check_parameters(model: nn.Module) -> None:
    """Raise `ModelError`, naming the parameter, if a weight is NaN or infinite."""
    for name, p in model.named_parameters():
        if not _is_finite(p.detach()):
            raise ModelError(
                f"parameter {name!r} holds NaN or infinite values; look at the training "
                f"before this step"
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries are; a finite sum says so at a fraction of the cost."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def cotangents(outputs: Outputs, classes: int, like: Tensor) -> Tensor:
    """The vectors v whose gradients ∂(v·f) make up the kernel; [q, c].

    Raises:
        KernelError: if `outputs` is no convention, or an index outside 0 … c − 1.
    """
    if outputs in ("trace", "full"):
        return torch.eye(classes, dtype=like.dtype, device=like.device)
    if outputs == "sum":
        return torch.ones(1, classes, dtype=like.dtype, device=like.device)
    if isinstance(outputs, bool) or not isinstance(outputs, int):
        raise KernelError(
            f'outputs is "trace", "full", "sum" or the index of one output, not {outputs!r}'
        )
    if not 0 <= outputs < classes:
        raise KernelError(
            f"output {outputs} is out of range: the model has {classes} outputs, "
            f"numbered 0 to {classes - 1}"
        )
    v = torch.zeros(1, classes, dtype=like.dtype, device=like.device)
    v[0, outputs] = 1
    return v


def parse_memory(memory: str | float | None) -> int | None:
    """A budget in bytes from a number of bytes or text such as "2GB", "512 MiB".

    Raises:
        KernelError: if the text is no amount of memory, or it is not positive.
    """
    if memory is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+]+)\s*([KMGT]?)(i?)B?\s*", str(memory), re.IGNORECASE)
    try:
        if match is None:
            raise ValueError
        number, unit, binary = match.groups()
        power = _UNITS[unit.upper()]
        if binary:
            power = round(2 ** (10 * (len(str(power)) // 3)))
        amount = int(float(number) * power)
    except ValueError:
        amount = 0
    if amount <= 0:
        raise KernelError(f'memory is an amount such as "2GB" or a number of bytes, not {memory!r}')
    return amount
