"""The test for the cone: what kind of motion the kernel makes in phase II, with error bars.

docs/cone.md explains the steps: `phases` finds where phase II begins; `tangent_plane` and
`time_modes` turn its distances into modes of time; `dimension` and `motions` fit models to them;
`verdict` weighs the models; `intervals` gives numbers with intervals.
"""

from conescope.statistics.cone.cone_of_series import Cone, cone
from conescope.statistics.cone.displacement import Displacement, mean_squared_displacement
from conescope.statistics.cone.intervals import Estimate
from conescope.statistics.cone.noise_contrast import Change, Contrast, contrast
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
