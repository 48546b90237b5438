"""Linearised training: the first-order Taylor model of a network in its weights."""

from conescope.tangent.linearized import LINEARIZATION_POINT, LinearizedModel, linearize

__all__ = ["LINEARIZATION_POINT", "LinearizedModel", "linearize"]
