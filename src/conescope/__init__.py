"""conescope: an instrument for the learning dynamics of neural networks."""

from conescope.checkpoints import load_probe, measure_checkpoints, measure_snapshots
from conescope.entk import Plan, entk, estimate_distance, estimate_entk, plan
from conescope.kernel import Kernel
from conescope.metrics.cone import Cone, cone
from conescope.metrics.distance import kernel_distance, kernel_velocity
from conescope.run import load_run
from conescope.series import KernelSeries
from conescope.tangent import LinearizedModel, linearize
from conescope.watch import Watch

__all__ = [
    "Cone",
    "Kernel",
    "KernelSeries",
    "LinearizedModel",
    "Plan",
    "Watch",
    "cone",
    "entk",
    "estimate_distance",
    "estimate_entk",
    "kernel_distance",
    "kernel_velocity",
    "linearize",
    "load_probe",
    "load_run",
    "measure_checkpoints",
    "measure_snapshots",
    "plan",
]
