"""Print tables, messages and warnings for all commands, and notice a request to stop."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conescope.runs.foreign import one_line, printable


class Terminal(Console):
    """A console that shows control characters in texts, such as foreign names, as escapes."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables; see `rich.console.Console.print`."""
        shown = (printable(o) if isinstance(o, str) else o for o in objects)
        with self._named():
            super().print(*shown, **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """Print texts as they are; see `rich.console.Console.out`."""
        with self._named():
            super().out(*(printable(str(o)) for o in objects), **options)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the stream in the error of one that is full or closed."""
        try:
            yield
        except OSError as error:
            name = "standard error" if self.stderr else "standard output"
            raise OSError(error.errno, error.strerror, name) from error


STDOUT = Terminal(highlight=False, soft_wrap=True, force_jupyter=False)
STDERR = Terminal(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False)

_NAMES_WIDTH, _COLUMN_WIDTH = 20, 16
"""Letters that the names of a table's rows take, and that each column takes at least."""


def print_table(rows: Mapping[str, str]) -> None:
    """Print names and values side by side, without cutting any on a narrow terminal."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=max(STDOUT.width * 2 // 5, 12))
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(plain(name), plain(value))
    STDOUT.print(table)


def print_columns(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a table: a head for the names and for each column, then a row for each name.

    Columns that the terminal is too narrow for come below, in a table of their own.
    """
    name, *columns = heads
    fit = max(1, (STDOUT.width - _NAMES_WIDTH) // _COLUMN_WIDTH)
    for begin in range(0, len(columns), fit):
        chosen = slice(begin, begin + fit)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in (name, *columns[chosen]):
            table.add_column(plain(head), overflow="fold")
        for row, values in rows.items():
            table.add_row(plain(row), *(plain(value) for value in values[chosen]))
        STDOUT.print(table)


def duration(seconds: float) -> str:
    """Return a time as text, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def plain(text: str) -> Text:
    """Return a text to print as it is, without markup, and with control characters as escapes."""
    return Text(printable(text))


def say(what: str, text: str) -> None:
    """Print a one-line message on standard error, whatever the names in it hold."""
    STDERR.print(Text(one_line(f"conescope: {what}: {text}")))


@contextmanager
def stopping(before_it: str = "storing the state of this iteration") -> Iterator[list[int]]:
    """Record the first Ctrl-C or SIGTERM instead of ending by it; the second one interrupts.

    A signal that the process ignores, as those do that a sweep has begun, stays ignored.

    Args:
        before_it: what is done before the process ends, to say so.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say("stopping", f"{before_it}; once more to stop without")

    heard = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, note) for s in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Said(logging.Handler):
    """Prints what is logged as one-line messages."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), record.getMessage())


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print warnings, logged ones too, as one-line messages; leave out those for developers."""
    logger, said = logging.getLogger("conescope"), _Said(logging.WARNING)
    logger.addHandler(said)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = lambda message, *_: say("warning", str(message))
            yield
    finally:
        logger.removeHandler(said)
