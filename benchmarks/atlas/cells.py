"""The cells of the atlas: recipes about a base cell, along the lines of `lines.yaml`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from conescope.experiments.sweep.grid import GridPoint
from conescope.training.recipe_reading import load_recipe

HERE = Path(__file__).parent
BASE = HERE / "base.yaml"
SEEDS = (0, 1, 2)


def lines(file: str = "lines.yaml") -> dict[str, dict[str, Any]]:
    """Return line → its fields, as a file of this folder has them."""
    return yaml.safe_load((HERE / file).read_text("utf-8"))


def cells(data: Path, file: str = "lines.yaml", seeds: Sequence[int] = SEEDS) -> list[GridPoint]:
    """Return the runs of all lines, each once: the first seed of all cells, then the next.

    Args:
        data: the file of `benchmarks.atlas.small_mnist`.
        file: the lines, in this folder.
        seeds: the seeds of each cell.
    """
    points: dict[str, GridPoint] = {}
    for seed in seeds:
        for fields in lines(file).values():
            points |= {point.id: point for point in _line(fields, seed, data)}
    return list(points.values())


def _line(fields: Mapping[str, Any], seed: int, data: Path) -> Iterator[GridPoint]:
    base = load_recipe(str(BASE)).to_dict()
    for values in itertools.product(*(v if isinstance(v, list) else [v] for v in fields.values())):
        chosen = dict(zip(fields, values, strict=True))
        changed = {n: v for n, v in chosen.items() if _in(base, n) != v}
        cell = " ".join(f"{name}={value}" for name, value in changed.items()) or "base"
        words = [f"--{name}={value}" for name, value in changed.items()]
        recipe = load_recipe(str(BASE), [*words, f"--seed={seed}", f"--data.path={data}"])
        yield GridPoint(recipe, {"cell": cell, "seed": seed}, source=f"{cell}, seed {seed}")


def _in(fields: Mapping[str, Any], name: str) -> Any:
    section, _, inner = name.partition(".")
    return fields[section].get(inner)


def is_held_out(cell: str) -> bool:
    """Return whether a cell tests the predictor and takes no part in finding it.

    All cells of LeNet-5 do, and of the others those whose name has an odd sha256.
    """
    return "lenet5" in cell or hashlib.sha256(cell.encode()).digest()[-1] % 2 == 1
