"""Memory: the peak of one measurement, in a fresh process, against its budget."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.torture.case import Case
from benchmarks.torture.memory_models import MODELS
from benchmarks.torture.processes import ROOT

_BEYOND = 16e6
"""Bytes of code and tables that a first call may load, beside its budget."""

_MEASURE = """
import re, resource, sys, torch
from torch import nn
from benchmarks.torture.memory_models import MODELS
from conescope.engine import entk, estimate_entk
from conescope.errors import KernelError
torch.manual_seed(0)
torch.set_num_threads(1)
name, outputs, memory = sys.argv[1:]
warm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).eval()
estimate_entk(warm, torch.randn(8, 3, 8, 8))
entk(warm, torch.randn(8, 3, 8, 8), outputs="full")
build, samples = MODELS[name]
model, x = build().eval(), samples()
def measure(memory):
    if outputs == "draws":
        return estimate_entk(model, x, draws=2, memory=memory)
    return entk(model, x, outputs=outputs, memory=memory)
memory = float(memory)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    measure(memory)
except KernelError as error:
    memory = float(re.search(r"memory=([0-9]+e6)", str(error))[1])
    measure(memory)
print(memory, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
_OUTPUTS = ("trace", "sum", "draws")
_BUDGETS = (80e6, 160e6, 320e6)


def memory(_: Path) -> list[Case]:
    """Measure models within budgets; a budget that is refused is tried as the refusal says.

    The peak beyond the model may be 1.1 times the budget and 16 MB; see `Battery`.
    """
    return [
        Case(m, f"{m}, {o}, {b / 1e6:.0f} MB", partial(_attempted, m, o, b))
        for m in MODELS
        for o in _OUTPUTS
        for b in _BUDGETS
    ]


def _attempted(
    model: str, outputs: str, budget: float, _: Path, __: random.Random
) -> Iterator[str]:
    command = [sys.executable, "-c", _MEASURE, model, outputs, str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        yield done.stderr[-300:]
        return
    given, peak = (float(number) for number in done.stdout.split())
    if peak > 1.1 * given + _BEYOND:
        yield f"given {given / 1e6:.0f} MB it takes {peak / 1e6:.0f} MB"
