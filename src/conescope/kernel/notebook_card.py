"""How a notebook shows a value: its card, which the room of reports draws.

That room stands above this one and is heavy, so it is named here, and loaded when a card is shown.
"""

from __future__ import annotations

from importlib import import_module
from typing import Literal


def card(kind: Literal["run", "series"], value: object) -> str:
    """Return the card of a value as HTML."""
    return getattr(import_module("conescope.report.cards"), f"{kind}_card")(value)
