"""The entry point of the command line: whatever happens, one line and an exit status.

It imports little, so that it is in force while the commands, and with them torch, are loaded.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

_INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `conescope`; by default those that the process was called with, which
            then ends by Ctrl-C at any moment, and by a standard output that is closed or full,
            without a traceback.

    Returns:
        The exit status: 0 for success, 1 for an error, 2 for wrong arguments or a wrong recipe,
        128 + n when stopped by signal n.
    """
    if argv is None:
        return _run_as_program(sys.argv[1:])
    return _loaded(argv)(argv)


def _loaded(words: Sequence[str]) -> Callable[[Sequence[str]], int]:
    """Return what carries out a command; nothing is loaded to say the version."""
    if list(words) == ["--version"]:
        return _say_version
    from conescope.cli.all_commands import carry_out

    return carry_out


def _say_version(_: Sequence[str]) -> int:
    sys.stdout.write(f"conescope {version('conescope')}\n")
    return 0


def _run_as_program(words: Sequence[str]) -> int:
    try:
        with _ending_at_once():
            _open_standard_streams()
            carry_out = _loaded(words)
        try:
            return carry_out(words)
        finally:
            _end_at_once_from_now_on()
            _flush_standard_output()
    except BaseException as error:
        if _is_interrupt(error):
            return _INTERRUPTED
        reason = _reason(error)
        if reason is None:
            raise
        _tell(reason)
        return 1


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """End the process by Ctrl-C in a `with` block, in which nothing is written."""
    before = signal.getsignal(signal.SIGINT)
    _end_at_once_from_now_on()
    yield
    signal.signal(signal.SIGINT, before)


def _end_at_once_from_now_on() -> None:
    def end(*_: object) -> None:
        os._exit(_INTERRUPTED)

    def unraisable(raised: Any) -> None:  # what the interpreter could only print
        if isinstance(raised.exc_value, KeyboardInterrupt):
            end()
        sys.__unraisablehook__(raised)

    sys.unraisablehook = unraisable
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


def _flush_standard_output() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _open_standard_streams() -> None:
    """Open those of the standard streams that the process was started without.

    A file that a run opens would else take the place of standard output.
    """
    if sys.stdout is None:
        closed = os.open(os.devnull, os.O_RDONLY)  # so that whoever writes is told
        sys.stdout = os.fdopen(closed, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _reason(error: BaseException) -> str | None:
    """Return what an error of the system says, in one line; "" to say nothing, None if unknown."""
    if isinstance(error, BrokenPipeError):
        return ""
    if any(os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)):
        return "too many open files; allow more (ulimit -n 1024), then run the same command again"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    at = f"cannot use {error.filename}: " if error.filename else ""
    text = (
        f"{at}{error.strerror}; mend that, then run the same command again: what was stored is "
        f"intact"
    )
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error is, or was raised in the course of, an interrupt by Ctrl-C."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell(reason: str) -> None:
    """Say on standard error why the process ends, and keep the interpreter from writing more."""
    sys.unraisablehook = lambda _: None  # what fails from here on fails for the same reason
    told = f"conescope: error: {reason}\n" if reason else ""
    for stream, text in ((sys.stdout, ""), (sys.stderr, told)):
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
