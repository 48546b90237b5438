"""Attention: its projections, and a bias of the scores that is a parameter."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from conescope.engine.layers.call import Recording, intercepts


def _followed(function: Any) -> Any:
    """Return a function of torch that does not hide from a mode which operations it calls."""
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_multi_head_attention_forward = _followed(F.multi_head_attention_forward)


@intercepts(F.multi_head_attention_forward)
def _multi_head(recorder: Recording, *args: Any, **kwargs: Any) -> Any:
    with recorder:
        return _multi_head_attention_forward(*args, **kwargs)


@intercepts(F.scaled_dot_product_attention)
def _attend(
    recorder: Recording,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    copies = None
    if attn_mask is not None and not any(map(recorder.knows, (query, key, value))):
        copies = recorder.copies([attn_mask], query.shape)
    if copies is None:
        recorder.note_uncovered(query, key, value, attn_mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **rest)
    mask = copies[id(attn_mask)]
    return F.scaled_dot_product_attention(query, key, value, mask, **rest)
