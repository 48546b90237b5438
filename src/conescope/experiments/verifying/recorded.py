"""The environments that a run's journal recorded, and in which of them a result was made."""

from __future__ import annotations

from collections.abc import Mapping

from conescope.runs.contents import DATA
from conescope.runs.environment import differences
from conescope.runs.journal import Kind
from conescope.runs.store import Folder

_CODE = "code of "
UNKNOWN = "environment, which the journal does not name"
"""The difference that is named where no session was recorded before a result."""

Place = tuple[Kind, int]
"""A kind of result and its iteration."""


class RecordedEnvironments:
    """The environments of a run's sessions, in the order of the journal.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._sessions: list[Mapping[str, str]] = []
        self._session_of: dict[Place, int] = {}
        for entry in folder.entries(*Kind):
            if entry.kind == Kind.SESSION:
                self._sessions.append(entry.values["environment"])
            elif "step" in entry.values:
                self._session_of[entry.kind, entry.values["step"]] = len(self._sessions) - 1

    @property
    def newest(self) -> Mapping[str, str]:
        """The environment of the newest session; empty if none is recorded."""
        return self._sessions[-1] if self._sessions else {}

    @property
    def threads(self) -> int | None:
        """The number of threads of the newest session; None if it is not known."""
        text = self.newest.get("threads", "")
        return int(text) if text.isdecimal() and 0 < int(text[:6]) <= _MOST_THREADS else None

    def differing(self, here: Mapping[str, str], first: Place | None, last: Place) -> list[str]:
        """Return what of this environment differs from those in which a result was made.

        Args:
            here: this environment, as `conescope.runs.environment.describe` gives it.
            first: the state from which the result follows; None for the beginning of the run.
            last: the result.

        Returns:
            Names such as "torch" or "threads", sorted. A user's own code does not count, since it
            may change results by more than rounding.
        """
        bounds = [self._session_of.get(place, 0) for place in (first, last) if place is not None]
        begin, end = min(bounds if first else [0, *bounds]), max(bounds)
        made_in = self._sessions[max(begin, 0) : end + 1]
        if not made_in or begin < 0:
            return [UNKNOWN]
        return sorted({name for one in made_in for name in _changed(one, here)})

    def changed_code(self, here: Mapping[str, str]) -> list[str]:
        """Return the names of a user's own code whose file is not the recorded one, sorted.

        Args:
            here: name, such as package.module:build → sha256 of the file as it is now.
        """
        return sorted(
            {
                name
                for session in self._sessions
                for name, digest in here.items()
                if session.get(_CODE + name) != digest
            }
        )


_MOST_THREADS = 1024


def _changed(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    names = differences(recorded, here)
    return [name for name in names if name != DATA and not name.startswith(_CODE)]
