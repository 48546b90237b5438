"""Follow a real training by estimates of its kernel: `python -m benchmarks.follow --data DIR`.

ResNet-20 is trained on CIFAR-10 by the recipe resnet20-cifar10. At every kernel the exact class
trace, estimates by r cotangents and a projection are measured and timed, in CPU time of one thread.
The full kernel, of all pairs of outputs, is measured once more and not timed: any cotangent's
kernel follows from it, so that errors are seen over many choices of the cotangents.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from conescope.experiments.experiment import Experiment, measure_kernel
from conescope.kernel.distance import distance_matrix
from conescope.kernel.estimates import Measured, estimated_distances
from conescope.kernel.matrix import Kernel
from conescope.runs.environment import reproducible
from conescope.training.loop import train
from conescope.training.recipe import Recipe
from conescope.training.recipe_fields import KernelRecipe
from conescope.training.recipe_reading import load_recipe


def seconds(work: Callable[[], Measured]) -> tuple[Measured, float]:
    """Return what a call gives, and its CPU time."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def ways(recipe: Recipe, draws: list[int], projections: list[int]) -> dict[str, Recipe]:
    """Return the recipes of the exact kernel and of its estimates, by name."""
    found = {"exact": recipe}
    for r in draws:
        found[f"{r} cotangents"] = replace(recipe, kernel=replace(recipe.kernel, estimate=r))
    for dim in projections:
        kernel = replace(recipe.kernel, projection=dim)
        found[f"projection to {dim:,}"] = replace(recipe, kernel=kernel)
    return found


def follow(
    recipe: Recipe, every: int, chosen: dict[str, Recipe]
) -> tuple[float, dict[str, list[float]], dict[str, list[Measured]], list[Tensor]]:
    """Train, and measure at every so many steps.

    Returns:
        The median seconds of a step; the seconds and the kernels of each way; the full kernels.
    """
    experiment = Experiment(recipe)
    model, optimizer = experiment.begin()
    times: dict[str, list[float]] = {name: [] for name in chosen}
    kernels: dict[str, list[Measured]] = {name: [] for name in chosen}
    full, steps = [], []
    full_kernel = replace(recipe.kernel, outputs="full")

    def kernel_of(model: nn.Module, kernel: KernelRecipe) -> Measured:
        return measure_kernel(model, experiment.probe, kernel, experiment.calibration)[0]

    begun = time.process_time()
    for snapshot in train(
        model, optimizer, experiment.batch, experiment.multiplier,
        start=0, stop=recipe.training.steps, seed=recipe.seed,
    ):  # fmt: skip
        steps.append(time.process_time() - begun)
        if snapshot.step % every == 0:
            for name, way in chosen.items():
                found, taken = seconds(partial(kernel_of, snapshot.model, way.kernel))
                times[name].append(taken)
                kernels[name].append(found)
            whole = kernel_of(snapshot.model, full_kernel)
            full.append(whole.values.float())
            print(f"step {snapshot.step}: {len(full)} kernels", flush=True)
        begun = time.process_time()
    return statistics.median(steps[1:]), times, kernels, full


def errors(
    measured: list[Measured], truth: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (S − S_exact) / S_exact and the stated standard error / S_exact, of some pairs."""
    found = estimated_distances(measured)
    exact = truth[pairs]
    return (found.corrected[pairs] - exact) / exact, found.errors[pairs] / exact


def drawn(full: list[Tensor], r: int, seed: int) -> list[Measured]:
    """Return the estimates by r cotangents that full kernels give."""
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (r, full[0].shape[1]), generator=generator) - 1
    signs = signs.to(full[0])
    found: list[Measured] = []
    for kernel in full:
        draws = torch.einsum("rc,icjd,rd->rij", signs, kernel, signs)
        found.append(Kernel(draws.mean(dim=0), draws=draws))
    return found


def root_mean_square(values: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def main() -> None:
    """Print shares of the wall time, and errors of S beside the stated ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.follow", description=__doc__)
    parser.add_argument("--data", help="folder of CIFAR-10's parquet files")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--probe", type=int, default=200)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--draws", type=int, nargs="*", default=[2, 3, 4, 6, 8])
    parser.add_argument("--projections", type=int, nargs="*", default=[4096])
    parser.add_argument("--seeds", type=int, default=200)
    chosen = parser.parse_args()
    fields = {
        "training.steps": chosen.steps, "kernel.when": f"0, every {chosen.every}",
        "probe.size": chosen.probe, "model.width": chosen.width, "optimizer.lr": chosen.lr,
        "lr_schedule.drops": "never", "threads": 1,
    }  # fmt: skip
    if chosen.data is not None:
        fields["data.path"] = chosen.data
    recipe = load_recipe("resnet20-cifar10", [f"--{name}={fields[name]}" for name in fields])
    with reproducible(recipe.device, recipe.threads):
        step, times, kernels, full = follow(
            recipe, chosen.every, ways(recipe, chosen.draws, chosen.projections)
        )
    report(step, chosen.every, times, kernels)
    over_seeds(full, chosen.draws, chosen.seeds)


def pairs_of(count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the pairs of each kernel with the first one, and with the one before."""
    later = np.arange(1, count)
    return {"S(t, 0)": (np.zeros_like(later), later), "S(t, t + dt)": (later - 1, later)}


def report(
    step: float, every: int, times: dict[str, list[float]], kernels: dict[str, list[Measured]]
) -> None:
    """Print each way's share of the time of training and measuring, and its errors."""
    exact = [kernel for kernel in kernels["exact"] if isinstance(kernel, Kernel)]
    truth = distance_matrix(exact)
    pairs = pairs_of(len(exact))
    print(f"training step {step:.3f} s, a kernel every {every} steps")
    for name, chosen in pairs.items():
        print(f"exact {name}: " + " ".join(f"{value:.4f}" for value in truth[chosen]))
    print("| way | a kernel, in training steps | share of the time | error of S, and stated |")
    print("|---|---|---|---|")
    for name, taken in times.items():
        each = statistics.median(taken)
        told = []
        if name != "exact":
            for label, chosen in pairs.items():
                off, stated = errors(kernels[name], truth, chosen)
                told.append(
                    f"{label} {root_mean_square(off):.1%}, stated {root_mean_square(stated):.1%}"
                )
        share = each / (each + every * step)
        print(f"| {name} | {each / step:.1f} | {share:.1%} | {'; '.join(told)} |")


def over_seeds(full: list[Tensor], draws: list[int], seeds: int) -> None:
    """Print the errors of S over many choices of the cotangents, and how often intervals hold."""
    exact = [Kernel(torch.einsum("icjc->ij", kernel)) for kernel in full]
    truth = distance_matrix(exact)
    print(f"over {seeds} choices of the cotangents, in per cent of S:")
    print("| r | pair | bias | plain bias | error | stated | 95 % intervals that hold S |")
    print("|---|---|---|---|---|---|---|")
    for r in draws:
        found = [estimated_distances(drawn(full, r, seed)) for seed in range(seeds)]
        for label, chosen in pairs_of(len(full)).items():
            exact_s = truth[chosen]
            off = np.array([one.corrected[chosen] for one in found]) / exact_s - 1
            plain = np.array([one.plain[chosen] for one in found]) / exact_s - 1
            stated = np.array([one.errors[chosen] for one in found]) / exact_s
            holds = np.abs(off) <= student.ppf(0.975, r - 1) * stated
            sizes = [root_mean_square(values) for values in (off, stated)]
            shown = [f"{off.mean():+.1%}", f"{plain.mean():+.1%}", *map("{:.1%}".format, sizes)]
            print(f"| {r} | {label} | {' | '.join(shown)} | {holds.mean():.1%} |")


if __name__ == "__main__":
    main()
