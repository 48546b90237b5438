"""Measuring anybody's model."""
