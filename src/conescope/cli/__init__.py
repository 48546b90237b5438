"""The command line: parse, call, print; one file a command or a family of them."""

from conescope.cli.main import main

__all__ = ["main"]
