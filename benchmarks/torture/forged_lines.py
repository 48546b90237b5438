"""What is forged in journals: odd values of fields, and odd lines."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.torture.forging import Line

REMOVED = object()
"""What stands for a field that is left out."""

SECRET = "outside/secret.safetensors"
"""A file beside the run folder."""

_ESCAPE = "\x1b[31m\n\u202ex"
ODD: Mapping[str, object] = {
    "nothing": REMOVED, "null": None, "true": True, "-1": -1, "0": 0, "3": 3, "0.5": 0.5,
    "1e30": 10**30, "-1e400": -(10**400), "NaN": float("nan"), "infinity": float("inf"),
    "a number as text": "7", "empty text": "", "escapes": _ESCAPE, "a long text": "x" * 10**6,
    "an empty list": [], "a list of nothing": [None], "a list of odd things": [0, "a", {}, -1],
    "an empty object": {}, "an object": {"a": {"b": 1}}, "a path upwards": f"../{SECRET}",
    "a path upwards from within": f"kernels/../../{SECRET}", "an absolute path": SECRET,
    "the journal": "journal.jsonl", "the folder": ".", "a path with a zero": "a\0b",
}  # fmt: skip
ODD_INSIDE = ("nothing", "null", "-1", "1e30", "NaN", "escapes", "a list of odd things")
"""What is put in place of the fields of fields, of which there are many."""

ADDED: Mapping[str, Line] = {
    "a revision": {"kind": "revision", "step": 4, "name": 3, "commit": None, "stage": [],
        "begins": "x"},
    "a revision with escapes": {"kind": "revision", "step": 8, "name": "a", "commit": "b",
        "stage": _ESCAPE, "begins": -5, "config": None},
    "skipped steps": {"kind": "skipped", "steps": [4, "8", None, -1], "budget": "x"},
    "labels of another length": {"kind": "labels", "labels": [1]},
    "labels that are no numbers": {"kind": "labels", "labels": ["a", None]},
    "huge labels": {"kind": "labels", "labels": [10**30] * 10},
    "a removed file of no name": {"kind": "removed"},
    "a divergence of no step": {"kind": "diverged", "reason": None},
    "mended, of nothing": {"kind": "mended"},
    "mended, of odd things": {"kind": "mended", "lost": [1, {}], "kept": "../x"},
    "a kind of no name": {"kind": None},
    "a kind of another type": {"kind": ["run"]},
    "a kind with escapes": {"kind": _ESCAPE},
    "a second run": {"kind": "run", "command": 3},
    "a second source": {"kind": "run", "source": {"name": [], "description": 4}, "command": ""},
    "a session of another type": {"kind": "session", "environment": [1]},
    "a session of odd values": {"kind": "session", "environment": {"torch": 5, _ESCAPE: _ESCAPE}},
    "an evaluation of nothing": {"kind": "evaluation", "step": 4},
}  # fmt: skip
"""Name → a line that is added."""
