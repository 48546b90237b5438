"""Colours at a terminal, and none where the user does not want them."""

import os
import pty
import re
import subprocess
import sys

import pytest

SCRIPT = """
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, print_table, say

with ProgressBar(STDERR) as bar:
    bar.begin("training", 0, 10)
    bar.advance(10)
print_table({"name": "[red]value[/red]"})
say("warning", "[bold]text[/bold]")
"""


def shown(**environment):
    """What a terminal is sent."""
    mine, theirs = pty.openpty()
    kept = {n: v for n, v in os.environ.items() if n not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            found += (piece := os.read(mine, 65536))
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
    os.close(mine)
    assert process.wait() == 0
    text = found.decode()
    assert "[red]value[/red]" in text
    assert "[bold]text[/bold]" in text
    return text


COLOUR = re.compile(r"\x1b\[[\d;]*?(3[0-9]|4[0-9]|9[0-7])[\d;]*m")


def test_a_terminal_is_sent_colours():
    assert COLOUR.search(shown())


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(environment):
    assert not COLOUR.search(shown(**environment))


def test_a_dumb_terminal_is_sent_no_escape_at_all():
    assert "\x1b" not in shown(TERM="dumb")
