"""What the caller hands over, checked before any compute is spent."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from conescope.engine.failure import shown
from conescope.errors import KernelError, ModelError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def check_inputs(name: str, x: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `ModelError` unless `x` is a batch of finite numbers on the parameters' device."""
    if not isinstance(x, Tensor):
        raise ModelError(f"`{name}` is a {type(x).__name__}; give the samples as one tensor")
    if x.layout is not torch.strided or x.is_nested:
        raise ModelError(
            f"`{name}` is a sparse or nested tensor; give a plain one, with samples of one shape "
            f"(.to_dense(), or padded)"
        )
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
        if p.layout is not torch.strided or (p.is_floating_point() and p.element_size() < 2):
            kind = (
                "sparse" if p.layout is not torch.strided else str(p.dtype).removeprefix("torch.")
            )
            raise ModelError(
                f"parameter {shown(model, name)!r} is {kind}, for which autograd has no gradients; "
                f"measure a copy of the model with plain weights (.to_dense(), .float())"
            )
        if not _is_finite(p.detach()):
            raise ModelError(
                f"parameter {shown(model, name)!r} holds NaN or infinite values; look at the "
                f"training before this step"
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries are; a finite sum says so at a fraction of the cost."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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
    except (ValueError, OverflowError):
        amount = 0
    if amount <= 0:
        raise KernelError(f'memory is an amount such as "2GB" or a number of bytes, not {memory!r}')
    return amount
