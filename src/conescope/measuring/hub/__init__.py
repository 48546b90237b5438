"""Measure series that say themselves of which model they are; docs/hub.md describes it.

They are on the Hugging Face Hub, or in folders that transformers or peft saved.

The modules of this package load huggingface_hub, and those that build models transformers; this
file loads neither.
"""

from __future__ import annotations

import glob
from pathlib import Path

SCHEME = "hf://"
"""The beginning of an address on the Hub."""


def is_on_hub(source: str | Path) -> bool:
    """Return whether a source is on the Hub, or is a folder, or glob of folders, in its layout."""
    text = str(source)
    if text.startswith(SCHEME):
        return True
    folders = glob.glob(text) if is_wild(text) else [text]
    return any(
        all((Path(folder) / name).is_dir() for name in ("refs", "snapshots")) for folder in folders
    )


def is_wild(text: str) -> bool:
    """Return whether a text is a pattern, rather than a name."""
    return any(sign in text for sign in "*?[")
