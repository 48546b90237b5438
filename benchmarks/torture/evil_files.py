"""Evil files: bombs, pipes, devices and garbage in place of recipes, probes, texts and images."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.torture.case import Case
from benchmarks.torture.processes import SECONDS

_MEMORY = 6 * 2**30

_READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory},) * 2)
from conescope.errors import ConescopeError
from conescope.measuring.checkpoints.probe_files import load_probe
from conescope.measuring.checkpoints.weight_files import read_weights
from conescope.measuring.texts import read_texts
from conescope.training.data.mnist import load as images
from conescope.training.data.text import load as text
from conescope.training.recipe_reading import load_recipe
from pathlib import Path
read = {{"probe": load_probe, "weights": lambda p: read_weights([Path(p)]), "texts": read_texts,
        "images": images, "text": text, "recipe": load_recipe}}[sys.argv[1]]
try:
    read(sys.argv[2])
    print("read")
except ConescopeError as error:
    print("refused:", ascii(str(error)))
"""


class _Evil:
    """An object whose pickle leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


def _numpy_header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    opened = io.BytesIO()
    values = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, values)
    return opened.getvalue()


def _zipped(size: int) -> bytes:
    opened = io.BytesIO()
    with zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", _numpy_header((size,), "|u1") + bytes(size))
    return opened.getvalue()


def _safetensors(kind: str, shape: list[int], place: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": place}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


_YAMLS = {
    "aliases": b"a: &a [x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (k, k, b", ".join([b"*%c" % (k - 1)] * 9)) for k in range(98, 110)
    ),
    "depth": b"a: " + b"[" * 100_000,
    "digits": b"seed: " + b"9" * 200_000,
    "doubled": b"seed: 1\nseed: 2\n",
    "escape": b'name: "\\e]0;owned\\a"\n',
    "python": b"a: !!python/object/apply:os.mkdir [MARK]\n",
    "itself": b"a: &a [*a]\n",
    "large": b"# " + b"x" * 10_000_000,
    "bytes": bytes(range(256)),
}  # fmt: skip
_CONTENTS: dict[str, bytes | None] = {
    **dict.fromkeys(("pipe", "zero", "folder", "pickle", "zip bomb", "garbage")),
    "empty": b"",
    "huge header": _numpy_header((10**12,)),
    "negative header": _numpy_header((-1, 3)),
    "odd header": b"\x93NUMPY\x01\x00\xff\xff{",
    "safetensors header": b"\xff" * 7 + b"\x00{",
    "huge safetensors header": (2**40).to_bytes(8, "little") + b"{}",
    "safetensors beyond its end": _safetensors("F32", [10**9], [0, 4 * 10**9]),
    "safetensors of an odd type": _safetensors("F7", [2], [0, 8]),
    "safetensors out of order": _safetensors("F32", [2], [8, 0]),
    "JSON of depth": b"[" * 100_000,
    "a line without end": b"x" * 5_000_000,
    "zeros": bytes(100_000),
    "surrogates": b'{"text": "\\ud800"}\n',
    "escapes": b'{"text": "\\u001b[31m"}\n\x1b[31m',
    "half a zip": _zipped(1000)[:200],
    "half a parquet": b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1",
}
"""Name → what a file holds; None for what is made in the case."""

_ENDINGS = {
    "recipe": (".yaml",),
    "probe": (".npy", ".npz", ".pt", ".safetensors", ".parquet"),
    "weights": (".pt", ".safetensors"),
    "texts": (".jsonl", ".csv", ".txt", ".parquet"),
    "text": (".txt",),
}


def evil_files(_: Path) -> list[Case]:
    """Read evil files, each in a process of bounded memory; nothing in them may be executed."""
    cases: list[tuple[str, str, str, bytes | None]] = [
        ("recipe", ".yaml", name, data) for name, data in _YAMLS.items()
    ]
    for reader, endings in _ENDINGS.items():
        for ending in endings:
            cases += [(reader, ending, name, data) for name, data in _CONTENTS.items()]
    return [
        Case(name, f"{reader}{ending}, {name}", partial(_attempted, reader, ending, name, data))
        for reader, ending, name, data in cases
    ]


def _attempted(
    reader: str, ending: str, name: str, data: bytes | None, place: Path, chance: random.Random
) -> Iterator[str]:
    path, mark = place / f"evil{ending}", place / "mark"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "zero":
        path.symlink_to("/dev/zero")
    elif name == "folder":
        path.mkdir()
    elif name == "pickle":
        path.write_bytes(pickle.dumps(_Evil(mark)))
    elif name == "zip bomb":
        path.write_bytes(_zipped(2**29))
    else:
        data = chance.randbytes(5000) if data is None else data
        path.write_bytes(data.replace(b"MARK", str(mark).encode()))
    command = [sys.executable, "-c", _READ.format(memory=_MEMORY), reader, str(path)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield f"no end within {SECONDS} s"
        return
    if mark.exists():
        yield "code of the file was executed"
    if ended.returncode != 0:
        told = (ended.stdout.strip() or ended.stderr.strip()).splitlines()
        yield told[-1] if told else "nothing said"
