"""Times the whole analysis of a long series: `python tests/cone_time.py [KERNELS [IMAGES]]`."""

import resource
import sys
import time

import numpy as np
import torch

from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.report.analysis import analyse, numbers
from made_runs import made_run


def series(count: int, images: int) -> KernelSeries:
    """Float32 kernels of features that are drawn back to where they began."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((images, images))
    features, kernels = centre.copy(), []
    for _ in range(count):
        features += 0.1 * (centre - features) + 0.05 * rng.standard_normal(features.shape)
        kernels.append(Kernel(torch.from_numpy(features @ features.T).float()))
    return KernelSeries(range(0, 100 * count, 100), kernels)


def main(count: int = 1000, images: int = 256) -> None:
    run = made_run(series(count, images))
    began, used = time.perf_counter(), time.process_time()
    found = numbers(analyse(run, torch.arange(images) % 10))
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count} kernels of {images} images: {wall:.1f} s, {cpu:.1f} s of CPU, {memory:.1f} GB")
    print(f"verdict: {found['verdict']}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
