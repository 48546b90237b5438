"""A progress bar that notebooks show."""

from __future__ import annotations

import time
from html import escape
from typing import Any

_SECONDS = 0.2
"""Least time between two updates of a bar."""


class NotebookBar:
    """A progress bar as HTML, which a notebook shows without any widgets."""

    def __init__(self) -> None:
        self._name, self._step, self._total = "", 0, 1
        self._begun = self._shown = 0.0
        self._handle: Any = None

    def begin(self, name: str, step: int, total: int) -> None:
        """See `Progress.begin`."""
        from IPython.display import display

        self._name, self._step, self._total = name, step, total
        self._begun = self._shown = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def advance(self, step: int) -> None:
        """See `Progress.advance`."""
        self._step, now = step, time.monotonic()
        if step >= self._total or now - self._shown >= _SECONDS:
            self._shown = now
            self._handle.update(self)

    def __repr__(self) -> str:
        seconds = time.monotonic() - self._begun
        return f"{self._name}: {self._step:,} of {self._total:,}, {seconds:.0f} s"

    def _repr_html_(self) -> str:
        text = escape(repr(self))
        return (
            f'<progress value="{self._step}" max="{max(self._total, 1)}" aria-label="{text}" '
            f'style="width: 16em; vertical-align: middle"></progress> {text}'
        )
