"""The eNTK engine: from a model and inputs to a `Kernel`."""

from conescope.engine.engine import entk
from conescope.engine.estimate import KernelEstimate, estimate_distance, estimate_entk
from conescope.engine.plan import LayerPlan, Plan, plan

__all__ = [
    "KernelEstimate",
    "LayerPlan",
    "Plan",
    "entk",
    "estimate_distance",
    "estimate_entk",
    "plan",
]
