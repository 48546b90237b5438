from dataclasses import replace

import numpy as np
import pytest
import torch

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.attribution import attribution

LABELS = torch.tensor([5, 3, 5, 3, 3, 7])


def layered(seed: int, layers=("first", "second", "third"), n: int = 6) -> cs.Kernel:
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for layer in layers:
        x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        parts[layer] = x @ x.T
    return cs.Kernel(torch.stack(list(parts.values())).sum(dim=0), by_layer=parts)


def test_every_kind_of_share_adds_up_to_one():
    found = attribution(layered(0), layered(1), LABELS)
    assert sum(found.layers.values()) == pytest.approx(1.0, abs=1e-14)
    assert found.images.sum() == pytest.approx(1.0, abs=1e-14)
    assert found.blocks is not None
    assert found.blocks.sum() == pytest.approx(1.0, abs=1e-14)
    assert found.distance == pytest.approx(cs.kernel_distance(layered(0), layered(1)))


def test_shares_are_those_of_the_definition():
    a, b = layered(0), layered(1)
    found = attribution(a, b, LABELS)
    d = (b.values / b.values.norm() - a.values / a.values.norm()).numpy()
    square = (d**2).sum()
    for layer, share in found.layers.items():
        part = (b.by_layer[layer] / b.values.norm() - a.by_layer[layer] / a.values.norm()).numpy()
        assert share == pytest.approx((part * d).sum() / square)
    for i in range(6):
        assert found.images[i] == pytest.approx((d[i] ** 2).sum() / square)
    assert found.classes == (3, 5, 7)
    threes, fives = [1, 3, 4], [0, 2]
    assert found.blocks is not None
    expected = (d[np.ix_(threes, fives)] ** 2).sum() / square
    assert found.blocks[0, 1] == pytest.approx(expected)
    assert found.blocks == pytest.approx(found.blocks.T)


def test_an_entry_counts_half_for_each_of_its_samples():
    a = cs.Kernel(torch.eye(4, dtype=torch.float64))
    b = torch.eye(4, dtype=torch.float64)
    b[0, 1] = b[1, 0] = 0.4
    shift = float(b.norm())
    moved = 1 / shift - 1 / 2  # every diagonal entry; (0, 1) and (1, 0) by 0.4 / shift
    whole = 4 * moved**2 + 2 * (0.4 / shift) ** 2
    found = attribution(a, cs.Kernel(b))
    assert found.images[0] == pytest.approx((moved**2 + (0.4 / shift) ** 2) / whole)
    assert found.images[2] == pytest.approx(moved**2 / whole)
    assert found.blocks is None
    assert found.layers == {}


def test_equal_layers_have_equal_shares():
    a, b = (layered(seed, ("only",)) for seed in (0, 1))
    halves = [
        cs.Kernel(k.values, by_layer={"one": k.values / 2, "two": k.values / 2}) for k in (a, b)
    ]
    assert attribution(*halves).layers == pytest.approx({"one": 0.5, "two": 0.5})


def test_only_the_layer_that_turned_has_moved_the_kernel():
    """Two layers of one length on orthogonal entries, the first of which turns."""
    still = torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    before, after = (torch.zeros(3, 3, dtype=torch.float64) for _ in range(2))
    before[0, 0] = after[1, 1] = 1.0
    a = cs.Kernel(before + still, by_layer={"turns": before, "still": still})
    b = cs.Kernel(after + still, by_layer={"turns": after, "still": still})
    assert attribution(a, b).layers == pytest.approx({"turns": 1.0, "still": 0.0})


def test_a_layer_that_moves_against_the_whole_has_a_negative_share():
    one, other = (torch.zeros(2, 2, dtype=torch.float64) for _ in range(2))
    one[0, 0] = other[1, 1] = 1.0
    a = cs.Kernel(3 * one + 2 * other, by_layer={"large": 3 * one, "small": 2 * other})
    b_parts = {"large": 3 * other, "small": 2 * one}
    b = cs.Kernel(3 * other + 2 * one, by_layer=b_parts)
    found = attribution(a, b).layers
    assert found["small"] < 0 < 1 < found["large"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_the_scale_of_a_kernel_does_not_matter():
    a, b = layered(0), layered(1)
    scaled = cs.Kernel(9.0 * b.values, by_layer={k: 9.0 * v for k, v in b.by_layer.items()})
    one, other = attribution(a, b, LABELS), attribution(a, scaled, LABELS)
    assert other.layers == pytest.approx(one.layers)
    assert other.images == pytest.approx(one.images)


def test_kernels_of_the_engine_by_layer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)
    ).eval()
    x = torch.randn(5, 4)
    before = cs.entk(model, x, by_layer=True)
    with torch.no_grad():
        model[2].bias += 1.0  # no kernel of these outputs depends on it
    with pytest.raises(KernelError, match="the same"):
        attribution(before, cs.entk(model, x, by_layer=True))
    with torch.no_grad():
        model[0].weight += 0.1 * torch.randn(6, 4)
    found = attribution(before, cs.entk(model, x, by_layer=True))
    assert found.layers.keys() == {"0", "2"}
    assert sum(found.layers.values()) == pytest.approx(1.0, abs=1e-12)


def test_full_outputs_are_summed_by_sample():
    trace = layered(0), layered(1)

    def full(kernel: cs.Kernel) -> cs.Kernel:
        values = torch.einsum("ij,kl->ikjl", kernel.values, torch.eye(3, dtype=torch.float64))
        return cs.Kernel(values, outputs="full")

    one, other = attribution(*trace, LABELS), attribution(*map(full, trace), LABELS)
    assert other.images == pytest.approx(one.images)
    assert other.blocks == pytest.approx(one.blocks)


def test_bad_input():
    a, b = layered(0), layered(1)
    with pytest.raises(KernelError, match="6 samples needs 6 labels"):
        attribution(a, b, LABELS[:5])
    with pytest.raises(KernelError, match="different layers"):
        attribution(a, layered(1, ("first", "other", "third")))
    with pytest.raises(KernelError, match="do not add up"):
        attribution(a, replace(b, by_layer={**b.by_layer, "third": 2 * b.by_layer["third"]}))
    with pytest.raises(KernelError, match="different samples"):
        attribution(a, layered(1, n=7))
    with pytest.raises(KernelError, match="samples with themselves"):
        attribution(*(cs.Kernel(k.values[:, :4]) for k in (a, b)))
