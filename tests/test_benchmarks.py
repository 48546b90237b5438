"""The benchmark's own arithmetic: references, products of Jacobians, tables."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from benchmarks import many_sequences, models, peers, report
from benchmarks.__main__ import _parser, _run, _with_defaults
from benchmarks.architectures import ARCHITECTURES, FULL_RUN
from benchmarks.contenders.base import halvings
from benchmarks.contenders.jacobian import chunk_options, kernel_by_chunks, product
from benchmarks.contenders.torch_func import TorchFunc, Tutorial
from benchmarks.draws import deviation, draw_kernels, signs
from benchmarks.machine import memory_field, total_memory
from benchmarks.model_worker import Subject
from benchmarks.peer_worker import Entry
from benchmarks.problems import CLASSES, Network, Problem
from benchmarks.projectors import PROJECTORS
from benchmarks.projectors.base import Projector
from benchmarks.reference import deviations, reduce, reference_kernel, spread_samples
from torch import Tensor, nn

import conescope


@pytest.fixture
def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear layer, its inputs, and its full kernel: (x_i · x_j + 1) δ_kl."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, CLASSES), torch.randn(8, 5)
    gram = x.double() @ x.double().T + 1
    return model, x, torch.einsum("nm,kl->nkml", gram, torch.eye(CLASSES, dtype=torch.float64))


def test_the_reference_meets_the_closed_form(linear):
    model, x, truth = linear
    samples = [0, 3, 7]
    found = reference_kernel(model, x, samples)
    torch.testing.assert_close(found, truth[samples][:, :, samples], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", ["full", "trace", "sum"])
@pytest.mark.parametrize(
    ("contender", "option"),
    [
        (Tutorial, {"chunk": 8}),
        (Tutorial, {"chunk": 4}),
        (TorchFunc, {"chunk": 8, "stored": True}),
        (TorchFunc, {"chunk": 4, "stored": True}),
        (TorchFunc, {"chunk": 2, "stored": False}),
    ],
)
def test_every_option_gives_the_same_kernel(linear, contender, option, outputs):
    model, x, truth = linear
    kernel = contender(model, x, outputs).run(**option)
    torch.testing.assert_close(kernel.double(), reduce(truth, outputs), rtol=1e-5, atol=1e-5)


def test_pairs_of_chunks_are_the_whole_product():
    jacobian = torch.randn(6, 3, 4, dtype=torch.float64)
    index = torch.arange(6)
    found = kernel_by_chunks(lambda i: [jacobian[i]], index, "full", chunk=2, stored=False)
    torch.testing.assert_close(found, product([jacobian], [jacobian], "full"))
    torch.testing.assert_close(found, torch.einsum("ncp,mdp->ncmd", jacobian, jacobian))


def test_deviations_of_a_perturbed_kernel(linear):
    model, x, truth = linear
    samples = [0, 7]
    reference = {"samples": samples, "full": reference_kernel(model, x, samples)}
    assert deviations(truth, reference, "full") == pytest.approx((0, 0), abs=1e-12)
    error, worst = deviations(truth * 1.01, reference, "full")
    assert error == pytest.approx(0.01)
    assert worst == pytest.approx(0.01)


def test_samples_are_spread_over_all_chunks():
    assert spread_samples(nn.Linear(5, CLASSES), 256)[::31] == [0, 255]
    assert spread_samples(nn.Linear(10**6, CLASSES), 64)[-1] == 63


def test_chunks_halve_and_a_jacobian_beyond_memory_is_not_kept():
    assert halvings(256) == [64, 32, 16, 8, 4]
    assert halvings(2) == [2]
    assert chunk_options(32, sample_bytes=1000)[0] == {"chunk": 32, "stored": True}
    beyond = chunk_options(32, sample_bytes=total_memory() // 32)
    assert beyond == [{"chunk": 8, "stored": False}, {"chunk": 4, "stored": False}]


def test_problems_have_running_statistics_and_fixed_values():
    layers = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))  # noqa: E731
    problem = Problem(Network("small", layers, (1, 4, 4)), n=3)
    model, x = problem.make()
    again, same = problem.make()
    assert x.shape == (3, 1, 4, 4)
    assert torch.equal(x, same)
    assert torch.equal(model(x), again(x))
    assert model[1].running_mean.abs().min() > 0
    assert not model.training


def test_a_status_field_is_read_in_bytes(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert memory_field("VmHWM", status) == 2048 * 1024
    assert memory_field("VmRSS", status) == 1024 * 1024


def result(contender: str, **values: object) -> dict:
    empty = dict.fromkeys(("version", "operations", "option", "peak_bytes", "error", "worst"))
    place = {"problem": "vgg-16", "outputs": "full", "allocator": "default"}
    return {**empty, "seconds": [], "reason": None, **place, "contender": contender, **values}


def timed(contender: str, seconds: list[float], peak_bytes: int, **values: object) -> dict:
    facts = {"seconds": seconds, "peak_bytes": peak_bytes, "error": 1e-7, "worst": 2e-7}
    return result(contender, version="1.0", **facts, **values)


@pytest.fixture
def record() -> dict:
    results = [
        timed("conescope", [1.0, 3.0, 2.0], 10**9, operations=1e11),
        timed("torch-func", [12.0, 10.0, 11.0], 4 * 10**9, option={"chunk": 8, "stored": True}),
        timed("nngeometry", [20.0], 2 * 10**9),
        result("vivit", reason="over 19 GB"),
    ]
    machine = dict.fromkeys(("processor", "cores", "threads", "torch", "python", "date"), "some")
    return {
        "machine": {**machine, "memory_bytes": 24 * 10**9},
        "settings": {"command": "python -m benchmarks", "rounds": 3, "limit_seconds": 90},
        "contests": [{"results": results, "peaks": [1.8e11, 2e11]}],
        "steps": [
            {
                "network": "lenet",
                "batch": 4,
                "seconds": {"standard": [1.0, 2.0, 4.0], "linearised": [2.0, 3.0, 8.0]},
                "peak_bytes": {"standard": 100, "linearised": 150},
            }
        ],
    }


def test_the_summary_compares_medians_with_the_fastest_and_the_leanest(record: dict):
    text = report.markdown(record, figure=None)
    assert (
        "| VGG-16, n = 16 | full | 2.00 s | 11.00 s (torch.func, fixed) | **5.5×** "
        "| 1.00 GB | 2.00 GB (nngeometry) |" in text
    )
    assert "| conescope | 2.00 s | 3 | 1.00 GB | 1e-07 | 2e-07 | 25% | – |" in text
    assert (
        "| torch.func, fixed | 11.00 s | 3 | 4.00 GB | 1e-07 | 2e-07 | 5% | chunk 8, stored |"
        in text
    )
    assert "| ViViT | – (over 19 GB) |" in text


def test_training_steps_are_multiples_of_the_standard_one_round_by_round(record: dict):
    text = report.markdown(record, figure=None)
    assert "| LeNet-5 | 4 | standard | 2.00 s | 1.00 | 1.00 |" in text
    assert "| LeNet-5 | 4 | linearised | 3.00 s | 2.00 | 1.50 |" in text


def test_a_page_is_filled_between_its_markers(tmp_path: Path):
    page = tmp_path / "docs" / "performance.md"
    report.fill(page, "first")
    page.write_text("before\n" + page.read_text() + "after\n")
    report.fill(page, "second")
    text = page.read_text()
    assert "second" in text
    assert "first" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_page_without_markers_is_refused(tmp_path: Path):
    page = tmp_path / "performance.md"
    page.write_text("# Mine\n")
    with pytest.raises(ValueError, match="put them where the tables go"):
        report.fill(page, "text")
    assert page.read_text() == "# Mine\n"


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, Tensor]:
    """A language model of two layers with tied embeddings, and three samples of five tokens."""
    return ARCHITECTURES["gpt2-tiny"].make(3, 5)


def test_a_tiny_language_model_is_the_same_each_time(tiny):
    model, ids = tiny
    again, same = ARCHITECTURES["gpt2-tiny"].make(3, 5)
    assert not model.training
    assert model(ids).shape == (3, 50)
    assert torch.equal(ids, same)
    assert torch.equal(model(ids), again(same))


@pytest.mark.parametrize("memory", [2**30, 3 * 2 * 4 * 7777], ids=["one block", "many blocks"])
def test_the_reference_of_draws_is_the_product_of_whole_jacobians(tiny, memory):
    model, ids = tiny
    cotangents = signs(2, 50)
    found = draw_kernels(model, ids, cotangents, memory)
    weights = list(model.parameters())
    rows = []
    for output, cotangent in itertools.product(model(ids), cotangents.float()):
        gradients = torch.autograd.grad(output @ cotangent, weights, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]).double())
    jacobian = torch.stack(rows).reshape(3, 2, -1)
    expected = torch.einsum("nrp,mrp->rnm", jacobian, jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_reference_of_draws_meets_the_closed_form(linear):
    model, x, truth = linear
    cotangents = signs(3, CLASSES)
    found = draw_kernels(model.double(), x.double(), cotangents, memory=10**6)
    expected = torch.einsum("rk,nkml,rl->rnm", cotangents, truth, cotangents)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert deviation(expected + 0.01 * expected.diagonal(dim1=1, dim2=2).mean(), expected) == (
        pytest.approx(0.01)
    )


def test_the_signs_are_those_of_the_estimate():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)), torch.randn(3, 5)
    found = conescope.estimate_entk(model, x, draws=3, seed=5).draws
    expected = draw_kernels(model, x, signs(3, CLASSES, seed=5), memory=10**6)
    assert deviation(found, expected) < 1e-6


def subject_of(model: nn.Module, ids: Tensor, limit_bytes: int = 10**10) -> Subject:
    return Subject(model, ids, draws=2, memory="1GB", dim=64, limit_bytes=limit_bytes)


def row_of(part: str, result: dict) -> str:
    head, _, row = models.table(part, {"setting": {"draws": 2}, "results": [result]}).splitlines()
    assert row.count("|") == head.count("|")
    return row


def test_every_stage_on_few_samples_of_a_tiny_model_and_its_row(tiny):
    subject = subject_of(*tiny)
    passes = [subject.passes()["seconds"] for _ in range(2)]
    first, single, later = subject.estimate(), subject.one_draw(), subject.estimate()
    assert [len(kernels) for kernels in subject.kernels] == [2, 1, 2]
    shares = first.pop("shares")
    assert sum(shares.values()) == pytest.approx(1)
    error = subject.error()["error"]
    assert error < 1e-5
    result = {"model": "gpt2-tiny", "passes": passes, "first": first, "single": single}
    result["later"] = [later]
    row = row_of("few", {**result, "shares": shares, "error": error, **subject.facts()})
    assert row.startswith("| GPT-2, tiny | 0.0 M | ")
    assert row.count("–") == 1  # the rounding, which was not measured


def test_every_stage_on_many_samples_of_a_tiny_model_and_its_row():
    subject = subject_of(*ARCHITECTURES["gpt2-tiny"].make(9, 5))
    subject.survey()
    result = {"model": "gpt2-tiny", "passes": [subject.passes()["seconds"]], **subject.facts()}
    result.update(later=[subject.estimate()], error=subject.entries()["error"])
    result.update(projections=[subject.project()], gram=subject.gram()["error"])
    assert result["error"] < 1e-5
    assert 1e-4 < result["gram"] < 1
    assert "–" not in row_of("many", result)


def test_sequences_that_are_projected_have_the_gram_matrix_of_their_kernel():
    found = many_sequences.measure("pythia-tiny", 70, 6, 2048, "1GB", compared=9)
    assert found["features_bytes"] == 70 * 2048 * 4
    assert 1e-4 < found["error"] < 0.2
    assert min(found["seconds"], found["passes"]) > 0


def test_an_entry_that_is_wrong_shows_on_many_samples(tiny):
    subject = subject_of(*tiny)
    subject.estimate()
    subject.kernels[0] = subject.kernels[0] * 1.01
    assert subject.entries()["error"] > 5e-3


def test_a_pass_in_parts_has_the_gradients_of_the_whole_batch(tiny):
    model, ids = tiny
    whole, parted = subject_of(model, ids), subject_of(model, ids, limit_bytes=1)
    assert (whole.facts()["parts"], parted.facts()["parts"]) == (1, 3)
    gradients = []
    for subject in (whole, parted):
        subject._pass(ids)
        gradients.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_costs_are_per_draw_in_units_of_the_pass_beside_each_call():
    call = {"seconds": 6.0, "peak_bytes": 10**9}
    known = {"model": "gpt2", "parameters": 124_439_808, "parts": 2, "later": [call, call]}
    first = {"seconds": 9.0, "peak_bytes": 3 * 10**9}
    shares = {"rule": 0.75, "general": 0.25}
    few = {"first": first, "shares": shares, "error": 2e-7, "rounding": 3e-7}
    few["single"] = {"seconds": 4.0, "peak_bytes": 10**9}
    assert row_of("few", {**known, **few, "passes": [1.0, 1.0, 2.0]}) == (
        "| GPT-2 | 124.4 M | 1.00 s (in 2 parts) | 2.2 | 4.0 | 9.0 | 3.00 GB | 1.00 GB | 2e-07 "
        "| 3e-07 | 75% | 25% | 0% |"
    )
    many = {"error": 2e-7, "projections": [first, first], "gram": 0.016}
    assert row_of("many", {**known, **many, "passes": [1.0, 2.0]}) == (
        "| GPT-2 | 124.4 M | 1.50 s (in 2 parts) | 2.2 | 1.00 GB | 2e-07 | 6.8 | 3.00 GB | 1.6% |"
    )


LIMITS = {"allocator": "default", "threads": 1, "limit_seconds": 60, "limit_bytes": 3 * 10**9}


def test_a_refused_model_has_its_reason_and_what_was_known_before(record: dict):
    setting = models.Setting(n=3, tokens=5, draws=2, dim=64, memory="1KB", rounds=1)
    result = models.measure(models.ModelTask("few", "gpt2-tiny", setting, **LIMITS))
    assert "KernelError" in result["reason"]
    assert result["parameters"] == 23776
    parts = {"few": {"setting": asdict(setting), "results": [result]}}
    record["models"] = {"versions": {"x": "1"}, "parts": parts, "peers": []}
    row = models.markdown(record).splitlines()[-1]
    assert "KernelError" in row
    assert row.count("| – ") >= 8


def test_peers_take_turns_and_what_cannot_run_has_its_reason():
    setting = peers.Setting(n=3, tokens=5, dim=256, block=2, rounds=2)
    tasks = [peers.PeerTask("pythia-tiny", name, setting, **LIMITS) for name in ("pass", "absent")]
    held, turns = peers.begin(tasks), []
    peers.contest(tasks, held, 4 * 10**9, lambda: turns.append(peers.finished(held)))
    ran, failed = held["results"]
    assert turns == [False, False, True]
    assert len(ran["seconds"]) == 2
    assert ran["covered"] == 1
    assert "KeyError" in failed["reason"]


def test_the_row_of_a_peer_and_of_one_that_cannot_run():
    plain = {"contender": "pass", "seconds": [1.0, 2.0], "peak_bytes": 10**9, "columns": 0}
    plain |= {"covered": 1.0, "error": None, "setting": "16 samples a pass", "version": "2"}
    peer = {**plain, "contender": "bergson", "seconds": [3.0, 4.0], "columns": 3600}
    peer |= {"covered": 0.63, "error": 0.02, "setting": "projection_dim=12"}
    absent = {"contender": "trak", "seconds": [], "reason": "RuntimeError: no | memory"}
    held = {"model": "pythia-70m", "setting": asdict(peers.Setting())}
    text = peers.markdown([{**held, "results": [plain, peer, absent]}])
    assert "Pythia-70M, n = 32, 128 tokens, to 4,096:" in text
    assert "| Bergson | 63% | 3.50 s | 2.50 | 1.00 GB | 3,600 | 2.0% |" in text
    assert "| TRAK, BasicProjector | – | – (RuntimeError: no \\| memory) |" in text


class Halved(Projector):
    """The gradients of a linear network's weights themselves, on half of the parameters."""

    label, package = "halved", "torch"

    def setup(self) -> None:
        self.covered = [list(self.covered)[-1]]

    def run(self, x: Tensor) -> Tensor:
        weight = self.model.get_parameter(self.covered[0])
        scalars = self.scalars(x)
        return torch.stack(
            [torch.autograd.grad(s, weight, retain_graph=True)[0].flatten() for s in scalars]
        )


def test_the_error_of_features_is_of_the_covered_parameters(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "halved", Halved)
    entry = Entry("pythia-tiny", "halved", n=4, tokens=5, dim=64, block=2)
    assert 0 < entry.facts()["covered"] < 1
    assert entry.run()["columns"] == 50 * 16
    assert entry.error()["error"] < 1e-6
    entry.features *= 1.1
    assert entry.error()["error"] == pytest.approx(0.21, rel=1e-3)


def test_the_projection_of_conescope_in_the_contest_covers_all_parameters():
    entry = Entry("pythia-tiny", "conescope", n=4, tokens=5, dim=4096, block=2)
    assert entry.facts()["covered"] == 1
    assert entry.run()["columns"] == 4096
    assert entry.error()["error"] < 0.2


def test_settings_come_from_the_command_line_and_known_results_are_kept(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(models, "measure", lambda task: measured.append(task) or result_of(task))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--models"])

    def result_of(task: models.ModelTask) -> dict:
        return {"model": task.name, "n": task.setting.n, "passes": [], "later": []}

    def run(*words: str) -> list[tuple[str, str, int]]:
        measured.clear()
        words = ("--models", "gpt2", "vit-b16", "--only", "few", "many", *words)
        _run(_with_defaults(_parser().parse_args([*words, "--json", str(tmp_path / "r.json")])))
        return [(task.part, task.name, task.setting.n) for task in measured]

    monkeypatch.setattr(models, "table", lambda part, measured: "")
    assert run() == [("few", "gpt2", 8), ("few", "vit-b16", 8), ("many", "gpt2", 64)]
    assert run("--resume") == []
    assert run("--resume", "--only", "many", "--n", "4") == [("many", "gpt2", 4)]
    parts = json.loads((tmp_path / "r.json").read_text())["models"]["parts"]
    assert [result["model"] for result in parts["few"]["results"]] == ["gpt2", "vit-b16"]


def test_the_whole_run_is_eight_models_of_real_size():
    assert len(FULL_RUN) == 8
    assert not any("tiny" in name for name in FULL_RUN)
