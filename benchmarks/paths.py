"""How many files a reader has to open to follow one path: `python -m benchmarks.paths`.

A file counts if one of its functions runs on the way, its import left aside. The engine's files
are counted apart, since the other two paths end at its door. The errors and the check of argument
types do not count: a reader meets them at every door, and opens neither to follow a path.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import conescope as cs
import conescope.engine

ROOT = Path(cs.__file__).parent
_AT_EVERY_DOOR = {"errors.py", "argument_types.py"}


def files_touched(path: Callable[[Path], object]) -> list[str]:
    """The files, relative to the package, whose functions run while `path` does."""
    touched: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_a_body = code.co_name == "<module>" or "__qualname__" in code.co_names
        if event == "call" and not is_a_body and code.co_filename.startswith(f"{ROOT}/"):
            touched.add(str(Path(code.co_filename).relative_to(ROOT)))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sys.setprofile(note)
        try:
            path(Path(folder))
        finally:
            sys.setprofile(None)
    return sorted(touched - _AT_EVERY_DOOR)


def network() -> nn.Module:
    """A small network of a convolution, a BatchNorm and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    ).eval()


def from_module(_: Path) -> None:
    """From a module to its kernel."""
    cs.entk(network(), torch.randn(10, 1, 8, 8))


def from_recipe(folder: Path) -> None:
    """From a recipe to its first stored kernel, without figures and report."""
    from conescope.experiments.session import run_experiment
    from conescope.training.recipe_reading import load_recipe

    short = ["--training.steps=1", "--kernel.when=0", "--training.evaluate=0"]
    run_experiment(load_recipe("digits", short), folder / "run", command="")


def from_checkpoint(folder: Path) -> None:
    """From the checkpoints of another training to the first stored kernel."""
    for step in (0, 1):
        torch.save(network().state_dict(), folder / f"step_{step}.pt")
    cs.measure_checkpoints(
        network, str(folder / "*.pt"), torch.randn(10, 1, 8, 8), out=folder / "run"
    )


PATHS = {
    "recipe to first stored kernel": from_recipe,
    "module to kernel": from_module,
    "foreign checkpoint to kernel": from_checkpoint,
}


def main() -> None:
    """Print the number of files of each path, and their names."""
    for name, path in PATHS.items():
        files = files_touched(path)
        engine = [file for file in files if file.startswith(("engine/", "entk/"))]
        print(f"{name}: {len(files) - len(engine)} files, and {len(engine)} of the engine")
        print("   ", " ".join(files))


if __name__ == "__main__":
    main()
