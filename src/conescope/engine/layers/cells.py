"""Recurrent layers and cells, followed as the linear maps and element-wise operations they are.

torch's own operations run all steps at once and show none of them; here each step is called by
itself, so that the rules for linear maps take the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.layers.call import Interception, Recording, intercepts

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Callable[[Tensor], Tensor]], State]
"""From W x + b, the state and h ↦ W′ h + b′ to the next state, whose first tensor is h."""


def _lstm_step(given: Tensor, state: State, recur: Callable[[Tensor], Tensor]) -> State:
    h, c = state
    i, f, g, o = (given + recur(h)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(given: Tensor, state: State, recur: Callable[[Tensor], Tensor]) -> State:
    (h,) = state
    (r, z, n), (own_r, own_z, own_n) = given.chunk(3, dim=-1), recur(h).chunk(3, dim=-1)
    n = torch.tanh(n + (r + own_r).sigmoid() * own_n)
    return (n + (z + own_z).sigmoid() * (h - n),)


def _plain_step(
    activation: Callable[[Tensor], Tensor],
    given: Tensor,
    state: State,
    recur: Callable[[Tensor], Tensor],
) -> State:
    return (activation(given + recur(state[0])),)


def _layer(
    step: Step, x: Tensor, state: State, weights: Sequence[Tensor], biased: bool, backward: bool
) -> tuple[Tensor, State]:
    """Run one direction of a layer over x [T, b, a]; return h of all steps, and the last state."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if biased else (None, None)
    projection = rest[2 if biased else 0 :]
    given = F.linear(x, w_ih, b_ih)
    found: list[Tensor] = []
    for t in reversed(range(len(x))) if backward else range(len(x)):
        state = step(given[t], state, lambda h: F.linear(h, w_hh, b_hh))
        if projection:
            state = F.linear(state[0], projection[0]), *state[1:]
        found.append(state[0])
    return torch.stack(found[::-1] if backward else found), state


def _layers(operation: Callable[..., Any], step: Step) -> Interception:
    def run(recorder: Recording, *args: Any) -> Any:
        packed = len(args) != 9 or not isinstance(args[2], (list, tuple))
        if packed or (args[5] > 0 and args[6]):
            recorder.note_uncovered(*(t for a in args if isinstance(a, (list, tuple)) for t in a))
            return operation(*args)
        x, hx, weights, biased, layers, _, _, both_ways, batch_first = args
        states = [tuple(s) for s in zip(*([hx] if isinstance(hx, Tensor) else hx), strict=True)]
        ways = 2 if both_ways else 1
        each = len(weights) // (ways * layers)
        last: list[State] = []
        with recorder:
            x = x.transpose(0, 1) if batch_first else x
            for layer in range(layers):
                parts: list[Tensor] = []
                for way in range(ways):
                    number = layer * ways + way
                    own = weights[number * each : (number + 1) * each]
                    y, state = _layer(step, x, states[number], own, biased, way == 1)
                    parts.append(y)
                    last.append(state)
                x = torch.cat(parts, dim=-1)
            x = x.transpose(0, 1) if batch_first else x
            return x, *(torch.stack(part) for part in zip(*last, strict=True))

    return run


def _cell(step: Step) -> Interception:
    def run(
        recorder: Recording,
        x: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        with recorder:
            state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            found = step(F.linear(x, w_ih, b_ih), state, lambda h: F.linear(h, w_hh, b_hh))
        return found[0] if isinstance(hx, Tensor) else found

    return run


for _name, _step in (
    ("lstm", _lstm_step),
    ("gru", _gru_step),
    ("rnn_tanh", partial(_plain_step, torch.tanh)),
    ("rnn_relu", partial(_plain_step, torch.relu)),
):
    _operation = getattr(torch, _name)
    intercepts(_operation)(_layers(_operation, _step))
    intercepts(getattr(torch, f"{_name}_cell"))(_cell(_step))
