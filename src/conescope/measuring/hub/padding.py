"""Make sure that padding does not reach the outputs of a model, though a mask leaves it out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from conescope.engine.tracing.forward import FORWARD_ERRORS
from conescope.engine.tracing.untouched import untouched
from conescope.engine.tracing.writes import watching_writes
from conescope.errors import ModelError
from conescope.measuring.adapt import Pool, Select, adapt
from conescope.measuring.probe import Probe

_MASK, _IDS = "attention_mask", "input_ids"
_CLOSE = 1e-3  # of the largest output; single precision gives 1e-5 or so


def check_padding(
    model: nn.Module,
    inputs: Probe,
    select: Select | None,
    pool: Pool | Tensor | None,
) -> None:
    """Compare the outputs of the shortest text with those of the same text without its padding.

    The model is told the padding token first: a causal model that classifies takes its outputs at
    the last token that is another one, whatever the mask says.

    Args:
        model: the model; weights that are trained show more than those at the start.
        inputs: "input_ids", "attention_mask" and the like, each [n, T], padded on the right;
            what has no such names is not looked at.
        select: see `adapt`.
        pool: see `adapt`.

    Raises:
        ModelError: if the outputs differ.
    """
    if not isinstance(inputs, Mapping) or not {_MASK, _IDS} <= inputs.keys():
        return
    mask = inputs[_MASK]
    if bool(mask.all()):
        return
    lengths = mask.sum(dim=1)
    shortest = int(lengths.argmin())
    length, row = int(lengths[shortest]), slice(shortest, shortest + 1)
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "pad_token_id"):
        config.pad_token_id = int(inputs[_IDS][shortest, -1])
    place = pool[row] if isinstance(pool, Tensor) else pool
    outputs = []
    for end in (mask.shape[1], length):
        part = {name: value[row, :end] for name, value in inputs.items()}
        made = adapt(model, part, select=select, pool=place)
        try:
            with untouched(made.module), watching_writes(made.module):
                outputs.append(made.module(made.x.to(made.device)).detach())
        except FORWARD_ERRORS:
            return  # the measurement tries the model, too, and says what is wrong
    padded, alone = outputs
    if not torch.allclose(padded, alone, rtol=0, atol=_CLOSE * float(alone.abs().max())):
        raise ModelError(
            f"padding changes the outputs of {type(model).__name__}, though it is masked out, and "
            f"so it would change the kernel; cut all texts to one length: --length {length}"
        )
