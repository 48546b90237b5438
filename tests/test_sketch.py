"""Count sketches of matrices and of their factors, against sketches entry by entry."""

from __future__ import annotations

import pytest
import torch

from conescope.engine.compute.sketch import Axis, Sketch
from reference import assert_near, sketched


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def made(dim: int = 64, groups: int = 4, seed: int = 0) -> tuple[Sketch, torch.Tensor]:
    sketch = Sketch(dim, groups, seed, torch.empty(0, dtype=torch.float64))
    return sketch, torch.zeros(3, dim, dtype=torch.float64)


@pytest.mark.parametrize("positions", [1, 5, 40, 300])
@pytest.mark.parametrize("group", [None, 0, 3])
def test_factors_have_the_sketch_of_their_product(positions, group):
    sketch, out = made()
    left, right = random(7, 3, positions), random(50, 3, positions)
    axes = sketch.axes("weight", 7, 50)
    sketch.add_outer(out, (axes[0], left), (axes[1], right), sketch.part(group))
    expected = sketched(torch.einsum("ibt,jbt->bij", left, right), *axes)
    columns = slice(None) if group is None else slice(16 * group, 16 * (group + 1))
    assert_near(out[:, columns], expected[:, columns])
    assert int(out.any(dim=0).sum()) == (64 if group is None else 16)


@pytest.mark.parametrize("positions", [1, 40])
def test_indices_stand_for_unit_vectors(positions):
    sketch, out = made()
    axes = sketch.axes("embedding", 9, 6)
    tokens, right = torch.arange(3 * positions).view(3, positions) % 9, random(6, 3, positions)
    sketch.add_outer(out, (axes[0], tokens), (axes[1], right), sketch.part(None))
    one_hot = torch.eye(9, dtype=torch.float64)[tokens]
    assert_near(out, sketched(torch.einsum("bti,jbt->bij", one_hot, right), *axes))


@pytest.mark.parametrize("shape", [(1, 1), (20, 1), (1, 20), (30, 4), (4, 30), (200, 150)])
def test_formed_gradients_have_the_same_sketch(shape):
    sketch, out = made()
    rows = random(3, *shape)
    sketch.add_rows(out, "weight", rows, sketch.part(None))
    assert_near(out, sketched(rows, *sketch.axes("weight", *shape)))


def test_hashes_depend_on_seed_name_axis_and_block_alone():
    like = torch.empty(0)
    first, again = (Sketch(512, 8, 0, like).axes("a", 40, 40) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.slots, other.slots)
        assert torch.equal(one.signs, other.signs)
    others = [
        first[1], Sketch(512, 8, 0, like).axes("b", 40, 40)[0],
        Sketch(512, 8, 1, like).axes("a", 40, 40)[0],
    ]  # fmt: skip
    assert not any(torch.equal(first[0].slots, other.slots) for other in others)
    assert not torch.equal(first[0].slots[0], first[0].slots[1])


@pytest.mark.parametrize(
    ("dim", "groups", "width"),
    [(4096, 8, 128), (8, 8, 1), (1024, 8, 128), (1000, 8, 125), (8 * 521, 8, 521), (48, 2, 24)],
)
def test_blocks_divide_groups(dim, groups, width):
    sketch = Sketch(dim, groups, 0, torch.empty(0))
    assert sketch.width == width
    assert sketch.blocks * width == dim
    assert sketch.blocks % groups == 0
    parts = [sketch.part(group) for group in range(groups)]
    assert [i for part in parts for i in range(part.start, part.stop)] == [*range(sketch.blocks)]


def test_slots_and_signs_are_even():
    axis = Axis(20_000, 2, 8, "any", torch.empty(0))
    counts = torch.bincount(axis.slots[0].long(), minlength=8)
    assert bool(((counts - 2500).abs() < 5 * 2500**0.5).all())
    assert abs(float(axis.signs.double().mean())) < 5 / 200
    assert set(axis.signs.unique().tolist()) == {-1, 1}
