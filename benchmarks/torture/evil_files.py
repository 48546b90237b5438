"""Evil files: bombs, pipes, devices and garbage in place of recipes, probes, texts and images."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.torture.outcome import Outcome

_SECONDS = 60
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
_ENDINGS = {
    "recipe": (".yaml",),
    "probe": (".npy", ".npz", ".pt", ".safetensors", ".parquet"),
    "weights": (".pt", ".safetensors"),
    "texts": (".jsonl", ".csv", ".txt", ".parquet"),
    "text": (".txt",),
}


def evil_files(seed: int, share: float) -> list[Outcome]:
    """Read evil files, each in a process of bounded memory; nothing in them may be executed.

    Args:
        seed: which of them are tried, and what garbage is.
        share: the share that is tried, above 0 and at most 1.
    """
    chance = random.Random(seed)
    cases = [("recipe", ".yaml", name, data) for name, data in _YAMLS.items()]
    for reader, endings in _ENDINGS.items():
        for ending in endings:
            cases += [(reader, ending, special, b"") for special in ("pipe", "zero", "folder")]
            cases += [(reader, ending, "empty", b""), (reader, ending, "pickle", b"PICKLE")]
            cases.append((reader, ending, "garbage", chance.randbytes(5000)))
            cases.append((reader, ending, "huge header", _numpy_header((10**12,))))
            cases.append((reader, ending, "safetensors header", b"\xff" * 7 + b"\x00{"))
            cases.append((reader, ending, "zip bomb", b"ZIP"))
    chosen = chance.sample(cases, max(1, round(share * len(cases))))
    return [_outcome(*case) for case in chosen]


def _outcome(reader: str, ending: str, name: str, data: bytes) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        path, mark = Path(folder) / f"evil{ending}", Path(folder) / "mark"
        if name == "pipe":
            os.mkfifo(path)
        elif name == "zero":
            path.symlink_to("/dev/zero")
        elif name == "folder":
            path.mkdir()
        else:
            data = pickle.dumps(_Evil(mark)) if data == b"PICKLE" else data
            data = _zipped(2**29) if data == b"ZIP" else data
            path.write_bytes(data.replace(b"MARK", str(mark).encode()))
        what = f"{reader}{ending}, {name}"
        command = [sys.executable, "-c", _READ.format(memory=_MEMORY), reader, str(path)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(what, False, f"no end within {_SECONDS} s")
        if mark.exists():
            return Outcome(what, False, "code of the file was executed")
        told = (ended.stdout.strip() or ended.stderr.strip()).splitlines()
        last = told[-1] if told else "nothing said"
        return Outcome(what, ended.returncode == 0, last)
