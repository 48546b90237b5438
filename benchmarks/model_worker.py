"""The engine on one model of real size, in a process of its own.

Run by `benchmarks.models` as `python -m benchmarks.model_worker NAME THREADS SETTINGS`. Its first
message has the number of parameters; then it answers each request {"stage": NAME} with a
measurement. Whatever goes wrong, a refusal of the engine included, ends the process; the last line
of its error stream is the reason.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import conescope
from benchmarks.architectures import ARCHITECTURES
from benchmarks.channel import Channel
from benchmarks.draws import deviation, draw_kernels, signs
from benchmarks.machine import memory_field, reset_peak
from benchmarks.problems import TINY

_REFERENCE_BYTES = 2 * 10**9


class Subject:
    """A model, its inputs, and what is measured on them, one method a stage.

    Args:
        model: in evaluation mode.
        x: n samples.
        draws: cotangents of an estimate.
        memory: the engine's budget.
    """

    def __init__(self, model: nn.Module, x: Tensor, draws: int, memory: str) -> None:
        self.model, self.x, self.draws, self.memory = model, x, draws, memory
        self.kernels: list[Tensor] = []
        with torch.no_grad():
            self.outputs = model(x[:1]).shape[1]
        self._resident = _settled()

    def count(self) -> dict:
        """The number of parameters."""
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def passes(self) -> dict:
        """Seconds of one plain forward and backward pass of the whole batch."""
        direction = signs(1, self.outputs, seed=1)[0]
        start = time.perf_counter()
        outputs = self.model(self.x)
        (outputs * direction.to(outputs)).sum().backward()
        seconds = time.perf_counter() - start
        self.model.zero_grad(set_to_none=True)
        return {"seconds": seconds}

    def estimate(self) -> dict:
        """Seconds and peak of one call of `estimate_entk`, and the share of each route."""
        _settled()
        reset_peak()
        start = time.perf_counter()
        found = conescope.estimate_entk(self.model, self.x, draws=self.draws, memory=self.memory)
        seconds = time.perf_counter() - start
        peak = memory_field("VmHWM") - self._resident
        self.kernels.append(found.draws)
        shares = _shares(self.model, found.kernel.routes)
        return {"seconds": seconds, "peak_bytes": peak, "shares": shares}

    def error(self) -> dict:
        """How far the calls so far are from float64 products of this model's own gradients."""
        cotangents = signs(self.draws, self.outputs)
        reference = draw_kernels(self.model, self.x, cotangents, _REFERENCE_BYTES)
        return {"error": max(deviation(kernels, reference) for kernels in self.kernels)}

    def rounding(self) -> dict:
        """The same against the model in float64. It stays in float64, so this comes last."""
        self.model.double()
        if self.x.is_floating_point():
            self.x = self.x.double()
        return self.error()


STAGES = {
    "passes": Subject.passes,
    "estimate": Subject.estimate,
    "error": Subject.error,
    "rounding": Subject.rounding,
}


def _settled() -> int:
    """Bytes that stay resident once all freed memory has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory_field("VmRSS")


def _shares(model: nn.Module, routes: Mapping[str, str]) -> dict[str, float]:
    """Route → its share of the parameters, counted by elements."""
    elements: Counter[str] = Counter()
    for name, p in model.named_parameters():
        elements[routes[name]] += p.numel()
    return {route: count / elements.total() for route, count in elements.items()}


def main(name: str, threads: str, settings: str) -> None:
    """Make the model and answer until the input ends."""
    channel = Channel(int(threads))
    chosen = json.loads(settings)
    network, images = TINY.make()
    conescope.estimate_entk(network, images)  # what is loaded at the first use is no part of a peak
    model, x = ARCHITECTURES[name].make(chosen["n"], chosen["tokens"])
    subject = Subject(model, x, chosen["draws"], chosen["memory"])
    channel.send(subject.count())
    for request in channel.requests():
        channel.send(STAGES[request["stage"]](subject))


if __name__ == "__main__":
    main(*sys.argv[1:])
