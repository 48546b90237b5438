"""A series of checkpoints that some other training wrote: found, read safely, and measured."""

from conescope.checkpoints.fit import load_weights
from conescope.checkpoints.read import read_weights
from conescope.checkpoints.series import Checkpoint, find_checkpoints

__all__ = ["Checkpoint", "find_checkpoints", "load_weights", "read_weights"]
