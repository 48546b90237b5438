"""Sizes of a network: channels at a width multiplier, and the number of classes."""

from __future__ import annotations

import math

from conescope.errors import RecipeError


def widened(channels: int, width: float) -> int:
    """Return the number of channels at a width multiplier, rounded, at least 1.

    Args:
        channels: the published number, width 1.
        width: a finite multiplier above 0.

    Raises:
        RecipeError: if the width is no such number.
    """
    if isinstance(width, bool) or not isinstance(width, int | float):
        raise RecipeError(f"width is {width!r}; give a number above 0, such as 0.5 or 1")
    if not (math.isfinite(width) and width > 0):
        raise RecipeError(f"width is {width}; give a finite number above 0, such as 0.5 or 1")
    return max(1, round(channels * width))


def check_classes(classes: int) -> None:
    """Raise `RecipeError` unless `classes`, the number of logits, is an integer of at least 1."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise RecipeError(f"classes is {classes!r}; give an integer of at least 1, such as 10")
