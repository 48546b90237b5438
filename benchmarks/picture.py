"""Make the README's picture, figure 1 of the demo, from its recipe: `make picture`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.report import figure
from conescope.training.recipe_reading import load_recipe

PICTURE = Path(__file__).parent.parent / "docs" / "figures" / "digits.png"
COMMAND = "make picture"
DPI = 200


def make(path: Path, *options: str) -> None:
    """Train by the recipe `digits`, with changed fields if any, and draw what was measured.

    Nothing of the moment enters the file, so one machine writes the same bytes each time.
    """
    recipe = load_recipe("digits", list(options))
    with TemporaryDirectory() as folder:
        run_experiment(recipe, Path(folder) / "run", command=COMMAND)
        drawn = figure(load_run(Path(folder) / "run"), "overview")
    drawn.savefig(path, dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    make(PICTURE)
    print(PICTURE)
