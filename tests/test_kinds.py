"""Every model of the table `kinds` has the outcome that the table says, and is left as it was."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import kinds
from conescope.engine import entk, estimate_entk, plan
from conescope.errors import ArgumentError, ModelError
from kinds import Either, Refused, Right, Row
from reference import assert_exact
from untouched import untouched

OUTPUTS = ["trace", "full", "sum", 0]


def rows(*tables: list[Row], outcome: type = object):
    chosen = [row for table in tables for row in table if type(row.outcome) is outcome]
    return pytest.mark.parametrize("row", chosen, ids=str)


right_rows = rows(kinds.SMALL, outcome=Right)


def assert_works_as_before(model: nn.Module, row: Row, dtype: torch.dtype) -> None:
    """Fail unless the model gives the same bits as another one that was never measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re-entrant checkpoints warn without gradients
        given, expected = (m(row.samples(dtype).clone()) for m in (model, row.build(dtype)))
    if given is not None or expected is not None:
        torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)


def measured(
    row: Row, measure: Callable, dtype: torch.dtype = torch.float64, **options: object
) -> Tensor:
    """Return what `measure` gives, and fail unless it leaves the model and samples as they were."""
    model, x = row.build(dtype), row.samples(dtype)
    with untouched(model, x):
        result = measure(model, x, **options)
    assert_works_as_before(model, row, dtype)
    return result


# The table itself


def _together_and_alone(row: Row) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return outputs, and gradients of their randomly weighted sum: of a batch, and one by one."""
    model, x = row.build(plain=True), row.samples()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(batches: list[Tensor], factors: list[Tensor]) -> Tensor:
        model.zero_grad(set_to_none=True)
        for batch, factor in zip(batches, factors, strict=True):
            (model(kinds.fed(batch)) * factor).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat(
            [(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in grads]
        )

    alone = list(x.split(1))
    outputs = model(kinds.fed(x)).detach(), torch.cat([model(kinds.fed(one)) for one in alone])
    outputs = outputs[0], outputs[1].detach()
    torch.manual_seed(0)
    factors = torch.randn(outputs[0].shape, dtype=outputs[0].dtype)
    gradients = gradient([x], [factors]), gradient(alone, list(factors.split(1)))
    return outputs, gradients


@pytest.mark.parametrize("row", kinds.DEPENDENT, ids=str)
def test_samples_do_depend_on_each_other(row: Row):
    outputs, gradients = _together_and_alone(row)
    differ = [not torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in (outputs, gradients)]
    assert differ == ([False, True] if "gradient" in row.outcome.words else [True, True])


@right_rows
def test_samples_do_not_depend_on_each_other(row: Row):
    for together, alone in _together_and_alone(row):
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)


def test_only_the_gradients_of_sample_five_are_not_finite():
    for row in kinds.NOT_FINITE:
        model, x = row.build(), row.samples()
        assert bool(model(x).isfinite().all())
        rows = torch.cat(list(kinds.gradients(model, x).values()), dim=1)
        finite = rows.reshape(len(x), -1).isfinite().all(dim=1)
        assert finite.tolist() == [i != 5 for i in range(len(x))], row


def test_overflows_are_where_they_are_said_to_be():
    for row in kinds.OVERFLOWS:
        model, x = row.build(), row.samples()
        assert bool(model(x).isfinite().all())
        rows = torch.cat(list(kinds.gradients(model, x).values()), dim=1)
        assert bool(rows.isfinite().all())
        assert not bool((rows @ rows.T).isfinite().all())


# The outcomes


@right_rows
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_right(row: Row, outputs: str | int):
    kernel = measured(row, entk, outputs=outputs)
    assert_exact(kernel.values, row.expected(outputs))


@pytest.mark.parametrize("row", [row for row in kinds.SMALL if row.outcome == kinds.RIGHT], ids=str)
def test_right_in_single_precision(row: Row):
    kernel = measured(row, entk, torch.float32)
    assert_exact(kernel.values, row.expected("trace", torch.float32))


@right_rows
def test_right_by_layers_and_by_names(row: Row):
    kernel = measured(row, entk, outputs="full", by_layer=True)
    layers: dict[str, Tensor] = {}
    for name, part in row.parts().items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0) + part
    names = {re.sub(r"\b_orig_mod\b\.?", "", name).strip("."): name for name in kernel.by_layer}
    assert names.keys() == layers.keys()
    scale = float(kernel.values.abs().max())
    for layer, part in layers.items():
        given = kernel.by_layer[names[layer]]
        torch.testing.assert_close(given, part, rtol=0, atol=1e-10 * scale)
    last = list(layers)[-1]
    tied = len([*row.build().named_parameters(remove_duplicate=False)]) > len(row.parts())
    if float(layers[last].abs().max()) > 0 and not tied:
        named = measured(row, entk, outputs="full", params=[names[last]])
        assert_exact(named.values, layers[last])


@right_rows
def test_right_by_random_cotangents(row: Row):
    estimate = measured(row, estimate_entk, draws=2)
    full = row.expected("full")
    possible = list(kinds.some_signs(full)) if full.shape[1] <= 5 else []
    for draw in estimate.draws if possible else ():
        errors = [float((draw - one).abs().max()) for one in possible]
        assert min(errors) <= 1e-10 * float(full.abs().max()) * full.shape[1] ** 2
    assert_exact(estimate.kernel.values, estimate.draws.mean(0))


@rows(kinds.SMALL, outcome=Refused)
@pytest.mark.parametrize("measure", [entk, estimate_entk])
def test_refused(row: Row, measure: Callable):
    dtype = torch.float64
    model, x = row.build(dtype), row.samples(dtype)
    with untouched(model, x), pytest.raises(row.outcome.errors) as refusal:
        measure(model, x)
    missing = [words for words in row.outcome.words if not re.search(words, str(refusal.value))]
    assert not missing, f"{missing} not in: {refusal.value}"
    assert_works_as_before(model, row, dtype)


@rows(kinds.SMALL, outcome=Either)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_right_or_refused(row: Row, outputs: str | int):
    model, x = row.build(), row.samples()
    message = None
    try:
        with untouched(model, x):
            values = entk(model, x, outputs=outputs).values
    except ModelError as error:
        message = str(error)
    if message is None:
        assert_exact(values, row.expected(outputs))
    else:
        assert [words for words in row.outcome.words if not re.search(words, message)] == [], (
            message
        )
    assert_works_as_before(model, row, torch.float64)


# 1. Sums of millions of summands


@pytest.mark.parametrize("row", kinds.SUMS, ids=str)
def test_sums_keep_their_digits(row: Row):
    for outputs in OUTPUTS:
        values = measured(row, entk, torch.float32, outputs=outputs).values
        assert_exact(values, row.expected(outputs, torch.float32))


# 2. Many outputs

MANY_OUTPUTS = """
import json, resource, torch
from torch import nn
from conescope.engine import entk, estimate_entk, plan
torch.set_num_threads(1)
torch.manual_seed(0)
resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9))  # an error, not the whole machine
V = 50_257
own = nn.Sequential(nn.Embedding(V, 8), nn.Flatten(), nn.Linear(48, V, bias=False)).eval()
tied = nn.Sequential(nn.Embedding(V, 8), nn.Flatten(), nn.Linear(8, V, bias=False)).eval()
tied[2].weight = tied[0].weight
head, x = nn.Linear(6, V).eval(), torch.randn(4, 6)
gram = V * (x @ x.T + 1)


def near(values):
    assert float((values - gram).abs().max()) <= 1e-5 * float(gram.max()), values
    return values


six, one, budget = torch.randint(0, V, (4, 6)), torch.randint(0, V, (4, 1)), "300MB"
steps = {
    "estimate": lambda: estimate_entk(own, six, draws=2, memory=budget).draws,
    "estimate, tied": lambda: estimate_entk(tied, one, draws=2, memory=budget).draws,
    "estimate of a linear map": lambda: near(estimate_entk(head, x, draws=2, memory=budget).draws),
    "sum": lambda: entk(own, six, outputs="sum", memory=budget).values,
    "one output": lambda: entk(own, six, outputs=50_000, memory=budget).values,
    "plan": lambda: plan(own, six, memory=budget),
    "plan, sum": lambda: plan(own, six, outputs="sum", memory=budget),
}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
entk(nn.Linear(3, 2), torch.randn(2, 3))
told = {}
for name, step in steps.items():
    before = peak()
    try:
        result = step()
        error = None if name.startswith("plan") or bool(result.isfinite().all()) else "not finite"
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
    told[name] = error, peak() - before
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[str | None, int]]:
    done = subprocess.run(
        [sys.executable, "-c", MANY_OUTPUTS], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(
    "step",
    [
        "estimate",
        "estimate, tied",
        "estimate of a linear map",
        "sum",
        "one output",
        "plan",
        "plan, sum",
    ],
)
def test_a_vocabulary_of_outputs(told: dict, step: str):
    error, peak = told[step]
    assert error is None
    assert peak <= 1.1 * 300e6


# 3. Where the dependence begins later


def exceeding(n: int) -> Tensor:
    torch.manual_seed(0)
    return kinds.one_exceeds(n).double()


def exceeded() -> tuple[nn.Module, Tensor]:
    """Return a model that mixes only batches with a large sample, and a batch without one."""
    row = next(row for row in kinds.DEPENDENT if row.name == "a maximum that one exceeds")
    return row.build(), 0.1 * torch.randn(6, 5, dtype=torch.float64)


def test_a_dependence_among_the_second_samples_only():
    model, x = exceeded()
    entk(model, x)
    y = exceeding(7)
    for first, second in ((x, y), (y, x)):
        with untouched(model, x, y), pytest.raises(ModelError, match=r"'mix' \(Mix\)"):
            entk(model, first, second)


def test_a_dependence_that_begins_with_other_samples():
    model, x = exceeded()
    expected = entk(model, x).values
    with pytest.raises(ModelError, match=r"'mix' \(Mix\)"):
        entk(model, exceeding(6))
    assert torch.equal(entk(model, x).values, expected)


@pytest.mark.parametrize("step", [lambda h: h - h.mean(0), lambda h: kinds.Leak.apply(h)])
def test_a_dependence_that_begins_with_a_flag(step: Callable):
    model = kinds.between(lambda h: step(h) if flag else h)()
    x = torch.randn(6, 5)
    flag = False
    expected = entk(model, x).values
    flag = True
    with pytest.raises(ModelError, match=r"'mix' \(Mix\)"):
        entk(model, x)
    flag = False
    assert torch.equal(entk(model, x).values, expected)


# 5. Contexts in which `entk` is called

CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "all": lambda: _all_contexts(),
}


@contextlib.contextmanager
def _all_contexts():
    with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.parametrize("row", kinds.ONE_FUNCTION, ids=str)
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_calling_context_changes_nothing(row: Row, context: str):
    outside = measured(row, entk, torch.float32).values
    assert_exact(outside, row.expected("trace", torch.float32))
    model, x = row.build(torch.float32), row.samples(torch.float32)
    with CONTEXTS[context](), untouched(model, x):
        inside = entk(model, x).values
    assert torch.equal(inside, outside)
    assert_works_as_before(model, row, torch.float32)


@pytest.mark.parametrize("row", kinds.ONE_FUNCTION, ids=str)
def test_what_is_asked_changes_nothing(row: Row):
    by_layer = measured(row, entk, torch.float32, by_layer=True).by_layer
    head = measured(row, entk, torch.float32, params=["head"]).values
    expected = sum(
        kinds.pick(part, "trace")
        for name, part in row.parts(torch.float32).items()
        if name.startswith("head.")
    )
    assert_exact(by_layer["head"], expected)
    assert_exact(head, expected)


# 6. Forward passes that write, and raise


class Stops(nn.Module):
    """A module that writes everywhere, and raises at one of its calls."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error, self.calls = at, error, 0
        self.a, self.history = nn.Linear(5, 3), []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        self.calls += 1
        self.count += 1
        self.history.append(x)
        self.kept = x
        self.a.weight.data.mul_(1)
        torch.rand(2)
        if len(self.history) == self.at:
            raise self.error
        return self.a(x)


@pytest.mark.parametrize("error", [RuntimeError("no such thing"), KeyError("no such thing")])
def test_a_forward_pass_that_raises_at_once(error: Exception):
    model, x = Stops(1, error), torch.randn(6, 5)
    with untouched(model, x), pytest.raises(ModelError, match="no such thing"):
        entk(model, x)


def test_a_forward_pass_that_is_interrupted():
    model, x = Stops(1, KeyboardInterrupt()), torch.randn(6, 5)
    with untouched(model, x), pytest.raises(KeyboardInterrupt):
        entk(model, x)


# 10. What overflows in half precision


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_kernel_above_the_largest_float16(outputs: str | int):
    row = Row(
        "overflow", "wide", kinds.wide_half, lambda n: 60 * torch.rand(n, 300).half(), Right()
    )
    expected = row.expected(outputs, torch.float32)
    assert float(expected.max()) > 65_504
    values = measured(row, entk, torch.float32, outputs=outputs).values
    assert values.dtype == torch.float32
    assert float((values.double() - expected).abs().max() / expected.max()) < 5e-3


def test_gradients_above_the_largest_float16_are_right_by_rule():
    """Gradients of plain autograd overflow there, but their factors do not."""
    model, x = kinds.steep_half(), 1000 * (1 + torch.rand(6, 4)).half()
    expected = sum(kinds.grams(kinds.steep_half().double(), x.double()).values())
    values = entk(model, x, outputs="full").values.double()
    assert float((values - expected).abs().max() / expected.max()) < 5e-3


def test_gradients_above_the_largest_float16_are_told_where_they_are_formed():
    model, x = kinds.steep_half(), 1000 * (1 + torch.rand(6, 4)).half()
    model[0].weight.register_hook(lambda g: g)  # so that plain autograd takes it
    model.weights = [model[0].weight]
    model.forward = lambda x: model[1](x @ model.weights[0].T)
    with pytest.raises(ModelError, match=r"float16 overflows above 65,504; measure model.float"):
        entk(model, x)


# 12. Inputs


@right_rows
def test_an_input_that_requires_gradients(row: Row):
    """Kernels are plain tensors whatever the routes of the parameters."""
    model, x = row.build(), row.samples()
    if not x.is_floating_point():
        return
    x.requires_grad_()
    with untouched(model, x):
        kernel = entk(model, x, outputs="full", by_layer=True)
    for values in (kernel.values, *kernel.by_layer.values()):
        assert not values.requires_grad
        values.numpy()
    assert x.grad is None
    assert x.requires_grad
    assert_exact(kernel.values, row.expected("full"))


def test_two_inputs_that_require_gradients():
    model, x = kinds.two_layers(), torch.randn(6, 5, requires_grad=True)
    y = torch.randn(3, 5, requires_grad=True)
    expected = entk(model, x.detach()).values
    with untouched(model, x, y):
        kernel = entk(model, x, by_layer=True)
        between = entk(model, x, y, outputs="full")
        estimate = estimate_entk(model, x, draws=2)
    for values in (kernel.values, between.values, estimate.draws, *kernel.by_layer.values()):
        assert not values.requires_grad
        values.numpy()
    assert x.grad is None
    assert x.requires_grad
    np.testing.assert_allclose(kernel.values.numpy(), expected.numpy(), rtol=1e-6)


def test_an_input_with_a_history():
    model, source = kinds.two_layers(), torch.randn(6, 5, requires_grad=True)
    x = source.sin()
    with untouched(model, x, source):
        assert not entk(model, x).values.requires_grad
    x.sum().backward()  # its graph is still there
    assert torch.equal(source.grad, source.detach().cos())


VIEWS = {
    "every other": lambda n: torch.randn(n, 10)[:, ::2],
    "transposed": lambda n: torch.randn(5, n).T,
    "reversed": lambda n: torch.randn(n, 5).flip(0),
    "repeated": lambda n: torch.randn(1, 5).expand(n, 5),
    "part of a larger one": lambda n: torch.randn(2 * n, 7)[n:, 1:6],
    "overlapping": lambda n: torch.randn(n + 4).unfold(0, 5, 1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("writes", [False, True])
def test_an_input_that_is_a_view(view: str, writes: bool):
    model = kinds.changed(lambda x: x.add_(1)) if writes else kinds.two_layers
    row = Row("views", f"{view} {writes}", model, VIEWS[view], Right())
    for outputs in OUTPUTS:
        values = measured(row, entk, outputs=outputs).values
        assert_exact(values, row.expected(outputs))


@pytest.mark.parametrize("measure", [entk, estimate_entk, plan])
def test_an_input_of_numpy(measure: Callable):
    model = kinds.two_layers()
    with pytest.raises(ArgumentError, match="x to be a Tensor, got ndarray"):
        measure(model, np.zeros((6, 5), dtype=np.float32))
    with pytest.raises(ArgumentError, match=r"y to be a Tensor.*, got ndarray"):
        measure(model, torch.zeros(6, 5), np.zeros((6, 5), dtype=np.float32))


# 13. Compiled parts


@pytest.mark.parametrize("row", kinds.COMPILED, ids=str)
def test_compiled_parts_are_quiet(row: Row, capfd, caplog):
    torch._dynamo.reset()  # some of its messages come only once
    measured(row, entk)
    model = row.build()
    for n in range(1, 12):
        entk(model, torch.randn(n, 5, dtype=torch.float64), outputs="full")
    estimate_entk(row.build(), row.samples(), draws=2)
    told = capfd.readouterr()
    assert told.out == told.err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# 14. Replaced forward passes


@pytest.mark.parametrize("row", kinds.AUTOCAST, ids=str)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_forward_pass_that_was_replaced_by_one_under_autocast(row: Row, outputs: str | int):
    values = measured(row, entk, torch.float32, outputs=outputs).values
    assert values.dtype == torch.float32
    assert_exact(values, row.expected(outputs, torch.float32))
    estimate = measured(row, estimate_entk, torch.float32, draws=2)
    assert estimate.draws.dtype == torch.float32
