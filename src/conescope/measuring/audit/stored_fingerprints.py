"""Fingerprints in a folder, so that an audit that was stopped goes on, and new ones add to it."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from conescope.errors import DamageWarning
from conescope.measuring.audit.fingerprints import Fingerprint, TensorPrint
from conescope.runs.chain import read_regular
from conescope.runs.store import Folder

_VERSION = 2
"""The way in which fingerprints are computed and stored; others are not read."""


class StoredFingerprints:
    """A folder with a file for each checkpoint whose fingerprint was taken.

    Args:
        path: the folder; made when the first fingerprint is stored.
    """

    def __init__(self, path: Path) -> None:
        self._folder = Folder(path)

    def get(self, name: str, mark: str) -> Fingerprint | None:
        """Return the stored fingerprint of a checkpoint.

        Args:
            name: what names the checkpoint.
            mark: what changes when the checkpoint does, such as the sizes and times of its files.

        Returns:
            The fingerprint; None if there is none, or the checkpoint or the file has changed.

        Warns:
            DamageWarning: if the file is damaged; it is then as if there were none.
        """
        file = self._folder.path / _file_of(name)
        try:
            held = json.loads(read_regular(file))
            if held["version"] != _VERSION:
                return None
            text = held["text"]
            if hashlib.sha256(text.encode()).hexdigest() != held["sha256"]:
                raise ValueError("its checksum does not match")
            stored = json.loads(text)
            if (stored["name"], stored["mark"]) != (name, mark):
                return None
            return {tensor: _read(values) for tensor, values in stored["tensors"].items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(
                f"{file} is damaged ({error}); the fingerprint is taken again",
                DamageWarning,
                stacklevel=5,
            )
            return None

    def add(self, name: str, mark: str, fingerprint: Fingerprint) -> None:
        """Store the fingerprint of a checkpoint, in place of an older one.

        Raises:
            StoreError: if the folder cannot be written.
        """
        tensors = {tensor: _written(each) for tensor, each in fingerprint.items()}
        text = json.dumps({"name": name, "mark": mark, "tensors": tensors})
        checksum = hashlib.sha256(text.encode()).hexdigest()
        held = {"version": _VERSION, "sha256": checksum, "text": text}
        self._folder.write_bytes(_file_of(name), json.dumps(held).encode())


def _file_of(name: str) -> str:
    return f"fingerprints/{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _written(each: TensorPrint) -> list[Any]:
    sketch = base64.b64encode(each.sketch.astype("<f8").tobytes()).decode()
    return [list(each.shape), each.dtype, each.digest, each.not_finite, each.file, sketch]


def _read(values: list[Any]) -> TensorPrint:
    shape, dtype, digest, not_finite, file, sketch = values
    numbers = np.frombuffer(base64.b64decode(sketch), dtype="<f8")
    return TensorPrint(tuple(shape), dtype, digest, not_finite, file, numbers)
