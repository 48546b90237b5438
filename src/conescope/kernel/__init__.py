"""Kernels, series of kernels, and the kernel distance S between two."""

from conescope.kernel.distance import kernel_distance, kernel_velocity
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel, Outputs
from conescope.kernel.series import KernelSeries

__all__ = ["Features", "Kernel", "KernelSeries", "Outputs", "kernel_distance", "kernel_velocity"]
