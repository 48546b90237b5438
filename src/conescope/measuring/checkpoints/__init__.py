"""Find, read and measure the checkpoints that another program's training wrote."""

from conescope.measuring.checkpoints.given_steps import read_steps, steps_by_epoch
from conescope.measuring.checkpoints.loading import load_weights
from conescope.measuring.checkpoints.measurement import measure_checkpoints
from conescope.measuring.checkpoints.probe_files import load_labels, load_probe
from conescope.measuring.checkpoints.sources import Checkpoint, find_checkpoints
from conescope.measuring.checkpoints.weight_files import read_weights

__all__ = [
    "Checkpoint",
    "find_checkpoints",
    "load_labels",
    "load_probe",
    "load_weights",
    "measure_checkpoints",
    "read_steps",
    "read_weights",
    "steps_by_epoch",
]
