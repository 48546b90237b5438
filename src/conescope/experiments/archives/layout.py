"""The layout of an archive: which names its members may have, and how it describes itself.

An archive is a zip file of uncompressed members: the files of one run folder, and first a
description of them as RO-Crate 1.1 (https://w3id.org/ro/crate/1.1), which repositories read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conescope.errors import StoreError

CRATE = "ro-crate-metadata.json"
"""The member that describes the archive; it comes first."""

MOST_CRATE_BYTES = 64 * 2**20
"""The size up to which a description is read."""

_ROOT = "./"
_LEFT_OUT = "left-out/"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,119}"
_MEMBER = re.compile(
    rf"(branches/{_NAME}/){{0,4}}"
    r"(journal\.jsonl|recipe\.yaml|report\.html|numbers\.json|origin\.safetensors"
    rf"|(kernels|averaged|snapshots)/[0-9]{{8,18}}\.safetensors|figures/{_NAME}\.(pdf|png|csv))"
)
_DIGEST = re.compile("[0-9a-f]{64}")
_FORMATS = {
    ".jsonl": "application/x-ndjson",
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".html": "text/html",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".csv": "text/csv",
    ".safetensors": "application/octet-stream",
}


@dataclass(frozen=True)
class Member:
    """A file of a run, in an archive or left out of it.

    Attributes:
        sha256: of its contents, 64 hexadecimal digits.
        size: in bytes; None for a file that is left out and gone.
    """

    sha256: str
    size: int | None


@dataclass(frozen=True)
class Description:
    """The description that an archive gives of itself.

    Attributes:
        name: the run's name.
        text: what was trained or measured, in one line.
        date: the day on which the journal was last written, such as 2025-06-30.
        software: the version of conescope that wrote the archive.
        environment: versions and machine of the run's newest session.
        files: name → each file in the archive.
        left_out: name → each snapshot that the journal names and the archive does not hold.
    """

    name: str
    text: str
    date: str
    software: str
    environment: Mapping[str, str]
    files: Mapping[str, Member]
    left_out: Mapping[str, Member]

    def to_bytes(self) -> bytes:
        """Return the RO-Crate metadata; equal descriptions give equal bytes."""
        graph = [
            {
                "@id": CRATE,
                "@type": "CreativeWork",
                "about": {"@id": _ROOT},
                "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            },
            self._root(),
            {
                "@id": "#conescope",
                "@type": "SoftwareApplication",
                "name": "conescope",
                "softwareVersion": self.software,
            },
            {
                "@id": "#run",
                "@type": "CreateAction",
                "name": f"the run {self.name}",
                "instrument": {"@id": "#conescope"},
                "result": {"@id": _ROOT},
                "description": ", ".join(f"{k}: {v}" for k, v in self.environment.items()),
            },
            *(_file(name, member) for name, member in sorted(self.files.items())),
            *(_absent(name, member) for name, member in sorted(self.left_out.items())),
        ]
        context = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
        return json.dumps({"@context": context, "@graph": graph}, indent=1).encode() + b"\n"

    def _root(self) -> dict[str, Any]:
        without = (
            f" {len(self.left_out)} snapshots of its weights are left out, see 'mentions'."
            if self.left_out
            else ""
        )
        return {
            "@id": _ROOT,
            "@type": "Dataset",
            "name": self.name,
            "description": f"A run folder of conescope: {self.text}.{without} 'conescope verify' "
            f"checks it, and 'conescope import' unpacks it.",
            "datePublished": self.date,
            "hasPart": [{"@id": name} for name in sorted(self.files)],
            "mentions": [{"@id": f"#{_LEFT_OUT}{name}"} for name in sorted(self.left_out)],
        }


def is_member(name: str) -> bool:
    """Return whether a name may be that of a run's file in an archive."""
    return _MEMBER.fullmatch(name) is not None


def described(data: bytes, where: str) -> tuple[dict[str, Member], dict[str, Member], str]:
    """Return the files of an archive, those left out of it, and its date, from its metadata.

    Args:
        data: the metadata, from whatever source.
        where: what it is of, for messages.

    Raises:
        StoreError: if it is no metadata that `Description.to_bytes` writes.
    """
    refusal = StoreError(f"{where} has no {CRATE} as conescope export writes it; ask for another")
    files, left_out, date = {}, {}, ""
    try:
        for entity in json.loads(data)["@graph"]:
            name = entity["@id"]
            if name == _ROOT:
                date = entity["datePublished"]
            elif entity["@type"] == "File":
                files[name] = Member(entity["sha256"], int(entity["contentSize"]))
            elif name.startswith(f"#{_LEFT_OUT}"):
                size = entity.get("contentSize")
                member = Member(entity["sha256"], None if size is None else int(size))
                left_out[name.removeprefix(f"#{_LEFT_OUT}")] = member
        found = {**files, **left_out}
        is_sound = all(
            is_member(name) and _DIGEST.fullmatch(member.sha256) and (member.size or 0) >= 0
            for name, member in found.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise refusal from None
    if not is_sound or not isinstance(date, str):
        raise refusal
    return files, left_out, date


def left_out_of(folder: Path) -> dict[str, str]:
    """Return the snapshots that an imported folder's archive was made without: name → sha256.

    Raises:
        StoreError: if the folder's metadata are damaged.
    """
    path = folder / CRATE
    try:
        if not path.is_file() or path.stat().st_size > MOST_CRATE_BYTES:
            return {}
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; mend that first") from error
    return {name: member.sha256 for name, member in described(data, str(folder))[1].items()}


def _file(name: str, member: Member) -> dict[str, Any]:
    return {
        "@id": name,
        "@type": "File",
        "name": name,
        "contentSize": str(member.size),
        "encodingFormat": _FORMATS[Path(name).suffix],
        "sha256": member.sha256,
    }


def _absent(name: str, member: Member) -> dict[str, Any]:
    size = {} if member.size is None else {"contentSize": str(member.size)}
    return {
        "@id": f"#{_LEFT_OUT}{name}",
        "@type": "CreativeWork",
        "name": name,
        "description": "a snapshot that the journal names and this archive does not hold",
        "sha256": member.sha256,
        **size,
    }
