"""What an audit finds in a series of checkpoints, and what it leaves alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import lr_scheduler

import conescope as cs
from conescope.cli import main
from conescope.errors import CheckpointError, DamageWarning, SameWeightsWarning
from conescope.measuring.audit import AuditedCheckpoint, audit
from conescope.measuring.audit.fingerprints import BUCKETS, fingerprint_of
from conescope.measuring.audit.path_order import out_of_order, squared_distances
from conescope.measuring.audit.structure import spacing

STEPS = range(0, 401, 25)


NO_TEXT = b'{"version": 2, "text": null, "sha256": ""}'


def network(norm=False):
    layers = [nn.Linear(64, 32), nn.BatchNorm1d(32)] if norm else [nn.Linear(64, 32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def trained(
    optimizer, when=STEPS, norm=False, schedule=None, batch=32, seed=0, frozen=(), dtype=None
):
    """Train on scikit-learn's digits, and return step → state dict."""
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=dtype or torch.float32), torch.tensor(classes)
    torch.manual_seed(seed)
    model = network(norm).to(dtype)
    chosen = optimizer([p for name, p in model.named_parameters() if name not in frozen])
    rates = schedule(chosen) if schedule else None
    found = {}
    for step in range(max(when) + 1):
        if step in when:
            found[step] = {name: value.clone() for name, value in model.state_dict().items()}
        rows = torch.randint(0, len(x), (batch,)) if batch else slice(None)
        model.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        chosen.step()
        if rates:
            rates.step()
    return found


def sgd(rate, **options):
    return lambda parameters: torch.optim.SGD(parameters, rate, **options)


def adam(rate, **options):
    return lambda parameters: torch.optim.AdamW(parameters, rate, **options)


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, 400)


@pytest.fixture(scope="module")
def good():
    return trained(sgd(0.1))


@pytest.fixture(scope="module")
def other():
    return trained(sgd(0.1), seed=7)


def saved(folder, series):
    folder.mkdir(exist_ok=True)
    for step, weights in series.items():
        save_file({n: v.clone() for n, v in weights.items()}, folder / f"step{step}.safetensors")
    return folder


def alarms(folder, **options):
    return [(each.kind, each.steps) for each in cs.audit_checkpoints(folder, **options).alarms]


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": sgd(0.1)},
        {"optimizer": sgd(0.1), "schedule": cosine},
        {"optimizer": sgd(0.1, momentum=0.9), "norm": True},
        {"optimizer": sgd(0.5, weight_decay=0.01)},
        {"optimizer": sgd(1.0), "when": range(60), "batch": None},
        {"optimizer": sgd(1.0), "when": range(60), "batch": None, "norm": True},
        {"optimizer": sgd(0.5, weight_decay=0.01), "when": range(60), "batch": None},
        {"optimizer": sgd(0.1), "when": (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400)},
        {"optimizer": adam(1e-3), "schedule": cosine},
        {"optimizer": adam(3e-2)},
        {"optimizer": adam(1e-3), "frozen": ("0.weight", "0.bias", "2.weight")},
        {
            "optimizer": sgd(0.05),
            "schedule": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.5, 40, cycle_momentum=False),
        },
    ],
    ids=["sgd", "cosine", "momentum", "decay", "edge of stability", "edge, norm",
         "edge, decay", "doubling", "adamw", "hot",
         "frozen", "cyclic"],
)  # fmt: skip
def test_trainings_as_they_are_raise_no_alarm(tmp_path, training):
    assert alarms(saved(tmp_path / "s", trained(**training))) == []


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (1e-4, {"when": range(40), "dtype": torch.bfloat16}),
        (2e-4, {"when": range(40), "dtype": torch.bfloat16}),
        (1e-4, {"schedule": cosine, "dtype": torch.bfloat16}),
        (3e-5, {"when": range(40), "dtype": torch.float16}),
        (3e-5, {"schedule": cosine, "dtype": torch.float16}),
    ],
)
def test_weights_too_coarse_for_their_updates_may_rest_or_come_back(tmp_path, rate, options):
    series = trained(sgd(rate), **options)
    kinds = {kind for kind, _ in alarms(saved(tmp_path / "s", series))}
    assert kinds <= {"same weights"}  # which they are, where no value moved


@pytest.mark.parametrize("names", [["0.weight", "0.bias"], ["0.weight"]])
def test_parts_of_another_step_in_half_precision(tmp_path, names):
    series = trained(sgd(0.01), dtype=torch.bfloat16)
    series[200] = {**series[200], **{name: series[400][name] for name in names}}
    assert ("parts of another step", (200, 400)) in alarms(saved(tmp_path / "s", series))


def test_the_same_weights_under_two_steps(tmp_path, good):
    series = {**good, 100: good[400]}
    assert ("same weights", (100, 400)) in alarms(saved(tmp_path / "s", series))
    frozen = dict.fromkeys((0, 1, 2), good[0])
    assert alarms(saved(tmp_path / "t", frozen)) == [("same weights", (0, 1, 2))]


def test_statistics_do_not_hide_the_same_weights(tmp_path):
    series = trained(sgd(0.1), when=(0, 5, 10), norm=True)
    series[10] = {**series[10], **{n: v for n, v in series[5].items() if "running" not in n}}
    assert ("same weights", (5, 10)) in alarms(saved(tmp_path / "s", series))


@pytest.mark.parametrize("pair", [(100, 125), (50, 150), (200, 300)])
def test_two_swapped_steps(tmp_path, good, pair):
    a, b = pair
    series = {**good, a: good[b], b: good[a]}
    assert alarms(saved(tmp_path / "s", series)) == [("out of order", pair)]


def test_later_weights_with_other_bits(tmp_path, good):
    nearly = {name: value + 1e-6 * torch.randn_like(value) for name, value in good[350].items()}
    assert alarms(saved(tmp_path / "s", {**good, 100: nearly})) == [("out of order", (100,))]


def test_weights_of_another_run(tmp_path, good, other):
    series = {**good, 200: other[200]}
    assert alarms(saved(tmp_path / "s", series)) == [("off the path", (200,))]


def shards(folder, series):
    """Write each state dict as a folder of two shards, as transformers does."""
    for step, weights in series.items():
        inner = folder / f"checkpoint-{step}"
        inner.mkdir(parents=True)
        parts = [{n: v for n, v in weights.items() if n[0] in group} for group in ("0", "24")]
        names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
        for name, part in zip(names, parts, strict=True):
            save_file({n: v.clone() for n, v in part.items()}, inner / name)
        places = {n: names["024".index(n[0]) > 0] for n in weights}
        (inner / "model.safetensors.index.json").write_text(
            str({"weight_map": places}).replace("'", '"')
        )
    return folder


def test_a_shard_of_another_step(tmp_path, good):
    folder = shards(tmp_path / "s", good)
    assert alarms(folder) == []
    shard = "model-00002-of-00002.safetensors"
    shutil.copy(folder / "checkpoint-100" / shard, folder / "checkpoint-125" / shard)
    assert alarms(folder) == [("parts of another step", (100, 125))]
    shutil.copy(folder / "checkpoint-300" / shard, folder / "checkpoint-125" / shard)
    assert ("parts of another step", (125, 300)) in alarms(folder)
    told = str(cs.audit_checkpoints(folder))
    assert f"steps 125 and 300 share 40% of the trained parameters (all of {shard}: 2." in told
    nearly = {n: v + 1e-6 for n, v in load_file(folder / "checkpoint-300" / shard).items()}
    save_file(nearly, folder / "checkpoint-125" / shard)
    assert [kind for kind, _ in alarms(folder)] == ["out of order"]
    assert f"in {shard} of step 125" in str(cs.audit_checkpoints(folder))


def test_frozen_layers_are_remarked_and_buffers_are_not(tmp_path):
    series = trained(sgd(0.1), when=(0, 5, 10, 15), frozen=("0.weight", "0.bias"))
    fixed = {
        "position_ids": torch.arange(5),
        "rotary.inv_freq": torch.rand(4),
        "attn.bias": torch.ones(1, 1, 4, 4),
        "causal_mask": torch.full((4, 4), -torch.inf),
    }
    folder = saved(tmp_path / "s", {step: {**w, **fixed} for step, w in series.items()})
    done = cs.audit_checkpoints(folder)
    assert [(each.kind, each.is_alarm) for each in done.findings] == [("frozen throughout", False)]
    assert "2 of 9 tensors (2,080 numbers)" in str(done)
    assert "0.bias and 0.weight" in str(done)


def test_layers_that_are_released_later_are_remarked(tmp_path, good):
    first = {name: value for name, value in good[0].items() if name.startswith("0")}
    series = {step: {**w, **(first if step < 200 else {})} for step, w in good.items()}
    done = cs.audit_checkpoints(saved(tmp_path / "s", series))
    assert done.alarms == ()
    assert [each.kind for each in done.remarks] == ["at rest for a time"]


def test_half_of_the_weights_of_the_step_before(tmp_path, good):
    series = {**good, 200: {**good[200], "0.weight": good[175]["0.weight"]}}
    assert ("parts of another step", (175, 200)) in alarms(saved(tmp_path / "s", series))


def test_tensors_that_differ_in_kind(tmp_path, good):
    weights = good[50]
    series = {
        **good,
        25: {name: value for name, value in weights.items() if name != "4.bias"},
        50: {**weights, "extra.weight": torch.randn(3, 3)},
        75: {**weights, "4.bias": torch.randn(11)},
        100: {name: value.bfloat16() for name, value in good[100].items()},
    }
    assert alarms(saved(tmp_path / "s", series)) == [
        ("missing tensors", (25,)),
        ("unexpected tensors", (50,)),
        ("another shape", (75,)),
        ("another type", (100,)),
        *[each for each in alarms(tmp_path / "s") if each[0] == "parts of another step"],
    ]
    told = str(cs.audit_checkpoints(tmp_path / "s"))
    assert "4.bias is [11] instead of [10]" in told
    assert "6 tensors are bfloat16 instead of float32" in told


def test_wrappers_and_tied_weights_are_no_difference(tmp_path, good):
    series = {
        step: {**w, "head.weight": w["0.weight"]} if step < 100 else w for step, w in good.items()
    }
    series[50] = {f"module.{name}": value for name, value in series[50].items()}
    assert alarms(saved(tmp_path / "s", series)) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(tmp_path, good, value):
    broken = {name: tensor.clone() for name, tensor in good[200].items()}
    broken["2.weight"][3, 1:4] = value
    done = cs.audit_checkpoints(saved(tmp_path / "s", {**good, 200: broken}))
    assert [(each.kind, each.steps) for each in done.alarms] == [("not finite", (200,))]
    assert "holds 3 NaN or infinite values, in 2.weight" in str(done)


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (range(0, 1000, 100), []),
        ([0, 100, 200, 400, 500, 600], ["missing steps"]),
        ([0, 100, 200, 300, 500, 700, 800, 900], ["missing steps"]),
        ([*range(0, 100, 10), *range(100, 1001, 100)], ["uneven spacing"]),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 9000, 1000)], ["uneven spacing"]),
        ([0, 100, 200, 300, 391], ["uneven spacing"]),
        ([5], []),
        ([0, 7], []),
    ],
)
def test_gaps_in_the_steps(steps, kinds):
    found = [*spacing([*steps])]
    assert [each.kind for each in found] == kinds
    assert [each.is_alarm for each in found] == [kind == "missing steps" for kind in kinds]


def test_steps_that_are_missing_are_named():
    (one,) = spacing([0, 100, 200, 600, 700, 800])
    assert "3 steps are missing" in one.text
    assert "300 to 500" in one.text


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("shape", [(400, 640), (127 * 8192 + 5,), (3, 5), ()])
def test_distances_between_sketches_are_those_of_the_tensors(tmp_path, shape, scale):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    b = a + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    for name, tensor in {"a": a, "b": b}.items():
        torch.save({"w": tensor}, tmp_path / f"{name}.pt")
    one, two = (fingerprint_of([tmp_path / f"{name}.pt"])["w"] for name in "ab")
    assert len(one.sketch) == min(a.numel(), BUCKETS)
    found, true = ((one.sketch - two.sketch) ** 2).sum(), float((a - b).square().sum())
    tolerance = 1e-6 if a.numel() <= BUCKETS else 5 * np.sqrt(2 / BUCKETS)
    assert abs(found / true - 1) < tolerance


def test_sketches_are_unbiased_for_one_column_that_moves(tmp_path):
    moved = torch.zeros(1000, 254)
    moved[:, 3] = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    torch.save({"w": moved[:, :253].contiguous()}, tmp_path / "a.pt")
    sketch = fingerprint_of([tmp_path / "a.pt"])["w"].sketch
    assert abs((sketch**2).sum() / float(moved.square().sum()) - 1) < 5 * np.sqrt(2 / BUCKETS)


def random_walk(length, dims=4000, seed=0):
    moves = np.random.default_rng(seed).standard_normal((length, dims))
    return moves.cumsum(axis=0)


@pytest.mark.parametrize("seed", range(10))
def test_a_random_walk_is_in_order_and_a_stationary_state_says_nothing(seed):
    steps = [*range(30)]
    assert not [*out_of_order(steps, squared_distances(random_walk(30, seed=seed)), "x")]
    noise = np.random.default_rng(seed).standard_normal((30, 4000))
    assert not [*out_of_order(steps, squared_distances(noise), "x")]


@pytest.mark.parametrize("pair", [(3, 4), (5, 9), (10, 20), (1, 28)])
def test_two_swapped_points_of_a_random_walk_are_named(pair):
    walk, (a, b) = random_walk(30), pair
    walk[[a, b]] = walk[[b, a]]
    (found,) = out_of_order([*range(30)], squared_distances(walk), "x")
    assert found.steps == pair


def test_a_path_that_ends_where_it_was_before():
    walk = random_walk(20)
    walk[-1] = walk[4] + 0.3 * (walk[5] - walk[4])
    (found,) = out_of_order([*range(20)], squared_distances(walk), "x")
    assert found.steps == (19,)
    assert "belong next to those of step 4" in found.text


def test_tasks_that_alternate_are_a_remark():
    homes = np.random.default_rng(0).standard_normal((2, 4000)) * 10
    path = random_walk(20) + homes[np.arange(20) % 2]
    kinds = {(each.kind, each.is_alarm) for each in out_of_order([*range(20)],
             squared_distances(path), "x")}  # fmt: skip
    assert kinds <= {("back and forth", False)}


def test_an_unreadable_checkpoint_is_a_finding_and_the_others_are_read(tmp_path, good):
    folder = saved(tmp_path / "s", good)
    (folder / "step200.safetensors").write_bytes(b"\x00" * 100)
    done = cs.audit_checkpoints(folder)
    assert [(each.kind, each.steps) for each in done.alarms] == [("unreadable", (200,))]
    assert "step200.safetensors is truncated or no safetensors file" in str(done)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        cs.audit_checkpoints(tmp_path / "nowhere*")


def test_what_is_wrong_with_several_is_said_once(tmp_path, good):
    def fail():
        raise CheckpointError("lab/tiny is gated")

    series = [AuditedCheckpoint(step, f"step{step}", "", fail) for step in range(7)]
    (alarm,) = audit(series).alarms
    assert (alarm.kind, alarm.steps) == ("unreadable", tuple(range(7)))
    assert alarm.text == "steps 0, 1, 2, 3 and 3 more: lab/tiny is gated"


def test_what_is_stored_is_not_read_again_unless_it_has_changed(tmp_path, good, monkeypatch):
    folder, out = saved(tmp_path / "s", good), tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    asked = []
    monkeypatch.setattr(
        "conescope.measuring.audit.series_audit.fingerprint_of",
        lambda files: asked.append(files[0].name) or fingerprint_of(files),
    )
    first = cs.audit_checkpoints(folder, out=out)
    assert len(asked) == len(good)
    assert cs.audit_checkpoints(folder, out=out) == first
    assert len(asked) == len(good)
    save_file({"w": torch.ones(3)}, folder / "step100.safetensors")
    assert ("missing tensors", (100,)) in alarms(folder, out=out)
    file = next((out / "fingerprints").iterdir())
    whole = file.read_bytes()
    for number, damaged in enumerate(
        [b"{", whole.replace(b"0", b"1", 1), whole[:-9], b"[]", NO_TEXT]
    ):
        file.write_bytes(damaged)
        with pytest.warns(DamageWarning, match=f"{file.name} is damaged .*taken again"):
            cs.audit_checkpoints(folder, out=out)
        assert len(asked) == len(good) + 2 + number
        assert file.read_bytes() == whole
    assert set(folder.iterdir()) == set(before)


def test_an_audit_that_is_stopped_goes_on(tmp_path, good):
    folder = saved(tmp_path / "s", {step: good[step] for step in (0, 25, 50)})
    asked = []

    def one(step):
        def files():
            asked.append(step)
            return [folder / f"step{step}.safetensors"]

        return AuditedCheckpoint(step, f"hub@{step}", "revision", files)

    series = [one(step) for step in (0, 25, 50)]
    assert audit(series, tmp_path / "out", should_stop=lambda: len(asked) == 2) is None
    assert asked == [0, 25]
    done = audit(series, tmp_path / "out")
    assert asked == [0, 25, 50]
    assert done is not None
    assert (done.steps, done.alarms) == ((0, 25, 50), ())


def test_the_command_says_what_it_found_by_its_status(tmp_path, good, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "s", good)
    assert main(["audit", "s"]) == 0
    told = capsys.readouterr().out
    assert "17, step 0 to 400" in told
    assert "6, with 3,466 real numbers" in told
    assert [path.name for path in Path().iterdir()] == ["s"]
    shutil.copy("s/step400.safetensors", "s/step200.safetensors")
    assert main(["audit", "s", "--out", "found"]) == 1
    assert "ALARM: same weights: steps 200 and 400 have" in capsys.readouterr().out
    assert main(["audit", "nothing*"]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err


def measured(folder):
    probe = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    return cs.measure_checkpoints(network, folder, probe, out=folder.with_name("run"))


def test_measuring_warns_of_parts_of_another_step(tmp_path, good):
    series = {step: good[step] for step in (0, 100, 200, 300)}
    series[200] = {**good[200], "0.weight": good[100]["0.weight"]}
    folder = saved(tmp_path / "s", series)
    with pytest.warns(SameWeightsWarning, match=r"step100\.\w+ and .*step200\.\w+ .*in 59% of"):
        measured(folder)


def test_measuring_does_not_warn_of_frozen_layers(tmp_path, good):
    measured(saved(tmp_path / "s", {step: good[step] for step in (0, 100)}))
    shutil.rmtree(tmp_path / "run")
    head = trained(adam(1e-3), when=(0, 50, 100), frozen=("0.weight", "0.bias", "2.weight"))
    measured(saved(tmp_path / "t", head))


def test_layers_of_zeros_stop_the_others_at_first(tmp_path, good):
    first = {name: value.clone() for name, value in good[0].items()}
    for name in ("4.weight", "4.bias"):
        first[name].zero_()
    second = {**first, "4.weight": good[25]["4.weight"], "4.bias": good[25]["4.bias"]}
    series = {**good, 0: first, 25: second}
    assert alarms(saved(tmp_path / "s", series)) == []
    later = {**good, 200: {**good[200], **{n: first[n] for n in ("4.weight", "4.bias")}}}
    later[225] = {**good[200], **{n: good[225][n] for n in ("4.weight", "4.bias")}}
    assert ("parts of another step", (200, 225)) in alarms(saved(tmp_path / "s", later))


def test_a_tensor_of_nothing_but_nan_is_no_mask(tmp_path, good):
    nan = torch.full((4,), torch.nan)
    series = {step: {**weights, "scale": nan} for step, weights in good.items()}
    kinds = [kind for kind, _ in alarms(saved(tmp_path / "s", series))]
    assert kinds == ["not finite"] * len(good)


def test_a_tensor_of_more_values_than_its_file_is_refused(tmp_path):
    for step in range(2):
        torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / f"step{step}.pt")
    done = cs.audit_checkpoints(tmp_path)
    assert [each.kind for each in done.alarms] == ["unreadable"] * 2
    assert "stands for 4,000,000,000,000 bytes" in str(done)
