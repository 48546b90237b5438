"""One of two processes that train a model together, watched; for tests/test_watch_models.py."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import conescope as cs


def train(rank, watch_in=None):
    """The weights after a short training; batches differ from process to process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    parallel = DistributedDataParallel(model)
    watch = watch_in and cs.Watch(parallel, torch.randn(5, 3), when="0, every 2", out=watch_in)
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    taken = [watch.step(0)] if watch else []
    for step in range(1, 5):
        optimizer.zero_grad()
        parallel(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        taken += [watch.step(step)] if watch else []
    if watch:
        watch.close()
        assert taken == [rank == 0 and step % 2 == 0 for step in range(5)]
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(rank, folder):
    """Train with and without a watch, and compare."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    without, watched = train(rank), train(rank, f"{folder}/run")
    assert all(torch.equal(value, watched[name]) for name, value in without.items())
    dist.destroy_process_group()
