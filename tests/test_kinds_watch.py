"""Kinds of models in a training with Watch, and the names that `params` takes everywhere."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conescope as cs
import kinds
from conescope.errors import KernelError, ModelError
from kinds import Either, Refused, Row
from reference import assert_exact
from untouched import untouched


def watched(model: nn.Module, probe: object, out: Path, **options: object) -> cs.Kernel:
    """Return the kernel that a Watch takes at its first step."""
    with cs.Watch(model, probe, when="0", out=out / "watched", **options) as watch:
        watch.step(0)
        return watch.series.kernels[0]


def stored(out: Path) -> list[Path]:
    return list(out.glob("watched/kernels/*"))


def by_ids(*tables: list[Row]):
    return pytest.mark.parametrize("row", [row for table in tables for row in table], ids=str)


# 3, 9, 10, 11. What is refused

REFUSED = [
    row
    for row in kinds.SMALL
    if type(row.outcome) is Refused and row.kind != "outputs of another shape"
]


@by_ids(REFUSED)
@pytest.mark.parametrize("draws", [None, 2])
def test_refused_at_the_first_step_at_the_latest(row: Row, draws: int | None, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x), pytest.raises(row.outcome.errors) as refusal:
        watched(model, x, tmp_path, draws=draws)
    missing = [words for words in row.outcome.words if not re.search(words, str(refusal.value))]
    assert not missing, f"{missing} not in: {refusal.value}"
    assert not stored(tmp_path)


@pytest.mark.parametrize("samples", [1, 2, 6])
def test_squeezed_outputs_are_refused_with_the_cure(samples: int, tmp_path):
    model = kinds.ending(lambda y: y.squeeze())()
    with pytest.raises(ModelError, match=r"squeeze\(-1\)"):
        watched(model, torch.randn(samples, 5), tmp_path)
    assert not stored(tmp_path)


# 9. Kernels that are zero


def dead() -> nn.Module:
    """Build a network all of whose ReLUs give zero."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    nn.init.constant_(model[0].bias, -1e3)
    return model


def without_a_head() -> nn.Module:
    """Build a network whose head is zero, for kernels of the layers before it."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (dead, {}),
        (dead, {"by_layer": True}),
        (dead, {"draws": 2}),
        (dead, {"outputs": "full"}),
        (without_a_head, {"params": "0"}),
    ],
)
def test_a_kernel_of_zeros_is_told_at_the_first_step(build: Callable, options: dict, tmp_path):
    model, x = build(), torch.randn(6, 5)
    with untouched(model, x), pytest.raises((ModelError, KernelError), match="zero"):
        watched(model, x, tmp_path, **options)
    assert not stored(tmp_path)


def test_a_kernel_that_is_zero_in_one_layer_only_is_none_of_zeros(tmp_path):
    model = without_a_head()
    kernel = watched(model, torch.randn(6, 5), tmp_path, by_layer=True)
    assert float(kernel.by_layer["0"].abs().max()) == 0 < float(kernel.values.abs().max())


# 4. Complex parameters


@by_ids(kinds.COMPLEX)
def test_complex_parameters_are_watched(row: Row, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path, by_layer=True)
    assert_exact(kernel.values, row.expected("trace"))


@pytest.mark.parametrize("params", ["w", ["w"], "?", "*"])
def test_complex_parameters_by_name(params: str | list[str], tmp_path):
    row = next(row for row in kinds.COMPLEX if row.name == "weight beside a real one")
    model, x = row.build(), row.samples()
    wanted = ["w"] if "w" in params else ["w", "v", "c"]
    expected = kinds.pick(sum(row.parts()[name] for name in wanted), "trace")
    assert_exact(watched(model, x, tmp_path, params=params).values, expected)
    assert_exact(cs.entk(model, x, params=params).values, expected)


# 5. The same function whatever the arguments


@by_ids(kinds.ONE_FUNCTION)
def test_what_is_asked_changes_nothing(row: Row, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        by_layer = watched(model, x, tmp_path / "1", by_layer=True).by_layer["head"]
        head = watched(model, x, tmp_path / "2", params="head").values
    parts = row.parts().items()
    expected = sum(part for name, part in parts if name.startswith("head."))
    assert_exact(by_layer, kinds.pick(expected, "trace"))
    assert_exact(head, kinds.pick(expected, "trace"))


class Masked(nn.Module):
    """A transformer of two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.body(self.embed(ids), src_key_padding_mask=~mask)
        return self.head(hidden.mean(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_padding_mask_among_the_inputs(frozen: bool, tmp_path):
    """The head has one kernel, whatever else is frozen or chosen."""
    torch.manual_seed(0)
    model = Masked().double().eval()
    model.body.requires_grad_(not frozen)
    ids = kinds.padded(9, 5)(6)
    expected = kinds.grams(kinds.Net(lambda m, x: m.inner(x, x > 0), inner=model), ids)
    model.zero_grad(set_to_none=True)
    expected = kinds.pick(expected["inner.head.weight"] + expected["inner.head.bias"], "trace")
    probe = {"ids": ids, "mask": ids > 0}
    by_layer = watched(model, probe, tmp_path / "1", by_layer=True).by_layer["head"]
    assert_exact(by_layer, expected)
    assert_exact(watched(model, probe, tmp_path / "2", params="head").values, expected)


# 6. A training of a model that writes


def losses(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the losses of two steps of gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(x.clone()).square().mean()
        loss.backward()
        optimizer.step()
        done.append(loss.detach())
    return done


@by_ids(kinds.WRITES)
def test_a_training_that_writes_is_the_same_with_and_without(row: Row, tmp_path):
    model, twin, x = row.build().train(), row.build().train(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    if row.name not in ("spectral norm", "spectral norm by hooks"):  # evaluated as they are then
        assert_exact(kernel.values, row.expected("trace"))
    for one, other in zip(losses(model, x), losses(twin, x), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@by_ids(kinds.TRANSFORMS)
def test_what_transforms_stumble_over_is_watched(row: Row, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert_exact(kernel.values, row.expected("trace"))


@by_ids(kinds.ANOTHER_WAY)
def test_weights_reached_another_way_are_watched(row: Row, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert_exact(kernel.values, row.expected("trace"))


# 8. One meaning of names


def deep() -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(
        nn.ModuleDict({"attention": nn.Linear(3, 3), "mlp": nn.Linear(3, 3)}) for _ in range(11)
    )
    model.head = nn.Linear(3, 2)

    def forward(x: Tensor) -> Tensor:
        for layer in model.layers:
            x = x + torch.tanh(layer["mlp"](torch.tanh(layer["attention"](x))))
        return model.head(x)

    return kinds.Net(lambda _, x: forward(x), layers=model.layers, head=model.head)


TIED = Row("names", "tied", kinds.tied, kinds.tokens(7, 1), kinds.RIGHT)
DEEP = Row("names", "deep", deep, kinds.normal(3), kinds.RIGHT)

MEANT = [
    # model, `params`, the parameters that they mean, as regular expressions
    (TIED, "4", r"0\.weight|4\.bias"),
    (TIED, ["4"], r"0\.weight|4\.bias"),
    (TIED, ["4.weight"], r"0\.weight"),
    (TIED, "4.weight", r"0\.weight"),
    (TIED, "0.weight", r"0\.weight"),
    (TIED, ["0.weight", "4.weight"], r"0\.weight"),
    (TIED, "*.weight", r"[02]\.weight"),
    (TIED, "4.*", r"0\.weight|4\.bias"),
    (TIED, "4.w*", r"0\.weight"),
    (TIED, "?.bias", r"[24]\.bias"),
    (TIED, ["2"], r"2\..*"),
    (TIED, ["2.bias", "0"], r"2\.bias|0\.weight"),
    (TIED, ("2", "4.bias"), r"2\..*|4\.bias"),
    (TIED, "*", r".*"),
    (TIED, None, r".*"),
    (DEEP, "head", r"head\..*"),
    (DEEP, "layers", r"layers\..*"),
    (DEEP, "layers.1", r"layers\.1\..*"),
    (DEEP, "layers.1?", r"layers\.10\..*"),
    (DEEP, "layers.?", r"layers\.\d\..*"),
    (DEEP, "layers.*.attention", r"layers\.\d+\.attention\..*"),
    (DEEP, "layers.*.mlp.bias", r"layers\.\d+\.mlp\.bias"),
    (DEEP, "*attention*", r".*attention.*"),
    (DEEP, ["layers.0.mlp", "head.weight"], r"layers\.0\.mlp\..*|head\.weight"),
]

UNKNOWN = [
    # model, `params`, what is meant perhaps
    (TIED, "2.weigth", r"did you mean '2\.weight'"),
    (TIED, ["4.weigth"], r"did you mean '4\.weight'"),
    (TIED, ["0", "2.wei"], r"did you mean '2\.(weight|bias)'"),
    (TIED, "weight", r"'weight'"),
    (DEEP, "haed", r"did you mean 'head'"),
    (DEEP, "layer", r"did you mean 'layers'"),
    (DEEP, ["layers.1", "layers.11"], r"'layers\.11'.*did you mean 'layers\.1"),
    (DEEP, "layers.3.atention", r"did you mean 'layers\.\d\.attention'"),
    (DEEP, ["head", "layers.*.norm"], r"'layers\.\*\.norm'"),
    (DEEP, "inner.head", r"'inner\.head'"),
]


def _checkpointed(row: Row, params: object, out: Path) -> Tensor:
    model = row.build()
    torch.save(model.state_dict(), out / "step1.pt")
    with kinds.default_dtype(torch.float64):
        run = cs.measure_checkpoints(
            row.build, out / "step1.pt", row.samples(), out=out / "run", params=params
        )
    return run.series.kernels[0].values


def _estimated(row: Row, params: object, _: Path) -> Tensor:
    return cs.estimate_entk(row.build(), row.samples(), params=params, draws=2).draws


MEASURES: dict[str, Callable[[Row, object, Path], Tensor]] = {
    "entk": lambda row, params, _: cs.entk(row.build(), row.samples(), params=params).values,
    "Watch": lambda row, params, out: (
        watched(row.build(), row.samples(), out, params=params).values
    ),
    "measure_checkpoints": _checkpointed,
}
ALL = {
    **MEASURES,
    "estimate_entk": _estimated,
    "plan": lambda row, params, _: cs.plan(row.build(), row.samples(), params=params),
}


def names_meant(row: Row, pattern: str) -> list[str]:
    chosen = [name for name in row.parts() if re.fullmatch(pattern, name)]
    assert chosen
    return chosen


@pytest.mark.parametrize(("row", "params", "meant"), MEANT)
@pytest.mark.parametrize("measure", MEASURES)
def test_names_have_one_meaning(measure: str, row: Row, params: object, meant: str, tmp_path):
    expected = sum(row.parts()[name] for name in names_meant(row, meant))
    assert_exact(MEASURES[measure](row, params, tmp_path), kinds.pick(expected, "trace"))


@pytest.mark.parametrize(("row", "params", "meant"), MEANT)
def test_names_mean_the_same_to_estimates_and_plans(row: Row, params, meant: str, tmp_path):
    names = names_meant(row, meant)
    for draw, same in zip(
        _estimated(row, params, tmp_path), _estimated(row, names, tmp_path), strict=True
    ):
        assert_exact(draw, same)
    plan = cs.plan(row.build(), row.samples(), params=params)
    assert {layer.layer for layer in plan.layers} == {n.rpartition(".")[0] or n for n in names}
    assert list(cs.entk(row.build(), row.samples(), params=params).routes) == names


@pytest.mark.parametrize(("row", "params", "message"), UNKNOWN)
@pytest.mark.parametrize("measure", ALL)
def test_unknown_names_are_refused(measure: str, row: Row, params, message: str, tmp_path):
    with pytest.raises(ModelError, match=message):
        ALL[measure](row, params, tmp_path)


@pytest.mark.parametrize("measure", ALL)
def test_no_names_are_refused(measure: str, tmp_path):
    with pytest.raises(ModelError, match="params"):
        ALL[measure](TIED, [], tmp_path)


# 12. Probes


def test_a_probe_that_requires_gradients(tmp_path):
    model, x = kinds.two_layers(), torch.randn(6, 5, requires_grad=True)
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert not kernel.values.requires_grad
    assert x.grad is None


# 13. Compiled parts


@by_ids(kinds.COMPILED)
def test_compiled_parts_are_watched(row: Row, tmp_path, capfd):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert_exact(kernel.values, row.expected("trace"))
    told = capfd.readouterr()
    assert told.out == told.err == ""


# 14. Replaced forward passes


@by_ids(kinds.AUTOCAST)
def test_a_forward_pass_replaced_by_one_under_autocast_is_watched_without(row: Row, tmp_path):
    model, x = row.build(torch.float32), row.samples(torch.float32)
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert kernel.values.dtype == torch.float32
    assert_exact(kernel.values, row.expected("trace", torch.float32))


@by_ids(kinds.REPLACED)
def test_a_forward_pass_replaced_by_another_is_watched(row: Row, tmp_path):
    model, x = row.build(), row.samples()
    with untouched(model, x):
        kernel = watched(model, x, tmp_path)
    assert_exact(kernel.values, row.expected("trace"))


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_a_model_prepared_by_accelerate(accelerator, tmp_path):
    torch.manual_seed(0)
    plain = kinds.two_layers(5, 16, 3).eval()
    x = torch.randn(6, 5)
    expected = kinds.grams(plain, x)
    plain.zero_grad(set_to_none=True)
    prepared = accelerator.prepare_model(plain)
    rough = prepared(x)
    wrapper = vars(prepared)["forward"]
    with untouched(prepared, x):
        kernel = watched(prepared, x, tmp_path, by_layer=True)
        values = cs.entk(prepared, x, outputs="full").values
    assert kernel.values.dtype == values.dtype == torch.float32
    assert_exact(values, sum(expected.values()))
    assert_exact(kernel.values, kinds.pick(sum(expected.values()), "trace"))
    assert vars(prepared)["forward"] is wrapper
    assert torch.equal(prepared(x), rough)
    assert not torch.equal(rough, F.linear(torch.tanh(plain[0](x)), plain[2].weight, plain[2].bias))


# 15. Hooks of other libraries


@by_ids(kinds.HOOKS)
def test_hooks_of_other_libraries(row: Row, tmp_path):
    assert isinstance(row.outcome, Either)
    model, x = row.build(), row.samples()
    message = None
    try:
        with untouched(model, x):
            values = watched(model, x, tmp_path).values
    except ModelError as error:
        message = str(error)
    if message is None:
        assert_exact(values, row.expected("trace"))
    else:
        assert [words for words in row.outcome.words if not re.search(words, message)] == [], (
            message
        )
