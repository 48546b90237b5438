"""A series on the Hub, measured in one call; a small Hub here answers the real client."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from benchmarks.pretend_hub import TOKEN, Repository
from huggingface_hub import constants

import conescope as cs
from conescope.cli import main
from conescope.errors import (
    CheckpointError,
    ConescopeError,
    ModelError,
    SameWeightsWarning,
    SkippedWarning,
)
from conescope.experiments.stored import load_run, read_status
from conescope.measuring.choice import Choice
from conescope.measuring.hub.hub_measurement import prepare
from conescope.measuring.hub.hub_options import Wanted
from conescope.measuring.hub.revisions import fetched, find_revisions
from conescope.report.figures.distance_after import distance_after
from conescope.report.figures.distance_from import distance_from
from conescope.report.run_analysis import RunAnalysis
from hub_series import NAME, TEXTS, commit, kernel_of, measured, put
from tiny_language import files_of, model, tokenizer


def weights(hub, revision):
    return f"{commit(hub, revision)}/model.safetensors"


def test_a_causal_series_is_measured_at_the_logits_of_the_last_token(hub):
    models = put(hub)
    run = measured()
    words = tokenizer()
    for kernel, made in zip(run.series.measured, models.values(), strict=True):
        ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
        expected = kernel_of(made, lambda i, made=made, ids=ids: made(ids[i]).logits[0, -1], 4)
        torch.testing.assert_close(kernel.values.double(), expected, rtol=1e-4, atol=1e-6)
    assert run.series.steps == (0, 10, 20)
    assert run.description == (
        "3 revisions of lab/tiny; GPTNeoX in float32: logits of the last token; 4 texts of 6 "
        "tokens (12 tokens of padding, [END], masked out)"
    )
    assert not Path("run/downloads").exists()


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_a_masked_model_is_measured_where_the_last_token_is_masked(hub, kind):
    models = put(hub, kind, ("step5",))
    run = measured()
    words, made = tokenizer(has_ends=True), models["step5"]

    def logits(number):
        ids = torch.tensor([words(TEXTS[number])["input_ids"]])
        ids[0, -2] = words.mask_token_id
        return next(iter(made(ids).values()))[0, -2]

    expected = kernel_of(made, logits, len(TEXTS))
    found = run.series.measured[0].values.double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert "logits of the masked token" in run.description
    named = measured(out="named", select=field_of(kind))
    assert torch.equal(named.series.measured[0].values, run.series.measured[0].values)
    assert f"{field_of(kind)} of tokens: mask" in named.description


def field_of(kind):
    return "logits" if kind == "BertForMaskedLM" else "prediction_logits"


def test_an_encoder_is_measured_at_its_mean_hidden_state(hub):
    made = put(hub, "BertModel", ("step5",))["step5"]
    words = tokenizer(has_ends=True)

    def states(number):
        ids = torch.tensor([words(TEXTS[number])["input_ids"]])
        return made(ids).last_hidden_state[0].mean(dim=0)

    found = measured().series.measured[0].values.double()
    expected = kernel_of(made, states, len(TEXTS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertForSequenceClassification"])
def test_other_kinds_of_models_are_chosen_by_the_configuration(hub, kind):
    put(hub, kind, ("step1", "step2"), num_labels=3)
    run = measured()
    assert len(run.series) == 2
    assert run.description.count(kind[:4]) == 1


def test_an_encoder_of_an_encoder_decoder_is_built_alone(hub):
    made = put(hub, "T5EncoderModel", ("step5",), d_model=8, d_kv=4, d_ff=16, num_heads=2)["step5"]
    words = tokenizer()

    def states(number):
        ids = torch.tensor([words(TEXTS[number])["input_ids"]])
        return made(ids).last_hidden_state[0].mean(dim=0)

    found = measured().series.measured[0].values.double()
    torch.testing.assert_close(found, kernel_of(made, states, 4), rtol=1e-4, atol=1e-6)


def test_a_configuration_may_hold_infinity(hub):
    sizes = {"num_heads": 2, "head_dim": 8, "state_size": 4, "n_groups": 1}
    put(hub, "Mamba2ForCausalLM", ("step5", "step6"), **sizes)
    assert len(measured().series) == 2


REFORMER = {"axial_pos_embds_dim": (4, 4), "axial_pos_shape": (4, 4), "feed_forward_size": 16,
            "attention_head_size": 4, "attn_layers": ["local"], "local_attn_chunk_length": 4,
            "is_decoder": False}  # fmt: skip
IMAGES = {"image_size": 4, "patch_size": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ReformerForMaskedLM", REFORMER, "the backward pass that ReformerForMaskedLM brings"),
        ("YosoForMaskedLM", {}, "padding changes the outputs of YosoForMaskedLM"),
        ("ViTModel", IMAGES, "ViTModel reads pixel_values, and no texts; build it by --model"),
        ("ViTForImageClassification", IMAGES, "conescope knows what to measure of"),
        ("T5ForConditionalGeneration", {"d_model": 8}, "conescope knows what to measure of"),
        ("BertForTokenClassification", {}, "conescope knows what to measure of"),
    ],
)
def test_a_model_that_has_no_kernel_of_texts_is_one_line(hub, kind, settings, message):
    put(hub, kind, ("step5",), **settings)
    with pytest.raises(ModelError, match=message) as raised:
        measured()
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_weights_in_torchs_own_format_give_the_same(hub):
    put(hub)
    put(hub, name="lab/other", as_bin=True)
    safe, other = measured(), measured(name="lab/other", out="other")
    for one, two in zip(safe.series.measured, other.series.measured, strict=True):
        assert torch.equal(one.values, two.values)


def test_weights_in_shards_give_the_same(hub, tmp_path):
    made = put(hub, revisions=("step0",))["step0"]
    whole = measured()
    made.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    files = {file.name: file.read_bytes() for file in (tmp_path / "shards").iterdir()}
    assert "model.safetensors" not in files
    hub.add("lab/shards", "step0", {**files, **files_of(tokenizer())})
    parts = measured(name="lab/shards", out="parts")
    assert torch.equal(parts.series.measured[0].values, whole.series.measured[0].values)


def test_two_names_of_one_commit_are_both_measured(hub, monkeypatch):
    put(hub, revisions=("step0", "step10"))
    revisions = hub.repositories["model", NAME].revisions
    revisions["step20"] = revisions["step10"]
    monkeypatch.setattr(Repository, "commit", lambda self, name: f"{name == 'step0':040x}")
    with pytest.warns(SameWeightsWarning):
        assert measured().series.steps == (0, 10, 20)


class NoMask(torch.nn.Module):
    """A model that takes token numbers, and no mask."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, input_ids):
        return self.made(input_ids).logits


def test_a_model_of_the_users_own_takes_what_its_forward_names(hub):
    made = put(hub, revisions=("step0",))["step0"]
    own = Wanted(f"hf://{NAME}", TEXTS, Choice(pool="last"), {"revisions": "step*"}, NoMask(made))
    with pytest.raises(ConescopeError, match="takes no attention_mask, so that padding"):
        prepare(own, Path("own"))
    even = replace(own, texts=["a cat", "the dog"])
    subject, _ = prepare(even, Path("own"))
    assert [*subject.probe] == ["input_ids"]
    with pytest.raises(ConescopeError, match="takes no input_ids"):
        prepare(replace(even, model=torch.nn.Linear(2, 2)), Path("own"))


def test_many_outputs_are_estimated_unless_the_user_says_otherwise(hub):
    put(hub, vocab_size=80)
    assert measured().series.draws == 8
    assert "8 random cotangents, the default for many outputs" in load_run("run").description
    assert measured(out="two", draws=2).series.draws == 2
    exact = measured(out="sum", outputs="sum")
    assert exact.series.draws is None
    layers = measured(out="layers", by_layer=True, pool="mean")
    assert layers.series.draws is None


def test_what_is_measured_is_neither_fetched_nor_measured_again(hub, monkeypatch):
    put(hub, revisions=("step0", "step10"))
    first = measured()
    hub.requests.clear()
    put(hub, revisions=("step0", "step10", "step30"))
    again = measured()
    assert again.series.steps == (0, 10, 30)
    assert torch.equal(again.series.measured[0].values, first.series.measured[0].values)
    assert hub.asked(commit(hub, "step0") + "/model.safetensors") == []
    assert hub.asked(commit(hub, "step30") + "/model.safetensors") != []


def test_a_revision_that_changed_is_refused(hub):
    put(hub)
    measured()
    hub.add(NAME, "step10", {**files_of(model("GPTNeoXForCausalLM", 9))})
    with pytest.raises(CheckpointError, match="lab/tiny@step10 has changed since its kernel"):
        measured()


def test_the_next_revision_is_fetched_while_this_one_is_measured(hub, monkeypatch):
    put(hub)
    kernel_of_choice, seen = Choice.of, []

    def slow(self, *of):
        following = ["step10", "step20", None][len(seen)]
        until = time.monotonic() + 20
        while following and not hub.asked(weights(hub, following)) and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(following is None or bool(hub.asked(weights(hub, following))))
        return kernel_of_choice(self, *of)

    monkeypatch.setattr(Choice, "of", slow)
    measured()
    assert seen == [True, True, True]


def test_one_revision_is_on_disk_while_the_next_one_is_fetched(hub, tmp_path):
    put(hub)
    found, counts = find_revisions(f"hf://{NAME}", ["step*"]), []
    with fetched(found, tmp_path / "here") as checkpoints:
        for checkpoint in checkpoints:
            assert all(file.is_file() for file in checkpoint.files)
            counts.append((checkpoint.step, str(checkpoint.path)))
            assert len(list((tmp_path / "here").iterdir())) <= 2
    assert counts == [(0, "lab/tiny@step0"), (10, "lab/tiny@step10"), (20, "lab/tiny@step20")]
    assert not (tmp_path / "here").exists()


STAGED = ("stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-ingredient1-step5-tokens1B")


def test_stages_follow_one_another_and_are_shown(hub, capsys):
    put(hub, revisions=STAGED)
    run = measured(revisions=["stage1-*", "stage2-ingredient1-*"])
    assert run.series.steps == (10, 20, 25)
    assert run.stages == {"stage1": 0, "stage2-ingredient1": 20}
    assert read_status("run").stages == run.stages
    assert "stage2-ingredient1 from step 20" in run.description
    marks = [distance_from(run).marks, distance_after(run).marks, RunAnalysis(run).moments]
    assert [[(m.label, m.value) for m in each] for each in marks] == [
        [("stage2-ingredient1 begins", 20)]
    ] * 3
    assert main(["status", "run"]) == 0
    assert "stage1 from 0, stage2-ingredient1 from 20" in capsys.readouterr().out
    assert main(["figures", "run"]) == 0
    assert main(["report", "run"]) == 0


def test_stages_that_move_are_refused(hub):
    put(hub, revisions=STAGED)
    measured(revisions=["stage*"])
    hub.add(NAME, "stage1-step30-tokens3B", files_of(model("GPTNeoXForCausalLM", 7)))
    with pytest.raises(CheckpointError, match="is at step 35 now, and was at 25"):
        measured(revisions=["stage*"])


def test_a_repository_a_step(hub, tmp_path):
    for step, made in enumerate([model("BertForPreTraining", seed) for seed in (0, 1)]):
        files = {**files_of(made), **files_of(tokenizer(has_ends=True))}
        hub.add(f"google/multiberts-seed_0-step_{20 * step}k", "main", files)
    hub.add("google/multiberts-seed_1-step_0k", "main", {"README.md": b""})
    run = measured(name="google/multiberts-seed_0-step_*", revisions=(), keep_cache=True)
    assert run.series.steps == (0, 20_000)
    hub.requests.clear()
    folders = tmp_path / "cache/models--google--multiberts-seed_0-step_*"
    assert cs.measure_hub(folders, TEXTS, out="local").series.steps == (0, 20_000)
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="leave the pattern of revisions out"):
        measured(name="google/multiberts-seed_0-step_*", out="other")
    with pytest.raises(CheckpointError, match=r"no repository matches google/none-\*"):
        measured(name="google/none-*", revisions=())


def test_texts_come_from_a_data_set_of_the_hub(hub):
    put(hub)
    table = pyarrow.table({"text": TEXTS, "label": ["x", "y", "x", "y"]})
    pyarrow.parquet.write_table(table, "data.parquet")
    content = Path("data.parquet").read_bytes()
    hub.add("lab/texts", "main", {"data/test.parquet": content, "README.md": b""}, kind="dataset")
    run = measured("hf://datasets/lab/texts", labels="label", samples=3)
    assert run.labels is not None
    assert run.labels.tolist() == [0, 1, 0]
    assert run.texts == tuple(TEXTS[:3])
    hub.add("lab/more", "main", {"a.txt": b"a", "b.txt": b"b"}, kind="dataset")
    with pytest.raises(ConescopeError, match="say which file of lab/more holds the texts"):
        measured("hf://datasets/lab/more", out="other")
    one = measured("hf://datasets/lab/more/a.txt", out="other")
    assert one.series.measured[0].values.shape == (1, 1)


def test_long_texts_are_cut_and_said(hub):
    put(hub, vocab_size=11, max_position_embeddings=4)
    assert "4 texts of 4 tokens (1 cut; 6 tokens of padding" in measured().description
    assert "of 2 tokens (2 cut;" in measured(out="two", length=2).description
    with pytest.raises(ConescopeError, match="length of 9 tokens is over the 4"):
        measured(out="three", length=9)


def test_a_tokenizer_is_looked_for_on_main_and_may_be_named(hub):
    for step in (1, 2):
        hub.add(NAME, f"step{step}", files_of(model("GPTNeoXForCausalLM", step)))
    with pytest.raises(CheckpointError, match=r"lab/tiny@step1 has no .*--tokenizer"):
        measured()
    hub.add("lab/words", "main", files_of(tokenizer()))
    named = measured(tokenizer="lab/words", out="named")
    hub.add(NAME, "main", files_of(tokenizer()))
    assert torch.equal(measured().series.measured[1].values, named.series.measured[1].values)
    tokenizer().save_pretrained("words")
    local = measured(tokenizer="words", out="local")
    assert torch.equal(local.series.measured[1].values, named.series.measured[1].values)


def test_a_series_in_the_cache_needs_no_network(hub, monkeypatch, tmp_path):
    put(hub)
    online = measured(keep_cache=True)
    assert not Path("run/downloads").exists()
    hub.requests.clear()
    Path("texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    words = ["--texts", "texts.jsonl", "--revisions", "step*", "--out", "folder"]
    assert main(["measure", str(tmp_path / "cache/models--lab--tiny"), *words]) == 0
    here = load_run("folder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = measured(out="cached")
    assert hub.requests == []
    for one, two, three in zip(*(r.series.measured for r in (online, here, cached)), strict=True):
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.values, three.values)
    with pytest.raises(CheckpointError, match="lab/none is not in "):
        measured(name="lab/none", out="other")


def test_the_cache_of_others_is_used_and_left_alone(hub, tmp_path):
    put(hub)
    measured(keep_cache=True)
    before = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    hub.requests.clear()
    measured(out="other")
    assert hub.asked("model.safetensors") == []
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == before


def test_a_damaged_cache_is_told(hub, tmp_path):
    put(hub)
    measured(keep_cache=True)
    folder = tmp_path / "cache/models--lab--tiny"
    file = next(folder.glob(f"snapshots/{commit(hub, 'step10')}/model.safetensors")).resolve()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: its SHA-256"):
        cs.measure_hub(folder, TEXTS, out="other", revisions="step*")
    shutil.rmtree(folder / "snapshots" / commit(hub, "step20"))
    with pytest.warns(SkippedWarning):
        run = cs.measure_hub(folder, TEXTS, out="some", revisions="step*", skip_failed=True)
    assert run.series.steps == (0,)


REMOTE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(%r).write_text("code of the repository ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_repository_runs_only_if_it_is_trusted(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    put(hub, "LlamaForCausalLM")
    for revision in ("step0", "step10", "step20"):
        files = {n: f.data for n, f in hub.repositories["model", NAME].revisions[revision].items()}
        config = {**json.loads(files["config.json"]), "model_type": "own",
                  "architectures": ["OwnForCausalLM"]}  # fmt: skip
        config["auto_map"] = {
            "AutoConfig": "own_code.OwnConfig",
            "AutoModelForCausalLM": "own_code.OwnForCausalLM",
        }
        files["config.json"] = json.dumps(config).encode()
        files["own_code.py"] = (REMOTE % str(tmp_path / "ran")).encode()
        hub.add(NAME, revision, files)
    with pytest.raises(CheckpointError, match=r"is a 'own', which transformers .* was not run"):
        measured()
    assert not (tmp_path / "ran").exists()
    assert len(measured(trust_remote_code=True).series) == 3
    assert (tmp_path / "ran").exists()


def test_a_missing_package_is_named(hub, monkeypatch):
    put(hub)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConescopeError, match=r"pip install 'conescope\[transformers\]'"):
        measured()
    assert not Path("run").exists()


def test_a_gated_repository_needs_a_token(hub, monkeypatch):
    put(hub)
    hub.repositories["model", NAME].is_gated = True
    with pytest.raises(CheckpointError, match="lab/tiny is gated; accept its terms on "):
        measured()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(measured().series) == 3


def test_a_series_on_the_hub_is_audited_without_a_kernel(hub, capsys):
    steps = tuple(f"step{number}" for number in range(0, 60, 10))
    models = put(hub, revisions=steps)
    assert not cs.audit_checkpoints(f"hf://{NAME}", revisions="step*").alarms
    words = files_of(tokenizer(has_padding=False))
    hub.add(NAME, "step30", {**files_of(models["step50"]), **words})
    found = cs.audit_checkpoints(f"hf://{NAME}", revisions="step*", out="audited")
    assert [(alarm.kind, alarm.steps) for alarm in found.alarms] == [("same weights", (30, 50))]
    assert not Path("audited/revisions").exists()
    assert main(["audit", f"hf://{NAME}", "--revisions", "step*", "--out", "audited"]) == 1
    assert "same weights" in capsys.readouterr().out
    assert main(["audit", "audited", "--revisions", "step*"]) == 1
    assert "leave the pattern out" in capsys.readouterr().err


def test_an_audit_is_of_one_repository_alone(hub, capsys):
    put(hub)
    capsys.readouterr()
    for other in ("ckpts", "hf://lab/two"):
        assert main(["audit", other, f"hf://{NAME}", "--revisions", "step*"]) == 1
        told = capsys.readouterr().err
        assert "a series is one repository on the Hub, and nothing beside it" in told
        assert told.count("\n") == 1


def test_an_audit_that_goes_on_fetches_only_what_is_new(hub):
    put(hub)
    cs.audit_checkpoints(f"hf://{NAME}", revisions="step*", out="audited")
    before = len(hub.asked(".safetensors"))
    cs.audit_checkpoints(f"hf://{NAME}", revisions="step*", out="audited")
    assert len(hub.asked(".safetensors")) == before


@pytest.mark.parametrize("tokens", ["words", "lab/words"])
def test_checkpoints_of_a_model_of_the_users_own_are_measured_at_texts(hub, monkeypatch, tokens):
    words = tokenizer(has_padding=False)
    words.save_pretrained("words")
    hub.add("lab/words", "main", files_of(words))
    Path("ckpts").mkdir()
    models = [model("GPTNeoXForCausalLM", seed) for seed in (1, 2)]
    for seed, made in enumerate(models, start=1):
        torch.save(made.state_dict(), f"ckpts/step{seed}.pt")
    Path("texts.csv").write_text("body,label\n" + "\n".join(f'"{t}",{len(t) % 2}' for t in TEXTS))
    own = f"own_network_{len(tokens)}"  # a name is imported once
    Path(f"{own}.py").write_text(
        "from tiny_language import model\n\ndef build():\n    return model('GPTNeoXForCausalLM')\n"
    )
    monkeypatch.syspath_prepend(".")
    options = ["--model", f"{own}:build", "--texts", "texts.csv", "--column", "body"]
    chosen = [*options, "--labels", "label", "--select", "logits", "--pool", "last"]
    assert main(["measure", "ckpts", *chosen, "--tokenizer", tokens, "--out", "run"]) == 0
    run = load_run("run")
    for kernel, made in zip(run.series.measured, models, strict=True):
        ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
        expected = kernel_of(made, lambda i, made=made, ids=ids: made(ids[i]).logits[0, -1], 4)
        torch.testing.assert_close(kernel.values.double(), expected, rtol=1e-4, atol=1e-6)
    assert run.labels is not None
    assert run.labels.tolist() == [len(text) % 2 for text in TEXTS]
    assert run.texts == tuple(TEXTS)
