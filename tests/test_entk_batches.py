"""Batches larger than the first ones, half precision, and unusual inputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kinds
from conescope.engine import entk, estimate_entk
from conescope.engine.arguments import convention
from conescope.engine.problem import prepared
from conescope.errors import ArgumentError, KernelError, ModelError
from problems import Apply
from reference import assert_exact, assert_matches_reference, kernel, total

X = torch.randn(6, 5)


class LeaksAboveTwo(torch.autograd.Function):
    """The identity, whose backward pass mixes the gradients of batches of more than two samples."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g + 0.5 * g.mean(0) * (len(g) > 2)


def test_gradients_that_mix_in_larger_batches_only():
    torch.manual_seed(0)
    model = kinds.between(LeaksAboveTwo.apply)()
    entk(model, X[:2])
    with pytest.raises(ModelError, match="gradients change with the others in its batch"):
        entk(model, X)


def test_samples_that_change_places_in_larger_batches_only():
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: m.b(torch.tanh(m.a(x.roll(2, 0)))).roll(-2, 0),
        a=nn.Linear(5, 4),
        b=nn.Linear(4, 3),
    ).double()
    entk(model, X[:2].double())
    assert_matches_reference(model, X.double())


def exchanged(h: Tensor, first: int, second: int) -> Tensor:
    """Return h with two rows, if it has them, in each other's places, without an index."""
    rows = list(h.unbind(0))
    if len(rows) <= max(first, second):
        return h
    rows[first], rows[second] = rows[second], rows[first]
    return torch.stack(rows)


ORDERS = {
    "reversed": lambda h: h.flip(0),
    "halves": lambda h: torch.cat([h[len(h) // 2 :], h[: len(h) // 2]]),
    "two": lambda h: exchanged(h, 3, 5),
    "others": lambda h: exchanged(h, 6, 1),
}


@pytest.mark.parametrize("outputs", ["sum", "trace"])
@pytest.mark.parametrize("samples", [8, 9, 40])
@pytest.mark.parametrize("order", ORDERS)
def test_samples_that_change_places_in_batches_of_many_parts(order: str, samples: int, outputs):
    torch.manual_seed(0)
    there = ORDERS[order]

    def back(h: Tensor) -> Tensor:
        numbers = there(torch.arange(len(h)))
        return torch.stack([h[i] for i in numbers.argsort().tolist()])

    model = Apply(
        lambda m, x: m.b(back(torch.tanh(m.a(there(x))))), a=nn.Linear(5, 4), b=nn.Linear(4, 3)
    ).double()
    assert_matches_reference(model, torch.randn(samples, 5).double(), outputs=outputs)


@pytest.mark.parametrize("samples", [5, 8, 9, 40])
def test_samples_that_change_places_where_their_gradients_are_equal(samples: int):
    """At the last linear layer the gradient is the cotangent, whichever the sample."""
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: exchanged(m.b(exchanged(torch.tanh(m.a(x)), 2, 4)), 2, 4),
        a=nn.Linear(5, 4),
        b=nn.Linear(4, 1),
    ).double()
    x = torch.randn(samples, 5).double()
    estimated = estimate_entk(copy.deepcopy(model), x, draws=2)  # exact for one output
    torch.testing.assert_close(estimated.values, total(kernel(model, x, outputs="trace")))
    assert_matches_reference(model, x)


@pytest.mark.parametrize("pair", [(0, 1), (2, 7), (3, 4), (5, 14)])
def test_two_samples_that_mix_with_each_other_only(pair: tuple[int, int]):
    first, second = pair

    def mixed(h: Tensor) -> Tensor:
        if len(h) < 16:
            return h
        rows = list(h.unbind(0))
        rows[first], rows[second] = rows[first] + rows[second], rows[second] - rows[first]
        return torch.stack(rows)

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="change with the others in its batch"):
        entk(kinds.between(mixed)(), torch.randn(16, 5))


def test_samples_that_depend_on_each_other_where_each_is_computed_by_itself():
    torch.manual_seed(0)
    model = Apply(centred, a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    with prepared(model, X, None, None, *convention("sum")) as problem:
        assert problem.recheck is not None
        with pytest.raises(ModelError, match=r"'mean'.*statistic over the batch"):
            problem.recheck.expect(X, 1)


@pytest.mark.parametrize("samples", [8, 9, 40])
def test_gradients_that_mix_in_batches_of_many_parts(samples: int):
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="gradients change with the others in its batch"):
        entk(kinds.between(LeaksAboveTwo.apply)(), torch.randn(samples, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_recurrent_net_in_half_precision(dtype: torch.dtype):
    torch.manual_seed(0)
    model = Apply(lambda m, x: m.o(m.r(x)[0][:, -1]), r=nn.LSTM(5, 8), o=nn.Linear(8, 3)).to(dtype)
    with pytest.raises(ModelError, match=r"'r' \(LSTM\).*batch_first=True"):
        entk(model.eval(), torch.randn(7, 3, 5).to(dtype))


def centred(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(torch.tanh(h - 0.2 * h.mean(0)))


def test_an_unused_parameter_of_another_precision_sets_no_tolerance():
    torch.manual_seed(0)
    model = Apply(centred, a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    model.unused = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(ModelError, match=r"'mean'.*statistic over the batch"):
        entk(model, X)


def test_a_masked_output_sets_no_tolerance():
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: torch.cat([centred(m, x), torch.full((len(x), 1), -1e9)], 1),
        a=nn.Linear(5, 4),
        b=nn.Linear(4, 3),
    )
    with pytest.raises(ModelError, match=r"'mean'.*statistic over the batch"):
        entk(model, X)


def test_an_optimiser_that_steps_in_the_backward_pass_does_not_step():
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=True)),
        a=nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
        b=nn.Linear(4, 2),
    ).double()
    expected = total(kernel(model, X.double(), outputs="trace"))
    before = copy.deepcopy(model.state_dict())

    def step(p: Tensor) -> None:
        p.data.sub_(0.1 * p.grad)
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    assert_exact(entk(model, X.double()).values, expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model(X.double().requires_grad_()).sum().backward()
    assert not torch.equal(before["b.weight"], model.b.weight)  # it steps for its user


def test_weights_written_in_larger_batches_only_are_put_back():
    def clipping(m: nn.Module, x: Tensor) -> Tensor:
        if len(x) > 3:
            m.a.weight.data.clamp_(-0.1, 0.1)
        return m.a(x)

    model = Apply(clipping, a=nn.Linear(5, 3))
    before = model.a.weight.detach().clone()
    entk(model, X)
    assert torch.equal(model.a.weight, before)


def test_samples_with_other_numbers_of_outputs():
    model = Apply(lambda m, i: m.o(m.e(i)).flatten(1), e=nn.Embedding(9, 4), o=nn.Linear(4, 3))
    with pytest.raises(ModelError, match=r"24 outputs, and others 15; .*pad or pool"):
        entk(model, torch.randint(9, (6, 5)), torch.randint(9, (4, 8)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs_is_measured():
    model = Apply(lambda m, x: m.a(x) + m.b(x[:, :0]), a=nn.Linear(5, 3), b=nn.Linear(0, 3))
    plain = nn.Linear(5, 3)
    plain.load_state_dict(model.a.state_dict())
    torch.testing.assert_close(entk(model, X).values, entk(plain, X).values + 3)


@pytest.mark.parametrize(
    ("model", "x", "options", "message"),
    [
        (Apply(lambda m, x: m.a(x)[:, :0], a=nn.Linear(5, 3)), X, {}, "hold no numbers"),
        (nn.Linear(5, 3), X, {"memory": "1e400"}, "memory is an amount"),
        (nn.Linear(5, 3), X, {"params": 3}, "expected params .* got 3"),
        (nn.Linear(5, 3), X, {"params": []}, "`params` names no"),
        (lambda x: x, X, {}, "expected model to be a Module, got function"),
        (nn.Linear(5, 3), X.to_sparse(), {}, "sparse or nested"),
        (nn.Embedding(9, 4, scale_grad_by_freq=True), torch.zeros(4, 2).long(), {},
         "scale_grad_by_freq=False"),
        (Apply(lambda m, x: m.a(x) * 1e-25, a=nn.Linear(5, 3)), X, {}, "underflow float32"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(model, x, options, message):
    with pytest.raises((ModelError, KernelError, ArgumentError), match=message):
        entk(model, x, **options)


def test_an_index_of_numpy_is_an_index():
    model = nn.Linear(5, 3)
    expected = entk(model, X, outputs=1).values
    assert torch.equal(entk(model, X, outputs=np.int64(1)).values, expected)


def test_the_default_device_of_the_caller_changes_nothing():
    model = nn.Linear(5, 3)
    expected = entk(model, X).values
    with torch.device("meta"):
        assert torch.equal(entk(copy.deepcopy(model), X).values, expected)
