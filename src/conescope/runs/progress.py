"""The protocol by which a long computation reports its progress."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """An object that is told how far a run is, such as a progress bar."""

    def begin(self, name: str, step: int, total: int) -> None:
        """Take note that a run called `name` goes on at iteration `step` of `total`."""

    def advance(self, step: int) -> None:
        """Take note that iteration `step` is done, with all that is measured at it."""
