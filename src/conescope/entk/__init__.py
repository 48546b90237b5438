"""The eNTK engine: from a model and inputs to a `Kernel`."""

from conescope.entk.engine import entk
from conescope.entk.estimate import KernelEstimate, estimate_distance, estimate_entk
from conescope.entk.plan import LayerPlan, Plan, plan

__all__ = [
    "KernelEstimate",
    "LayerPlan",
    "Plan",
    "entk",
    "estimate_distance",
    "estimate_entk",
    "plan",
]
