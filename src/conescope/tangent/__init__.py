"""Linearised training: the first-order Taylor model of a network in its weights."""

from conescope.tangent.linearized import LinearizedModel, linearize

__all__ = ["LinearizedModel", "linearize"]
