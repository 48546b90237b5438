"""Models whose operations depend on values, flags or the calling context."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from conescope.engine import entk, plan
from conescope.errors import ModelError
from reference import assert_matches_reference, assert_near

OUTPUTS = ["trace", "full", 0]


class Sequence(nn.Module):
    """A network that works on positions first, with samples first at its input and output."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.transpose(0, 1)))[-1])


@pytest.mark.parametrize("positions", [4, 8, 7])
@pytest.mark.parametrize(
    "body", [lambda: nn.Linear(6, 6), lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)]
)
def test_a_head_that_was_zero_at_first(body, positions: int):
    torch.manual_seed(0)
    model, x = Sequence(body(), 6).double().eval(), torch.randn(4, positions, 6).double()
    assert_matches_reference(model, x)
    nn.init.normal_(model.head.weight)
    assert_matches_reference(model, x)
    assert "rule" in entk(model, x).routes["head.weight"]


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("sizes", [(8, 5), (5, 8)])
def test_second_samples_of_another_size(outputs, sizes: tuple[int, int]):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    ).double().eval()  # fmt: skip
    x, y = (torch.randn(3, 3, size, size).double() for size in sizes)
    assert_matches_reference(model, x, y, outputs=outputs)
    assert_matches_reference(model, y, outputs=outputs)


class Trimmed(nn.Module):
    """A network that keeps as many positions as the longest sample of a batch needs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.abs().sum(-1) > 0).to(x)[..., None]
        length = int(mask.sum(1).max())
        x, mask = x[:, :length], mask[:, :length]
        return self.head((torch.tanh(self.embed(x)) * mask).sum(1) / mask.sum(1))


def test_as_many_positions_as_the_batch_needs():
    torch.manual_seed(0)
    x = torch.randn(8, 10, 6).double()
    for sample, length in enumerate([10, 9, 3, 2, 2, 2, 1, 2]):
        x[sample, length:] = 0
    model = Trimmed().double()
    assert_matches_reference(model, x[:2], x[3:])
    assert_matches_reference(model, x[3:], x[:2])
    assert_matches_reference(model, x)
    assert_matches_reference(model, x.flip(0), memory="60MB")


class Flagged(nn.Module):
    """A network with a flag that says whether positions are pooled before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.embed, self.head = False, nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = x.mean(1, keepdim=True)
        return self.head(torch.tanh(self.embed(x)).mean(1))


def test_a_flag_that_changes_between_two_calls():
    torch.manual_seed(0)
    model, x = Flagged().double(), torch.randn(5, 7, 6).double()
    for model.pool in (False, True, False):
        assert_matches_reference(model, x)
        assert_matches_reference(model, x, outputs="full")


class Experts(nn.Module):
    """A network that sends every token to one of its experts; some may get none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(6, 3), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = x.new_zeros(*x.shape[:2], 4)
        for number, expert in enumerate(self.experts):
            out = out.index_put((chosen == number,), expert(x[chosen == number]))
        return self.head(torch.tanh(out).mean(1))


@pytest.mark.parametrize("seed", range(12))
def test_experts_with_any_number_of_tokens(seed: int):
    torch.manual_seed(seed)
    model, x = Experts().double(), torch.randn(6, 4, 6).double()
    assert_matches_reference(model, x)
    assert_matches_reference(model, x[3:], x[:3])


class Sorted(nn.Module):
    """A network that sorts its samples by a value, and puts them back."""

    def __init__(self, pick) -> None:
        super().__init__()
        self.pick = pick
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        inside = torch.tanh(self.inner(self.pick(x, order)))
        return self.head(self.pick(inside, order.argsort()))


PICKS = {
    "index": lambda x, order: x[order],
    "index_select": lambda x, order: x.index_select(0, order),
    "gather": lambda x, order: x.gather(0, order[:, None].expand_as(x)),
    "one-hot": lambda x, order: F.one_hot(order, len(x)).to(x) @ x,
}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("seed", range(4))
def test_samples_that_are_sorted_inside(pick: str, seed: int):
    torch.manual_seed(seed)
    model, x = Sorted(PICKS[pick]).double(), torch.randn(8, 6).double()
    x[0, 0], x[1, 0] = -3, 3
    assert_matches_reference(model, x)
    assert_matches_reference(model, x, outputs="full")
    if pick != "one-hot":
        ordered = x[x[:, 0].argsort()]
        fresh = copy.deepcopy(model)
        assert_matches_reference(fresh, ordered)
        assert_matches_reference(fresh, x)


def test_a_model_that_begins_to_sort():
    torch.manual_seed(0)
    model, x = Sorted(lambda x, _: x).double(), torch.randn(8, 6).double()
    assert_matches_reference(model, x)
    model.pick = PICKS["index"]
    assert_matches_reference(model, x)


class Context(nn.Module):
    """A network under autocast."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(x)


NORMS = [lambda: nn.BatchNorm2d(16), lambda: nn.GroupNorm(4, 16), lambda: nn.LayerNorm([16, 8, 8])]


def convolution_before(norm: nn.Module) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)
    return nn.Sequential(*layers).eval(), torch.randn(5, 3, 8, 8)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_under_autocast(norm):
    model, x = convolution_before(norm())
    kernel = entk(Context(model), x)
    assert set(kernel.routes.values()) == {"rule"}
    assert_near(kernel.values.float(), entk(model, x).values, 3e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_float32_in_a_network_of_bfloat16(norm):
    model, x = convolution_before(norm())
    mixed = copy.deepcopy(model).bfloat16()
    mixed[1].float()
    assert mixed(x.bfloat16()).dtype == torch.bfloat16
    assert_near(entk(mixed, x.bfloat16()).values.float(), entk(model, x).values, 5e-2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_switched_off(context):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(4, 5).double()
    for fresh in (model, copy.deepcopy(model)):
        with context():
            inside = entk(fresh, x.clone())
        assert set(inside.routes.values()) == {"rule"}
        assert torch.equal(inside.values, entk(model, x).values)
        assert set(entk(fresh, x).routes.values()) == {"rule"}


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.func.vmap(lambda row: torch.tanh(self.inner(row)))(x))


class Pushed(Mapped):
    def forward(self, x: Tensor) -> Tensor:
        _, tangent = torch.func.jvp(lambda z: torch.tanh(self.inner(z)), (x,), (2 * x,))
        return self.head(tangent)


class Pulled(Mapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            torch.func.vmap(torch.func.grad(lambda z: self.inner(z).sin().sum()))(x)[:, :4]
        )


@pytest.mark.parametrize("kind", [Mapped, Pushed, Pulled])
def test_transforms_inside_the_model(kind):
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(4, 5).double()
    assert_matches_reference(model, x)
    assert entk(model, x).routes["inner.weight"] == "general"


def test_an_embedding_with_sparse_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    tokens = torch.randint(9, (5, 3))
    dense = copy.deepcopy(model)
    dense[0].sparse = False
    assert_near(entk(model, tokens).values, entk(dense, tokens).values)


class Vector(nn.Module):
    """A linear map to one number, by a weight of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight = nn.Linear(5, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(x)), self.weight)[:, None]


def test_lazy_parameters_are_refused():
    with pytest.raises(ModelError, match="run a batch first"):
        entk(nn.LazyLinear(3), torch.randn(2, 4))


def test_a_linear_map_by_a_vector():
    torch.manual_seed(0)
    assert_matches_reference(Vector().double(), torch.randn(4, 5).double())


class Widened(nn.Module):
    """A network with a head in double precision after layers in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(50, 400), nn.Linear(400, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)).double())


def test_a_head_in_double_precision():
    torch.manual_seed(0)
    model, x = Widened(), torch.randn(4, 50)
    expected = reference.total(reference.kernel(model, x, outputs="trace"))
    assert_near(entk(model, x).values, expected, 1e-6)


class Aside(nn.Module):
    """A network that also applies a layer to something that does not number the samples."""

    def __init__(self, aside: nn.Module, source: Tensor, used: bool) -> None:
        super().__init__()
        self.body, self.aside, self.used = nn.Linear(4, 3), aside, used
        self.register_buffer("source", source)

    def forward(self, x: Tensor) -> Tensor:
        beside = self.aside(self.source)
        return self.body(x) * beside if self.used else self.body(x)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    ("aside", "source"),
    [
        (nn.Linear(2, 3), torch.tensor([0.5, -1.0])),
        (nn.Linear(2, 3), torch.tensor([[0.5, -1.0]] * 5)[:1]),
        (nn.Embedding(4, 3), torch.tensor(2)),
    ],
)
def test_what_is_computed_beside_the_samples(aside, source, used):
    torch.manual_seed(0)
    model, x = Aside(aside, source, used).double().eval(), torch.randn(4, 4).double()
    assert_matches_reference(model, x, outputs="full", check=False)
    kernel = entk(model, x, outputs="full", check=False)
    assert kernel.routes["body.weight"] == "rule"
    assert kernel.routes["aside.weight"] == ("rule" if used else "unused")


class Alternating(nn.Module):
    """A function by one operation or another, which take turns after so many calls each."""

    def __init__(self, seen: int, unseen: int) -> None:
        super().__init__()
        self.body, self.seen, self.period, self.calls = nn.Linear(4, 3), seen, seen + unseen, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % self.period < self.seen:
            return self.body(x)
        return x @ self.body.weight.T + self.body.bias


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("seen", "unseen"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (5, 3)])
def test_a_model_that_goes_two_ways_in_turn(seen, unseen, check):
    x = torch.randn(3, 4).double()
    kernel = entk(Alternating(seen, unseen).double().eval(), x, check=check)
    assert_near(kernel.values, 3 * (x @ x.T + 1), 1e-10)
    routes = {layer.route for layer in plan(Alternating(seen, unseen).double().eval(), x).layers}
    assert routes == {"general"}


class Distances(nn.Module):
    """Distances from centres, whose backward pass is wrong for several cotangents under `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("samples", [1, 5])
def test_an_operation_that_confuses_cotangents_under_a_transform(outputs, check, samples: int):
    torch.manual_seed(0)
    model, x = Distances().double().eval(), torch.randn(samples, 4).double()
    assert_matches_reference(model, x, outputs=outputs, check=check)
