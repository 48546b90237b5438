"""The protocol by which long work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What is told how far a run is, such as a progress bar."""

    def begin(self, name: str, step: int, total: int) -> None:
        """A run called `name` goes on at iteration `step` of `total`."""

    def advance(self, step: int) -> None:
        """Iteration `step` is done, with everything measured at it."""


class Silent:
    """Progress that shows nothing."""

    def begin(self, name: str, step: int, total: int) -> None:
        """Show nothing."""

    def advance(self, step: int) -> None:
        """Show nothing."""
