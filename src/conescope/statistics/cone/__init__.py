"""The cone as a test: what kind of motion the kernel makes in phase II, with error bars."""

from conescope.statistics.cone.analysis import Cone, cone
from conescope.statistics.cone.contrast import Change, Contrast, contrast
from conescope.statistics.cone.displacement import Displacement, mean_squared_displacement
from conescope.statistics.cone.estimate import Estimate
from conescope.statistics.cone.seeds import SeedCone, over_seeds
from conescope.statistics.cone.verdict import Evidence, Kind, Verdict

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
