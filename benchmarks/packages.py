"""Build wheel and sdist, install each in fresh environments of several Pythons, and try them.

    python -m benchmarks.packages python3.11 python3.12 python3.13

For each Python and each of the two files it makes an environment with nothing but the package and
what it depends on, at the versions of requirements.lock, trains a small network there by the
command line, and verifies the run. The sdist is also unpacked, and its tests are collected from
there. The exit status is 0 if all of it succeeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

RUN = (
    "run", "digits", "--model.name=mlp", "--training.steps=20", "--kernel.when=0, every 10",
    "--probe.size=10", "--out=mine", "--json",
)  # fmt: skip

MEASURED = """
import torch, conescope as cs
kernel = cs.entk(torch.nn.Linear(3, 2), torch.randn(4, 3))
assert kernel.values.shape == (4, 4)
assert len(cs.load_run("mine").series) == 3
"""


def main() -> int:
    """Do it for the Pythons named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packages", description=__doc__)
    parser.add_argument("pythons", metavar="PYTHON", nargs="+", help="interpreters to try")
    parser.add_argument("--dist", metavar="DIR", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    build = [sys.executable, "-m", "build", "--outdir", arguments.dist, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    sdist, wheel = (max(arguments.dist.glob(p), key=_age) for p in ("*.tar.gz", "*.whl"))
    found = [_tell(f"{sdist.name}: its tests", _collect(sdist))]
    for python in arguments.pythons:
        for file in (wheel, sdist):
            found.append(_tell(f"{file.name} in {python}", _try(python, file)))
    return 0 if all(found) else 1


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _tell(what: str, problem: str) -> bool:
    print(f"{what}: {problem or 'ok'}", flush=True)
    return not problem


def _collect(sdist: Path) -> str:
    """Collect the tests of an unpacked sdist; return what went wrong, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        environment = {**os.environ, "PYTHONPATH": str(unpacked / "src")}
        words = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
        return _problem(words, unpacked, environment)


def _try(python: str, file: Path) -> str:
    """Install a file in a fresh environment, and use it; return what went wrong, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inner = place / "environment/bin/python"
        conescope = place / "environment/bin/conescope"
        install = [inner, "-m", "pip", "install", "-q", "-c", ROOT / "requirements.lock", file]
        for words in (
            [python, "-m", "venv", place / "environment"],
            install,
            [conescope, "--version"],
            [conescope, "recipes", "--json"],
            [conescope, *RUN],
            [conescope, "verify", "mine", "--share", "1", "--json"],
            [inner, "-c", MEASURED],
        ):
            if problem := _problem(words, place, {**os.environ, "PYTHONPATH": ""}):
                return problem
    return ""


def _problem(words: Sequence[str | Path], place: Path, environment: Mapping[str, str]) -> str:
    """Carry out a command; return what went wrong, or ""."""
    try:
        done = subprocess.run(
            words, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    shown = " ".join(map(str, words[:4]))
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        return f"{shown} … ends with {done.returncode}: {lines[-1]}"
    if "--json" in words:
        json.loads(done.stdout)
    return ""


if __name__ == "__main__":
    sys.exit(main())
