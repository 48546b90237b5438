"""conescope: an instrument for the learning dynamics of neural networks.

The public names are loaded when they are first used, so that measuring a model loads nothing of
what trains the paper's networks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conescope.engine import (
        Plan,
        entk,
        estimate_distance,
        estimate_entk,
        plan,
        preconditioner,
        project,
    )
    from conescope.experiments.lazy import LazyReport, lazy_report
    from conescope.experiments.remeasure import measure_snapshots
    from conescope.experiments.stored import load_run
    from conescope.kernel import Features, Kernel, KernelSeries, kernel_distance, kernel_velocity
    from conescope.measuring.audit import audit_checkpoints
    from conescope.measuring.checkpoints import load_probe, measure_checkpoints
    from conescope.measuring.hub.hub_measurement import measure_hub
    from conescope.measuring.watch import Watch
    from conescope.report.sweep_table import load_sweep
    from conescope.report.verification import verify
    from conescope.statistics.cone import Cone, cone
    from conescope.tangent import LinearizedModel, linearize

__all__ = [
    "Cone",
    "Features",
    "Kernel",
    "KernelSeries",
    "LazyReport",
    "LinearizedModel",
    "Plan",
    "Watch",
    "audit_checkpoints",
    "cone",
    "entk",
    "estimate_distance",
    "estimate_entk",
    "kernel_distance",
    "kernel_velocity",
    "lazy_report",
    "linearize",
    "load_probe",
    "load_run",
    "load_sweep",
    "measure_checkpoints",
    "measure_hub",
    "measure_snapshots",
    "plan",
    "preconditioner",
    "project",
    "verify",
]

_HOMES = {
    "engine": (
        "Plan",
        "entk",
        "estimate_distance",
        "estimate_entk",
        "plan",
        "preconditioner",
        "project",
    ),
    "experiments.lazy": ("LazyReport", "lazy_report"),
    "experiments.remeasure": ("measure_snapshots",),
    "experiments.stored": ("load_run",),
    "kernel": ("Features", "Kernel", "KernelSeries", "kernel_distance", "kernel_velocity"),
    "measuring.audit": ("audit_checkpoints",),
    "measuring.checkpoints": ("load_probe", "measure_checkpoints"),
    "measuring.hub.hub_measurement": ("measure_hub",),
    "measuring.watch": ("Watch",),
    "report.sweep_table": ("load_sweep",),
    "report.verification": ("verify",),
    "statistics.cone": ("Cone", "cone"),
    "tangent": ("LinearizedModel", "linearize"),
}
"""Module → the public names that are defined there."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"conescope.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'conescope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
