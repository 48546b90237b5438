"""`--json`: what a command found, as one JSON value on standard output, and nothing else there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from conescope.cli.terminal import STDOUT


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option; the command finds it as `json`."""
    parser.add_argument(
        "--json", action="store_true", help="print what was found as JSON, and nothing else"
    )


def print_json(facts: Mapping[str, Any]) -> None:
    """Print facts as JSON; NaN is null. docs/command-line.md says what each name means."""
    from conescope.report.json_values import json_value

    STDOUT.out(json.dumps(json_value(facts), indent=1, allow_nan=False))
