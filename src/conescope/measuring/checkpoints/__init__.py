"""A series of checkpoints that some other training wrote: found, read safely, and measured."""

from conescope.measuring.checkpoints.fit import load_weights
from conescope.measuring.checkpoints.given_steps import read_steps
from conescope.measuring.checkpoints.inputs import load_labels, load_probe
from conescope.measuring.checkpoints.measurement import measure_checkpoints
from conescope.measuring.checkpoints.read import read_weights
from conescope.measuring.checkpoints.series import Checkpoint, find_checkpoints

__all__ = [
    "Checkpoint",
    "find_checkpoints",
    "load_labels",
    "load_probe",
    "load_weights",
    "measure_checkpoints",
    "read_steps",
    "read_weights",
]
