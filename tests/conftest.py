"""What every test shares."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores between them
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def tiny_overrides() -> list[str]:
    """A run of the `digits` recipe that takes about a second."""
    return [
        "--model.name=mlp",
        "--model.width=0.2",
        "--training.steps=60",
        "--training.batch_size=16",
        "--training.evaluate=0, every 20",
        "--probe.size=20",
        "--kernel.when=0, every 10",
        "--snapshots.keep=0, every 30",
        "--snapshots.resume=every 7",
    ]
