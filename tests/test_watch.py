import contextlib
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conescope as cs
from conescope.engine.arguments import unwrapped
from conescope.errors import (
    ArgumentError,
    BudgetWarning,
    DamageWarning,
    DataError,
    KernelError,
    ModelError,
    RecipeError,
    StoreError,
)
from conescope.experiments.stored import load_run
from conescope.measuring.pace import Pace
from conescope.report.run_analysis import analyse
from conescope.runs.journal import Kind
from conescope.runs.store import Folder

STEPS = 8


class Restless(nn.Module):
    """Leaves its inputs alone, and touches everything else that it can in any mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.replaced = self.replaced + 1
        torch.rand(3)
        if not torch.compiler.is_compiling():
            np.random.rand(3), random.random()
        return x


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Restless(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )
    model[0].bias.requires_grad_(False)
    model[7].eval()  # a layer that is frozen on its running statistics
    return model


def probe():
    return torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(9))


def train(model, look=lambda step: None, context=nullcontext, between=False):
    """A training with everything in it; gives all that could differ afterwards, bit for bit."""
    random.seed(0), np.random.seed(0), torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    look(0)
    for step in range(1, STEPS + 1):
        x, y = torch.randn(16, 1, 6, 6), torch.randint(0, 3, (16,))
        with context():
            loss = F.cross_entropy(model(x), y)
        if between:
            look(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not between:
            with context():
                look(step)
        losses.append(loss.detach())
    inner = unwrapped(model)
    return {
        "losses": torch.stack(losses),
        "rng": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        "modes": torch.tensor([module.training for module in model.modules()]),
        "flags": torch.tensor([p.requires_grad for p in model.parameters()]),
        "autocast": torch.tensor([torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()]),
        "deterministic": torch.tensor([torch.are_deterministic_algorithms_enabled()]),
        **inner.state_dict(),
        **{f"grad.{name}": p.grad for name, p in inner.named_parameters() if p.grad is not None},
    }


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    ("wrap", "context", "between"),
    [
        (lambda model: model, nullcontext, False),
        (lambda model: model, nullcontext, True),
        (lambda model: model, lambda: torch.autocast("cpu", dtype=torch.bfloat16), False),
        (compiled, nullcontext, False),
        (nn.DataParallel, nullcontext, False),
    ],
    ids=["plain", "before-backward", "autocast", "compiled", "data-parallel"],
)
def test_a_training_is_the_same_bits_with_and_without(tmp_path, wrap, context, between):
    without = train(wrap(network()), context=context, between=between)
    model = wrap(network())
    with cs.Watch(model, probe(), when="0, every 2", out=tmp_path) as watch:
        watched = train(model, watch.step, context, between)
    assert watch.series.steps == (0, 2, 4, 6, 8)
    assert without.keys() == watched.keys()
    for name, value in without.items():
        assert torch.equal(value, watched[name]), name


def test_nothing_is_compiled_for_a_measurement(tmp_path):
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    model = small()
    expected = cs.entk(model, inputs()).values
    model[0] = torch.compile(model[0], backend=backend)
    model.compile(backend=backend)
    with watch_small(tmp_path, model) as watch:
        watch.step(0)
        assert not compilations
        model(inputs())
        assert compilations
    assert torch.equal(watch.series.kernels[0].values, expected)


def moved(model, step):
    """A network some steps into a training that moves it a little each time."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
    return model


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def inputs():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(2))


def watch_small(out, model=None, **changes):
    options = {"probe": inputs(), "when": "0, every 2", "out": out} | changes
    return cs.Watch(small() if model is None else model, **options)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")]
)
def test_the_kernel_is_the_same_in_any_context(tmp_path, context):
    model = network()
    with context():
        watch = cs.Watch(model, probe(), when="0", out=tmp_path)
        assert watch.step(0)
    expected = cs.entk(model.eval(), probe())
    assert torch.equal(watch.series.kernels[0].values, expected.values)


def test_a_probe_made_in_inference_mode_will_do(tmp_path):
    with torch.inference_mode():
        made = inputs().clone()
    watch = watch_small(tmp_path, probe=made)
    assert watch.step(0)


def test_the_run_is_kept_and_read(tmp_path):
    model, told = small(), {}
    options = {"outputs": "full", "by_layer": True, "name": "mine", "total_steps": 4}
    with watch_small(
        tmp_path, model, when="0, 2, end", on_kernel=lambda s, v: told.update({s: v}), **options
    ) as watch:
        taken = [watch.step(step) for step in range(5) if moved(model, step)]
    assert taken == [True, False, True, False, True]
    run = cs.load_run(tmp_path)
    assert run.finished
    assert (run.name, run.total_steps, run.series.steps) == ("mine", 4, (0, 2, 4))
    assert run.source["probe"].startswith("[4, 3] float32")
    replayed = small()
    for step in range(5):
        moved(replayed, step)
        if step in run.series.steps:
            expected = cs.entk(replayed, inputs(), outputs="full", by_layer=True)
            kernel = run.series.kernels[run.series.index(step)]
            assert torch.equal(kernel.values, expected.values)
            assert torch.equal(kernel.by_layer["0"], expected.by_layer["0"])
            assert told[step]["trace"] == pytest.approx(float(expected.matrix.trace()))
    distances = run.series.distances()
    assert told[4]["distance_from_first"] == pytest.approx(distances[2, 0], rel=1e-9)
    assert told[4]["distance_from_previous"] == pytest.approx(distances[2, 1], rel=1e-9)
    assert told[4]["velocity"] == pytest.approx(distances[2, 1] / 2, rel=1e-9)
    assert told[0].keys() == {"trace"}


def test_labels_are_kept_and_may_come_later(tmp_path):
    with watch_small(tmp_path) as watch:
        watch.step(0)
    assert cs.load_run(tmp_path).labels is None
    for labels in (torch.tensor([0, 1, 1, 0]), [0, 1, 2, 0], None, [0, 1, 2, 0]):
        watch_small(tmp_path, labels=labels).release()
    run = cs.load_run(tmp_path)
    assert analyse(run).labels.tolist() == [0, 1, 2, 0]
    assert len(Folder(tmp_path).entries(Kind.LABELS)) == 2  # each is noted once


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"4 samples need 4 labels, \[4\], and these are \[2\]"),
        (torch.zeros(4, 3, dtype=torch.int64), r"and these are \[4, 3\]"),
        (torch.rand(4), "the labels are float32, and classes are whole numbers"),
        ([0.0, 1.0, float("nan"), 1.0], "each a whole number.*got list of float"),
        (torch.ones(4, dtype=torch.bool), "the labels are bool"),
        ([0, 1, -100, 1], "the labels hold -100, and classes count from 0"),
        (["cat", "dog", "cat", "dog"], "each a whole number.*got list of str"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    with pytest.raises((DataError, ArgumentError), match=message):
        watch_small(tmp_path / "run", labels=labels)
    assert not (tmp_path / "run").exists()


def test_many_outputs_are_estimated_with_an_error(tmp_path):
    model = small()
    with watch_small(tmp_path, model, draws=3) as watch:
        watch.step(0)
        watch.step(2)
    run = watch.run
    expected = cs.estimate_entk(model, inputs(), draws=3)
    assert run.estimates.keys() == {0, 2}
    assert torch.equal(run.estimates[0].draws, expected.draws)
    assert torch.equal(run.series.kernels[0].values, expected.kernel.values)
    with pytest.raises(KernelError, match="random cotangents estimate the class trace"):
        watch_small(tmp_path / "other", draws=3, outputs="full")


def test_another_session_goes_on(tmp_path):
    whole, model = small(), small()
    with watch_small(tmp_path / "whole", whole) as watch:
        for step in range(7):
            watch.step(step)
            moved(whole, step)
    watch = watch_small(tmp_path / "mine", model)
    for step in range(5):
        watch.step(step)
        checkpoint = {name: t.clone() for name, t in model.state_dict().items()}
        moved(model, step)
    del watch  # the process is killed; the checkpoint is from step 4
    model.load_state_dict(checkpoint)
    with watch_small(tmp_path / "mine", model) as resumed:
        taken = [resumed.step(step) for step in (4, 5, 6) if step == 4 or moved(model, step - 1)]
    assert taken == [False, False, True]
    one, other = load_run(tmp_path / "whole").series, load_run(tmp_path / "mine").series
    assert one.steps == other.steps == (0, 2, 4, 6)
    np.testing.assert_array_equal(one.distances(), other.distances())


def test_a_damaged_kernel_is_measured_again(tmp_path):
    with watch_small(tmp_path) as watch:
        watch.step(0)
    file = tmp_path / "kernels/00000000.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-8])
    with pytest.warns(DamageWarning, match="is missing or damaged"):
        watch = watch_small(tmp_path)
    with watch:
        assert watch.step(0)
    assert file.read_bytes() == before


def test_a_folder_is_of_one_training(tmp_path):
    watch = watch_small(tmp_path)
    watch.step(0)
    with pytest.raises(StoreError, match="belongs to another process"):
        watch_small(tmp_path)
    watch.close()
    for changes, message in (
        ({"probe": inputs() + 1}, r"probe was '\[4, 3\] float32"),
        ({"outputs": "sum"}, "outputs was 'trace' and is 'sum'"),
        ({"params": "2"}, "parameters was"),
        ({"model": nn.Linear(3, 2)}, "model was 'Sequential' and is 'Linear'"),
    ):
        with pytest.raises(StoreError, match=message):
            watch_small(tmp_path, **changes)
    with (
        watch_small(tmp_path, moved(small(), 1), when="0, every 3", name="renamed") as watch,
        pytest.raises(StoreError, match="this is another training; choose another folder"),
    ):
        watch.step(0)


@pytest.mark.parametrize("when", ["0, every 2", "2"])
def test_a_resumed_training_that_takes_another_way_is_told(tmp_path, when):
    with watch_small(tmp_path, when=when) as watch:
        for step in range(5):
            watch.step(step)
    with watch_small(tmp_path, moved(small(), 1), when=when) as watch:
        watch.step(1)
        with pytest.warns(DamageWarning, match="weights at step 2 are not those"):
            assert not watch.step(2)


def test_the_budget_is_kept_and_what_was_skipped_is_told(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("conescope.measuring.watch.Pace", partial(Pace, clock=lambda: now[0]))

    class Slow(nn.Linear):
        def forward(self, x):
            now[0] += 0.05  # an engine's pass over it
            return super().forward(x)

    torch.manual_seed(0)
    with watch_small(tmp_path, Slow(3, 2), when="0, every 1", budget=0.1) as watch:
        watch.step(0)
        spent = now[0]
        with pytest.warns(BudgetWarning, match=r"budget=0.1 leaves no time .* at step 1"):
            watch.step(1)
        for step in range(2, 300):
            now[0] += 0.3
            before = now[0]
            watch.step(step)
            spent += now[0] - before
        assert spent <= 0.1 * now[0] * 1.01
        assert spent >= 0.05 * now[0]
        taken = set(range(300)) - set(watch.skipped)
    run = cs.load_run(tmp_path)
    assert set(run.series.steps) == taken
    assert run.skipped == watch.skipped
    gaps = np.diff(run.series.steps[5:])
    assert len(set(gaps.tolist())) == 1  # regular, so that lags are shared


def test_misuse_is_said(tmp_path):
    watch = watch_small(tmp_path)
    watch.step(4)
    assert not watch.step(np.int64(4))
    with pytest.raises(KernelError, match="step 3 comes after step 4"):
        watch.step(3)
    for step in (-1, 1.5, True, None):
        with pytest.raises(KernelError, match="a step is a number of iterations"):
            watch.step(step)
    watch.close()
    watch.close()
    with pytest.raises(StoreError, match="the watch is closed"):
        watch.step(6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"when": "every 1ep"}, RecipeError, "counts epochs; write iterations"),
        ({"when": "0, end"}, RecipeError, "say where that is with total_steps"),
        ({"when": "sometimes"}, RecipeError, "is no schedule"),
        ({"budget": 5}, RecipeError, "share of the wall time between 0 and 1, not 5"),
        ({"probe": torch.zeros(4, 5)}, ModelError, r"rejects the probe, \[4, 5\] float32"),
        ({"probe": torch.full((4, 3), torch.nan)}, ModelError, "the probe holds NaN"),
        ({"params": "nothing"}, ModelError, "which no parameter of the model matches"),
        ({"draws": 1}, KernelError, "at least 2 draws"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_once(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        watch_small(tmp_path / "run", **changes).step(0)


def test_one_draw_is_refused_when_the_watch_is_made(tmp_path):
    with pytest.raises(KernelError, match="at least 2 draws"):
        watch_small(tmp_path, draws=1)


def test_errors_leave_model_and_folder_as_they_were(tmp_path):
    model = small().train()
    watch = watch_small(tmp_path, model)
    watch.step(0)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"parameter '2\.weight' holds NaN"):
        watch.step(2)
    assert all(module.training for module in model.modules())
    assert watch.series.steps == (0,)


def test_an_exception_in_the_loop_leaves_the_run_unfinished(tmp_path):
    with contextlib.suppress(ZeroDivisionError), watch_small(tmp_path) as watch:
        watch.step(0)
        raise ZeroDivisionError
    assert not cs.load_run(tmp_path).finished
    assert not Folder(tmp_path).is_owned()
