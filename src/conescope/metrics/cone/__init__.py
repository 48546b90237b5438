"""The cone as a test: what kind of motion the kernel makes in phase II, with error bars."""

from conescope.metrics.cone.analysis import Cone, cone
from conescope.metrics.cone.contrast import Change, Contrast, contrast
from conescope.metrics.cone.displacement import Displacement, mean_squared_displacement
from conescope.metrics.cone.estimate import Estimate
from conescope.metrics.cone.seeds import SeedCone, over_seeds
from conescope.metrics.cone.verdict import Evidence, Kind, Verdict

__all__ = [
    "Change",
    "Cone",
    "Contrast",
    "Displacement",
    "Estimate",
    "Evidence",
    "Kind",
    "SeedCone",
    "Verdict",
    "cone",
    "contrast",
    "mean_squared_displacement",
    "over_seeds",
]
