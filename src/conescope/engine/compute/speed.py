"""Measure how fast this machine multiplies and copies, once a process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from conescope.engine.compute.products import multiply, multiply_batch

_LONG_SECONDS = 0.05


@dataclass(frozen=True)
class Speed:
    """A machine's rates.

    Attributes:
        product: floating-point operations a second, in a product of two large matrices.
        batched: the same, in products of many small matrices.
        copy: elements copied a second.
    """

    product: float
    batched: float
    copy: float


@functools.cache
def measure_speed(device: str, dtype: torch.dtype) -> Speed:
    """Measure the rates of one kind of device, for tensors of one dtype."""
    a = torch.ones(1024, 1024, dtype=dtype, device=device)
    left = torch.ones(256, 64, 64, dtype=dtype, device=device)
    right = torch.ones(256, 64, 288, dtype=dtype, device=device)
    long = torch.ones(2**23, dtype=dtype, device=device)
    target = torch.empty_like(long)
    out = torch.empty(256, 64, 288, dtype=dtype, device=device)
    product = seconds_of(lambda: multiply(a, a))
    batched = seconds_of(lambda: multiply_batch(out, left, right))
    copy = seconds_of(lambda: target.copy_(long))
    return Speed(2.0 * 1024**3 / product, 2.0 * left.numel() * 288 / batched, len(long) / copy)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the shortest time of a few runs after one to warm up; long work runs twice in all."""
    first, times = _timed(work), [_timed(work)]
    if first > _LONG_SECONDS:
        return min(first, *times)
    while len(times) < 3 or (sum(times) < 0.1 and len(times) < 20):
        times.append(_timed(work))
    return min(times)


def _timed(work: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    """Wait for the GPUs that hold tensors; to ask another one would take memory on it."""
    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(number) > 0:
                torch.cuda.synchronize(number)
