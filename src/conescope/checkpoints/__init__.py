"""A series of checkpoints that some other training wrote: found, read safely, and measured."""

from conescope.checkpoints.fit import load_weights
from conescope.checkpoints.given_steps import read_steps
from conescope.checkpoints.inputs import load_labels, load_probe
from conescope.checkpoints.measurement import measure_checkpoints, measure_snapshots
from conescope.checkpoints.read import read_weights
from conescope.checkpoints.series import Checkpoint, find_checkpoints

__all__ = [
    "Checkpoint",
    "find_checkpoints",
    "load_labels",
    "load_probe",
    "load_weights",
    "measure_checkpoints",
    "measure_snapshots",
    "read_steps",
    "read_weights",
]
