"""Ways from the outputs of a sequence of tokens to those of its sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _last_token(outputs: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(outputs.shape[1], device=mask.device)
    last = (places * (mask != 0)).argmax(dim=1)
    return outputs[torch.arange(len(outputs), device=last.device), last]


def _mean_token(outputs: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(outputs.dtype) / mask.sum(dim=1, keepdim=True)
    return torch.einsum("nt,nt...->n...", weights, outputs)


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"last": _last_token, "mean": _mean_token}
"""Name → function from outputs of T tokens [n, T, …], and their mask [n, T], to outputs [n, …]."""
