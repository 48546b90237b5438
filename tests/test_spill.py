"""Factors in a temporary file: the same kernel, within the budget, and what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing

import pytest
import torch

from conescope.engine.compute import spill
from conescope.engine.compute.budget import Cut
from conescope.engine.compute.products import Memory
from conescope.engine.compute.spill import TemporaryFile, room_on_disk
from conescope.engine.problem import Problem
from conescope.errors import KernelError
from problems import PROBLEMS
from reference import assert_matches_reference


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_factors_in_a_file_make_the_same_kernel(monkeypatch, problem):
    model, x = problem.build(), problem.samples(5)
    for outputs, together in (("full", 1000), ("trace", 2)):
        pieces = Cut(2, 1000, together, 50, 0, spilled=True)
        monkeypatch.setattr(Problem, "pieces", lambda *_, pieces=pieces: pieces)
        assert_matches_reference(model, x, outputs=outputs)
        assert_matches_reference(model, x[:2], x[2:], outputs=outputs)


def test_tensors_outlive_what_is_released():
    store = TemporaryFile()
    like = torch.empty(0, dtype=torch.float64)
    held = [store.take(shape, like) for shape in ((3, 4), (0, 5), (2**20, 9), (7,))]
    for number, tensor in enumerate(held):
        tensor.fill_(number)
    store.release()
    assert [tuple(t.shape) for t in held] == [(3, 4), (0, 5), (2**20, 9), (7,)]
    assert all(bool((t == number).all()) for number, t in enumerate(held))
    shared = torch.randn(5, 6)
    first, again, part = store.keep(shared), store.keep(shared), store.keep(shared[1:])
    assert torch.equal(first, shared)
    assert first.data_ptr() == again.data_ptr() != shared.data_ptr()
    assert torch.equal(part, shared[1:])
    store.close()
    assert torch.equal(first, shared)


def test_memory_keeps_what_it_is_given():
    tensor = torch.ones(2)
    assert Memory().keep(tensor) is tensor


def test_a_full_disk_is_a_clear_error(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with closing(TemporaryFile()) as store, pytest.raises(KernelError, match=r"no room .*TMPDIR"):
        store.take((3,), torch.empty(0))


def test_no_file_is_made_in_memory(monkeypatch):
    monkeypatch.setattr(spill, "_file_system", lambda _: "tmpfs")
    assert room_on_disk() == 0


PEAK = """
import resource, sys, torch
from torch import nn
from conescope.engine import entk, plan
torch.manual_seed(0)
torch.set_num_threads(1)
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(192, 768), nn.Linear(768, 192)
    def forward(self, x):
        return x + self.down(self.up(x).relu())
model = nn.Sequential(nn.Embedding(100, 192), *[Block() for _ in range(6)]).double().eval()
class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = model, nn.Linear(192, 5).double()
    def forward(self, x):
        return self.head(self.body(x).mean(dim=1))
model, x = Last(), torch.randint(0, 100, (60, 64))
entk(model, x[:3], outputs="sum")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernel = entk(model, x, outputs="sum", memory="200MB")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
whole = entk(model, x, outputs="sum")
error = float((kernel.values - whole.values).abs().max() / whole.values.max())
print((peak - before) * 1024, plan(model, x, outputs="sum", memory="200MB").chunk, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.skipif(room_on_disk() == 0, reason="the temporary folder of this machine is in memory")
def test_the_peak_stays_within_the_budget():
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, chunk, error = map(float, done.stdout.split())
    assert peak <= 1.1 * 200e6
    assert chunk == 60
    assert error < 1e-12


def test_without_a_folder_no_file_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path / "gone"))
    assert room_on_disk() == 0
