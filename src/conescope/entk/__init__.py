"""The eNTK engine: from a model and inputs to a `Kernel`."""

from conescope.entk.engine import entk

__all__ = ["entk"]
