"""The comparison of the atlas's trainings with permutations and with replacement."""

from __future__ import annotations

import math

from benchmarks.atlas.order_report import main, pairs_of
from benchmarks.atlas.table import write


def row(cell: str, seed: int, confined: float | None, radius: float, steps: int = 1000) -> dict:
    return {
        "round": 4,
        "cell": cell,
        "seed": seed,
        "p_confined": confined,
        "R": radius,
        "v": radius / 10,
        "test_accuracy": 0.9,
        "training.steps": steps,
    }


ROWS = [
    row("base", 3, 0.75, 0.1),
    row("training.replacement=True", 3, 0.5, 0.2),
    row("base", 4, 0.25, 0.1),
    row("training.replacement=True", 4, None, 0.2),
    row("model.norm=layer", 3, 0.5, 0.3),
    row("model.norm=layer training.replacement=True", 3, 0.15, 0.3 * math.e),
    row("training.steps=3000", 3, 0.5, 0.3, steps=3000),
    row("training.steps=3000 training.replacement=True", 3, 0.5, 0.3, steps=3000),
    row("model.norm=layer training.steps=3000", 3, 0.5, 0.3, steps=3000),
    row("model.norm=layer training.steps=3000 training.replacement=True", 3, 0.4, 0.3, steps=3000),
]


def test_runs_are_paired_by_cell_and_seed_and_one_without_a_motion_leaves_its_pair_out():
    cells = pairs_of(ROWS)
    assert [len(pairs) for pairs in cells.values()] == [1, 1, 1, 1]
    (pair,) = cells["base"]
    assert [side["p_confined"] for side in pair] == [0.75, 0.5]


def test_differences_are_means_over_cells_with_students_interval(tmp_path, capsys):
    write(
        [{"round": 1, "cell": "base", "seed": 0, "p_confined": 0.0}, *ROWS], tmp_path / "t.parquet"
    )
    main(["--table", str(tmp_path / "t.parquet"), "--figure", str(tmp_path / "f.png")])
    printed = capsys.readouterr().out
    # two cells, −0.25 and −0.35: 12.706 is Student's t of one degree of freedom, the error 0.05
    assert (
        "1,000 iterations, probability of confined: -0.300 (-0.935 to +0.335), 2 cells" in printed
    )
    assert (
        "3,000 iterations, probability of confined: -0.050 (-0.685 to +0.585), 2 cells" in printed
    )
    assert "all, accuracy: +0.000 (+0.000 to +0.000), 4 cells" in printed
    assert "| base | 1 | 0.75 → 0.50 | 0.100 → 0.200 | 2.00 | 90.0% → 90.0% |" in printed
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
