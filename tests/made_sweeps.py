"""Folders of sweeps made up for tests, without training anything."""

import torch

from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.sweep_folder import store_sweep
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.kernel.matrix import Kernel
from conescope.runs.writer import RunWriter


def planned(path, *words):
    sweep = plan_sweep(make_grid(read_axes(["digits"], words)), path, "conescope sweep digits")
    store_sweep(sweep)
    return sweep


def write_run(run, end="finished", kernels=24, accuracy=0.9):
    """Write a run whose kernel moves about a mean, and then ends."""
    chance = torch.Generator().manual_seed(run.recipe.seed)
    mean = torch.randn(6, 40, generator=chance)
    with RunWriter(run.path) as writer:
        writer.begin_recipe(run.fields, run.recipe.to_yaml(), "conescope sweep", None)
        writer.begin_session("cpu")
        for step in range(0, 100 * kernels, 100):
            features = mean + 0.2 * torch.randn(6, 40, generator=chance)
            writer.write_kernel(step, Kernel(features @ features.mT))
        scalars = {"learning_rate": 0.1, "train_loss": 0.5, "train_accuracy": 0.9,
                   "test_loss": 0.6, "test_accuracy": accuracy}  # fmt: skip
        writer.write_evaluation(100 * kernels - 100, scalars)
        if end == "finished":
            writer.finish()
        elif end == "diverged":
            writer.diverge(5, "the loss is inf")
