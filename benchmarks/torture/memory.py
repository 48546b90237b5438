"""Memory: the peak of one measurement, in a fresh process, against its budget."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.torture.case import Case

_BEYOND = 16e6
"""Bytes of code and tables that a first call may load, beside its budget."""

_MEASURE = """
import re, resource, sys, torch
from torch import nn
from conescope.engine import entk, estimate_entk
from conescope.errors import KernelError
torch.manual_seed(0)
torch.set_num_threads(1)
name, outputs, memory = sys.argv[1:]
warm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).eval()
estimate_entk(warm, torch.randn(8, 3, 8, 8))
entk(warm, torch.randn(8, 3, 8, 8), outputs="full")
class Tokens(nn.Module):
    def __init__(self, width, layers, words):
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    def forward(self, ids):
        return self.head(self.layers(self.embedding(ids))[:, -1])
class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(32, 96, batch_first=True), nn.Linear(96, 10)
    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])
def block(width):
    return [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), *block(24), *block(24),
        nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10))
def wide():
    return nn.Sequential(nn.Linear(200, 1500), nn.Tanh(), nn.Linear(1500, 1500), nn.Tanh(),
                         nn.Linear(1500, 10))
models = {
    "wide": (wide, lambda: torch.randn(100, 200)),
    "lenet": (lenet, lambda: torch.randn(100, 1, 28, 28)),
    "convolutions": (vgg, lambda: torch.randn(64, 3, 16, 16)),
    "transformer": (lambda: Tokens(64, 3, 50), lambda: torch.randint(50, (48, 32))),
    "language model": (lambda: Tokens(96, 6, 200), lambda: torch.randint(200, (32, 48))),
    "lstm": (Last, lambda: torch.randn(48, 24, 32)),
}
build, samples = models[name]
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
_MODELS = ("wide", "lenet", "convolutions", "transformer", "language model", "lstm")
_OUTPUTS = ("trace", "sum", "draws")
_BUDGETS = (80e6, 160e6, 320e6)


def memory(_: Path) -> list[Case]:
    """Measure models within budgets; a budget that is refused is tried as the refusal says.

    The peak beyond the model may be 1.1 times the budget and 16 MB; see `Battery`.
    """
    return [
        Case(m, f"{m}, {o}, {b / 1e6:.0f} MB", partial(_attempted, m, o, b))
        for m in _MODELS
        for o in _OUTPUTS
        for b in _BUDGETS
    ]


def _attempted(
    model: str, outputs: str, budget: float, _: Path, __: random.Random
) -> Iterator[str]:
    command = [sys.executable, "-c", _MEASURE, model, outputs, str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield done.stderr[-300:]
        return
    given, peak = (float(number) for number in done.stdout.split())
    if peak > 1.1 * given + _BEYOND:
        yield f"given {given / 1e6:.0f} MB it takes {peak / 1e6:.0f} MB"
