"""The eNTK engine: from a model and inputs to a `Kernel`.

The files of this package hold the public calls, their checks, and the general route. Below them
are three packages, in the order in which the data passes through them: `tracing` calls the model
and records operations, `layers` turns the records into factors of per-sample gradients, `compute`
multiplies the factors. Each may import the next, never the one before: what is handed down are
values, so that a layer knows nothing of models, and arithmetic nothing of layers.
"""

from conescope.engine.estimate import estimate_distance, estimate_entk
from conescope.engine.exact import entk
from conescope.engine.plan import LayerPlan, Plan, plan
from conescope.engine.project import project
from conescope.engine.second_moments import preconditioner

__all__ = [
    "LayerPlan",
    "Plan",
    "entk",
    "estimate_distance",
    "estimate_entk",
    "plan",
    "preconditioner",
    "project",
]
