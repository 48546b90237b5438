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
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

import conescope
from benchmarks.architectures import ARCHITECTURES
from benchmarks.channel import Channel
from benchmarks.draws import deviation, draw_kernels, gram_error, signs
from benchmarks.machine import clock, memory_field, reset_peak
from benchmarks.problems import TINY

_REFERENCE_SHARE = 0.4
"""Of the memory that the process may hold, what a reference's gradients may take."""
_CHECKED = 4
"""So many samples have the entries that are checked where the whole reference takes too long."""
_PASS_SHARE = 0.8
"""Of the memory that the process may hold, what a plain pass may take."""

Result = TypeVar("Result")


class Subject:
    """A model, its inputs, and what is measured on them, one method a stage.

    Args:
        model: in evaluation mode.
        x: n samples.
        draws: cotangents of an estimate.
        memory: the engine's budget.
        dim: columns of a projection.
        limit_bytes: what the process may hold, from which the parts of a plain pass follow.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, draws: int, memory: str, dim: int, limit_bytes: int
    ) -> None:
        self.model, self.x, self.draws, self.memory, self.dim = model, x, draws, memory, dim
        self.kernels: list[Tensor] = []
        self.features: list[Tensor] = []
        with torch.no_grad():
            self.outputs = model(x[:1]).shape[1]
        self.cotangents = signs(draws, self.outputs)
        self.reference_bytes = int(_REFERENCE_SHARE * limit_bytes)
        self._resident = settled()
        self.block = self._block(limit_bytes)

    def facts(self) -> dict:
        """The number of parameters, and the parts of a plain pass."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"parameters": parameters, "parts": -(-len(self.x) // self.block)}

    def passes(self) -> dict:
        """Seconds of one plain forward and backward pass of the whole batch, part by part."""
        start = clock()
        self._pass(self.x)
        seconds = clock() - start
        self.model.zero_grad(set_to_none=True)
        return {"seconds": seconds}

    def survey(self) -> dict:
        """Let the engine survey and check the model on two samples."""
        conescope.estimate_entk(self.model, self.x[:2], draws=self.draws, memory=self.memory)
        conescope.project(self.model, self.x[:2], dim=self.dim, memory=self.memory)
        return {}

    def estimate(self) -> dict:
        """Seconds and peak of one call of `estimate_entk`, and the share of each route."""
        found, call = self._measured(
            lambda: conescope.estimate_entk(
                self.model, self.x, draws=self.draws, memory=self.memory
            )
        )
        self.kernels.append(found.draws)
        return {**call, "shares": _shares(self.model, found.routes)}

    def one_draw(self) -> dict:
        """Seconds and peak of a first call for one draw: the exact kernel of v·f, a new module."""
        scalar = _Along(self.model, self.cotangents[0])
        found, call = self._measured(lambda: conescope.entk(scalar, self.x, memory=self.memory))
        self.kernels.append(found.values[None])
        return call

    def project(self) -> dict:
        """Seconds and peak of one call of `project`."""
        found, call = self._measured(
            lambda: conescope.project(self.model, self.x, dim=self.dim, memory=self.memory)
        )
        self.features.append(found.values)
        return call

    def error(self) -> dict:
        """How far the calls so far are from float64 products of this model's own gradients."""
        reference = draw_kernels(self.model, self.x, self.cotangents, self.reference_bytes)
        errors = (deviation(found, reference[: len(found)]) for found in self.kernels)
        return {"error": max(errors)}

    def rounding(self) -> dict:
        """The same against the model in float64. It stays in float64, so this comes last."""
        self.model.double()
        if self.x.is_floating_point():
            self.x = self.x.double()
        return self.error()

    def entries(self) -> dict:
        """The error of the calls so far, on the entries of a few random samples only."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.x), generator=generator)[:_CHECKED]
        reference = draw_kernels(self.model, self.x[chosen], self.cotangents, self.reference_bytes)
        parts = (kernels[:, chosen][:, :, chosen] for kernels in self.kernels)
        return {"error": max(deviation(part, reference) for part in parts)}

    def gram(self) -> dict:
        """‖FFᵀ − K‖ / ‖K‖ of all projections, K being the first draw, which has their cotangent."""
        exact = self.kernels[0][0].double()
        return {"error": max(gram_error(features, exact) for features in self.features)}

    def _measured(self, call: Callable[[], Result]) -> tuple[Result, dict]:
        settled()
        reset_peak()
        start = clock()
        found = call()
        seconds = clock() - start
        return found, {"seconds": seconds, "peak_bytes": memory_field("VmHWM") - self._resident}

    def _pass(self, x: Tensor) -> None:
        direction = self.cotangents[0]
        for part in x.split(self.block):
            outputs = self.model(part)
            (outputs * direction.to(outputs)).sum().backward()

    def _block(self, limit_bytes: int) -> int:
        """The samples of a part, from the peaks of passes of one and of three samples."""
        self.block = len(self.x)
        peaks = []
        for few in (1, 3):
            settled()
            reset_peak()
            self._pass(self.x[:few])
            self.model.zero_grad(set_to_none=True)
            peaks.append(memory_field("VmHWM"))
        each = max(1, (peaks[1] - peaks[0]) // 2)
        room = int(_PASS_SHARE * limit_bytes) - (peaks[0] - each)
        parts = -(-len(self.x) // max(1, room // each))
        return -(-len(self.x) // parts)


class _Along(nn.Module):
    """The outputs of a model along one direction v: v·f, [n, 1]."""

    def __init__(self, model: nn.Module, direction: Tensor) -> None:
        super().__init__()
        self.model, self.direction = model, direction

    def forward(self, x: Tensor) -> Tensor:
        """One number a sample."""
        outputs = self.model(x)
        return outputs @ self.direction.to(outputs)[:, None]


STAGES = {
    "passes": Subject.passes,
    "survey": Subject.survey,
    "estimate": Subject.estimate,
    "one draw": Subject.one_draw,
    "project": Subject.project,
    "error": Subject.error,
    "rounding": Subject.rounding,
    "entries": Subject.entries,
    "gram": Subject.gram,
}


def settled() -> int:
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
    names = ("draws", "memory", "dim", "limit_bytes")
    subject = Subject(model, x, **{name: chosen[name] for name in names})
    channel.send(subject.facts())
    for request in channel.requests():
        channel.send(STAGES[request["stage"]](subject))


if __name__ == "__main__":
    main(*sys.argv[1:])
