"""The command line: parse, call, print; one file for each command or family of commands."""

from conescope.cli.main import main

__all__ = ["main"]
