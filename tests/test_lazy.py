"""Is a fine-tuning lazy? Closed forms, laws of width, what goes on after a stop, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import conescope as cs
from conescope.errors import (
    ArgumentError,
    DataError,
    ModelError,
    RecipeError,
    StoreError,
    TrainingError,
)
from conescope.experiments.lazy import signs
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.job import Job
from conescope.experiments.lazy.lazy_report import compare
from conescope.experiments.lazy.samples import samples_of
from conescope.experiments.lazy.signs import Interval, Sign
from conescope.runs.store import Folder

SETTINGS = {"lr": 0.3, "optimizer": "sgd", "steps": 12, "seeds": 2, "probe": 12}


class NTKNetwork(nn.Module):
    """One hidden layer in the NTK's parametrisation: lazier the wider it is."""

    def __init__(self, width: int, classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, 6))
        self.second = nn.Parameter(torch.randn(classes, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x @ self.first.T / math.sqrt(6))
        return hidden @ self.second.T / math.sqrt(len(self.first))


@pytest.fixture
def data():
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()


def test_a_model_that_is_linear_in_its_parameters_is_lazy_to_rounding(data):
    model = nn.Linear(6, 2).double()
    x, y = data
    report = cs.lazy_report(model, (x.double(), y), **SETTINGS)
    for seed in report.seeds:
        assert float(seed.distance[-1]) < 1e-14
        torch.testing.assert_close(seed.logits[0], seed.logits[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seed.batch_loss[0], seed.batch_loss[1], rtol=1e-9, atol=1e-9)
    assert report.verdict == "lazy"
    assert str(report).startswith("verdict: lazy (by the kernel yes, by the function yes")


def test_the_wider_network_is_the_lazier_one(data):
    found = []
    for width in (8, 4096):
        torch.manual_seed(1)
        report = cs.lazy_report(NTKNetwork(width), data, **SETTINGS)
        kernel, function, _ = report.signs
        found.append((kernel.measured.value, function.measured.value))
    assert found[1][0] < found[0][0] / 100
    assert found[1][1] < found[0][1] / 10


def test_a_large_learning_rate_is_not_lazy(data):
    torch.manual_seed(1)
    report = cs.lazy_report(NTKNetwork(8), data, **{**SETTINGS, "lr": 5.0, "steps": 60, "seeds": 3})
    assert report.verdict == "not lazy"
    assert "by the function no" in report.sentence


def test_the_same_seeds_give_the_same_numbers_and_leave_everything_as_it_was(data):
    torch.manual_seed(1)
    model = NTKNetwork(8).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reports = [cs.lazy_report(model, data, **SETTINGS) for _ in range(2)]
    assert reports[0].numbers() == reports[1].numbers()
    for a, b in zip(reports[0].seeds, reports[1].seeds, strict=True):
        assert all(torch.equal(t, b.tensors()[name]) for name, t in a.tensors().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_seeds_differ_in_batches_and_in_what_is_built(data):
    def build(seed: int) -> nn.Module:
        assert seed == torch.initial_seed()
        return NTKNetwork(8)

    report = cs.lazy_report(build, data, **SETTINGS)
    first, second = report.seeds
    assert not torch.equal(first.logits[0, 0], second.logits[0, 0])
    assert not torch.equal(first.batch_loss, second.batch_loss)


def test_what_was_stopped_goes_on_and_ends_in_the_same_numbers(data, tmp_path):
    torch.manual_seed(1)
    model, asked = NTKNetwork(8), []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) == 35  # in the second seed

    whole = cs.lazy_report(model, data, **SETTINGS)
    out = tmp_path / "lazy"
    job = Job(
        lambda _: copy.deepcopy(model),
        samples_of(data),
        Finetuning(**SETTINGS),
        should_stop=should_stop,
    )
    assert compare(job, out) is None
    assert (out / "seed-0" / "result.safetensors").exists()
    assert not (out / "seed-1" / "result.safetensors").exists()
    resumed = cs.lazy_report(model, data, out=out, **SETTINGS)
    assert resumed.numbers() == whole.numbers()
    assert cs.load_run(out / "seed-1").finished
    with pytest.raises(StoreError, match=r"lr was 0\.3 and is 0\.1"):
        cs.lazy_report(model, data, out=out, **{**SETTINGS, "lr": 0.1})
    file = out / "seed-1" / "result.safetensors"
    data_of_seed = file.read_bytes()
    file.write_bytes(data_of_seed[:-1] + bytes([data_of_seed[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"seed-1/result\.safetensors is damaged \(its checksum"):
        cs.lazy_report(model, data, out=out, **SETTINGS)
    file.unlink()
    assert cs.lazy_report(model, data, out=out, **SETTINGS).numbers() == whole.numbers()
    assert file.read_bytes() == data_of_seed


@pytest.mark.parametrize("file", ["result.safetensors", "kernels/00000006.safetensors"])
def test_a_kill_at_any_write_changes_no_bit(data, tmp_path, monkeypatch, file):
    torch.manual_seed(1)
    model = NTKNetwork(8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cs.lazy_report(model, data, out=whole, **SETTINGS)
    write = Folder.write_bytes

    def dies(self, name, *rest):
        if f"{self.path / name}".endswith(f"seed-1/{file}"):
            raise KeyboardInterrupt
        return write(self, name, *rest)

    monkeypatch.setattr(Folder, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        cs.lazy_report(model, data, out=killed, **SETTINGS)
    monkeypatch.undo()
    cs.lazy_report(model, data, out=killed, **SETTINGS)
    for seed in ("seed-0", "seed-1"):
        for path in (whole / seed).glob("**/*.safetensors"):
            assert path.read_bytes() == (killed / path.relative_to(whole)).read_bytes()


def test_inputs_by_name_and_outputs_by_select_give_what_a_tensor_gives(data):
    class Named(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.model(x)}

    torch.manual_seed(1)
    model, (x, y) = NTKNetwork(8), data
    plain = cs.lazy_report(model, (x, y), **SETTINGS)
    named = cs.lazy_report(Named(model), ({"x": x}, y), select="scores", **SETTINGS)
    for a, b in zip(plain.seeds, named.seeds, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-5)


def test_kernels_by_layer_add_up_and_change_no_number(data, tmp_path):
    torch.manual_seed(1)
    model = NTKNetwork(8)
    plain = cs.lazy_report(model, data, **SETTINGS)
    by_layer = cs.lazy_report(model, data, by_layer=True, out=tmp_path, **SETTINGS)
    assert by_layer.numbers() == plain.numbers()
    for kernel in cs.load_run(tmp_path / "seed-0").series.kernels:
        torch.testing.assert_close(sum(kernel.by_layer.values()), kernel.values)


def test_many_outputs_are_estimated_by_draws(data):
    x, y = data
    report = cs.lazy_report(NTKNetwork(8, classes=20), (x, y), **SETTINGS)
    assert report.seeds[0].logits.shape[-1] == 20
    assert float(report.seeds[0].distance_error) > 0


def test_a_test_set_and_names_are_taken(data):
    x, y = data
    names = ["no" if label == 0 else "yes" for label in y.tolist()]
    report = cs.lazy_report(NTKNetwork(8), (x, names), test=(x[:9], names[:9]), **SETTINGS)
    assert report.samples.classes == ("no", "yes")
    assert len(report.samples.test) == 9
    assert "no is 0, yes is 1" in report.numbers()["data"]


def refused(model, data, error, match, **settings):
    with pytest.raises(error, match=match) as raised:
        cs.lazy_report(model, data, **{**SETTINGS, **settings})
    assert "\n" not in str(raised.value)


def test_bad_data_are_refused_in_one_line(data):
    x, y = data
    model = NTKNetwork(8)
    refused(model, x, DataError, "labels are needed")
    refused(model, (x, None), DataError, "labels are needed")
    refused(model, (x, []), DataError, "60 samples have 0 labels")
    refused(model, (x, y[:50]), DataError, "60 samples have 50 labels")
    refused(model, (x, torch.zeros(60, dtype=torch.long)), DataError, "one class")
    refused(model, (x, torch.randn(60)), DataError, "whole numbers")
    refused(model, (x, torch.arange(60)), DataError, "60 classes are more than the 40")
    refused(model, (x, [10**12, *y[1:].tolist()]), DataError, "classes are more than the 60")
    refused(model, (x[:12], y[:12]), DataError, "8 training samples are too few")
    refused(model, (x, ["a", "b"] * 30), DataError, "'c' is not among", test=(x[:1], ["c"]))
    refused(model, (x, ["a", "b"] * 30), DataError, "some labels are names", test=(x, y))
    refused(model, (x, y), DataError, "prepare both alike", test=(x[:3, :4], y[:3]))
    refused(model, (x * math.nan, y), ModelError, "NaN")
    refused(model, (x, 1), DataError, "the labels are 1")
    refused(model, (x.numpy(), y), DataError, "inputs are a ndarray; give a tensor")
    refused(model, (x.tolist(), y), DataError, "inputs are a list of list; give a tensor")
    refused(model, ([], y), DataError, "inputs are a list; give a tensor")
    refused(model, (x, y), DataError, "list of str", test=(["the film"], y[:1]))
    refused(model, (x, y), DataError, "are x, and not one tensor", test=({"x": x}, y))
    given = {"x": x, "scale": 2.0}, y
    for scale in (3.0, torch.ones(60)):
        other = {"x": x, "scale": scale}, y
        refused(model, given, DataError, "scale is not what it is", test=other)


def test_classes_without_a_training_sample_are_named(data):
    x, y = data
    report = cs.lazy_report(nn.Linear(6, 4), (x, y + 2), **SETTINGS)
    assert "2 of the 4 classes have no training sample" in str(report)
    assert "no training sample" not in str(cs.lazy_report(nn.Linear(6, 2), data, **SETTINGS))


def test_bad_models_are_refused_in_one_line(data):
    class Loss(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input).square().mean()

    refused(NTKNetwork(8).requires_grad_(False), data, ModelError, "frozen")
    refused(Loss(6, 2), data, ModelError, "as a loss is")
    refused(NTKNetwork(8, classes=1), data, ModelError, r"need logits \[2, 2\]")
    refused(nn.Linear(5, 2), data, ModelError, "rejects two of the samples")

    refused("bert", data, ArgumentError, "got 'bert'")
    refused(lambda _: 3, data, ModelError, "returns a int")
    refused(lambda: NTKNetwork(8), data, ModelError, "cannot be called with a seed alone")
    layer = nn.Linear(6, 2)
    layer.scaled = layer.weight * 2  # as torch.nn.utils.weight_norm leaves one behind
    refused(layer, data, ModelError, "cannot be copied")


def test_a_function_that_returns_one_model_for_all_seeds_gives_each_a_copy(data):
    torch.manual_seed(1)
    model = NTKNetwork(8).train()
    before = copy.deepcopy(model.state_dict())
    shared = cs.lazy_report(lambda _: model, data, **SETTINGS)
    assert shared.numbers() == cs.lazy_report(model, data, **SETTINGS).numbers()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training


def test_an_operation_without_forward_derivative_is_linearised_all_the_same(data):
    torch.manual_seed(1)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    report = cs.lazy_report(nn.Sequential(normed, nn.Tanh()), data, **SETTINGS)
    assert float(report.seeds[0].distance[-1]) > 0


def test_a_training_that_diverges_in_its_last_step_gives_no_verdict(data):
    class Overflows(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) ** 5

    refused(Overflows(6, 2), data, TrainingError, "it diverged", steps=1, lr=1e20, seeds=1)


def test_one_test_sample_leaves_the_function_open(data):
    x, y = data
    settings = {**SETTINGS, "lr": 5.0, "seeds": 1}
    report = cs.lazy_report(NTKNetwork(8), data, test=(x[:1], y[:1]), **settings)
    assert report.signs[1].says_lazy == "cannot tell"


def test_a_diverged_training_gives_no_verdict(data):
    refused(NTKNetwork(8), data, TrainingError, "it diverged", lr=1e38)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("steps", 0), ("lr", 0.0), ("seeds", 0), ("probe", 3), ("optimizer", "none")),
        *(("epoch", 3), ("steps", 3.5), ("seeds", "2"), ("lr", "0.1"), ("weight_decay", None)),
        *(("weight_decay", math.nan), ("weight_decay", -0.1), ("by_layers", True)),
    ],
)
def test_bad_settings_are_refused(data, setting, value):
    with pytest.raises((RecipeError, ArgumentError), match=setting):
        cs.lazy_report(NTKNetwork(8), data, **{**SETTINGS, setting: value})


def test_signs_answer_by_the_whole_interval():
    def answer(low, high):
        return Sign("kernel", Interval((low + high) / 2, low, high), 0.1).says_lazy

    assert answer(0.0, 0.05) == "yes"
    assert answer(0.05, 0.2) == "cannot tell"
    assert answer(0.2, 0.3) == answer(-0.4, -0.2) == "no"
    assert answer(-math.inf, math.inf) == "cannot tell"


def test_the_verdict_says_where_the_signs_disagree():
    yes, no, open_ = Interval(0, 0, 0.01), Interval(0.5, 0.4, 0.6), Interval(0.1, 0, 0.2)
    names = ("kernel", "function", "accuracy")

    def of(*measured):
        return [Sign(*pair, 0.05) for pair in zip(names, measured, strict=True)]

    assert signs.verdict(of(no, yes, yes)) == "not lazy"
    assert signs.reasons(of(no, yes, open_)) == (
        "by the kernel no, by the function yes, by the accuracy cannot tell"
    )
    assert signs.verdict(of(yes, yes, open_)) == "lazy"
    assert signs.verdict(of(yes, open_, yes)) == "cannot tell"
    assert signs.verdict(of(yes, yes, no)) == "not lazy"


def test_intervals_over_seeds_are_students_and_those_of_samples_agrestis():
    found = signs.interval([1.0, 2.0, 3.0], 0.0)
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3))
    assert signs.interval([1.0], 0.5).high == pytest.approx(1 + 1.959964 * 0.5)
    correct = np.array([[1.0] * 8 + [0.0] * 2])
    share = 10 / 14
    width = 1.959964 * math.sqrt(share * (1 - share) / 14)
    assert signs.accuracy(correct).low == pytest.approx(share - width)
    assert signs.accuracy(np.ones((3, 20))).low < 1.0
    a, b = np.array([[1.0] * 6 + [0.0] * 4]), np.array([[0.0] * 3 + [1.0] * 7])
    only_a, only_b = 3.5, 4.5
    variance = (only_a + only_b - (only_a - only_b) ** 2 / 12) / 144
    difference = signs.accuracy_difference(a, b)
    assert difference.value == pytest.approx(-0.1)
    assert difference.high - difference.value == pytest.approx(1.959964 * math.sqrt(variance))


def test_a_difference_of_accuracies_stays_within_its_range():
    a = np.array([[1.0] * 20, [0.0] * 20])
    found = signs.accuracy_difference(a, np.zeros((2, 20)))
    assert (found.low, found.high) == (-1.0, 1.0)


def test_the_distance_of_functions_ignores_what_softmax_ignores():
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
    shifted = g + rng.normal(size=(7, 1))
    np.testing.assert_allclose(signs.function_distance(f, g), signs.function_distance(f, shifted))
    value, _ = signs.relative_distance(np.zeros((7, 3)), f, f / 2)
    assert value == pytest.approx(0.5)
    assert math.isnan(signs.relative_distance(f, f, g)[0])
