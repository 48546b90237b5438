"""Repositories, servers and folders that mean harm, or that their authors did not think about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.pretend_hub import Repository

import conescope as cs
from conescope.cli import main
from conescope.errors import ConescopeError
from hub_series import NAME, TEXTS, kernel_of, measured, put
from tiny_language import files_of, model, tokenizer


@pytest.mark.parametrize("words", [
    ["measure", "hf://lab/nothing", "--texts", "t.txt", "--revisions", "step*"],
    ["measure", f"hf://{NAME}", "--texts", "nothing.txt", "--revisions", "step*"],
    ["audit", f"hf://{NAME}", "--revisions", "step*"],
    ["audit", f"hf://{NAME}", "--revisions", "none*"],
])  # fmt: skip
def test_folders_of_the_users_own_are_left_alone(hub, words):
    put(hub)
    for name in ("downloads", "revisions", "downloads/revisions", "downloads/files"):
        Path(name).mkdir(exist_ok=True)
        Path(name, "thesis.tex").write_text("years of work")
    main([*words, "--out", "."])
    for name in ("downloads", "revisions", "downloads/revisions", "downloads/files"):
        assert Path(name, "thesis.tex").exists(), name


def test_an_audit_of_two_names_of_one_commit(hub, monkeypatch):
    put(hub, revisions=("step0", "step10"))
    revisions = hub.repositories["model", NAME].revisions
    revisions["step20"] = revisions["step10"]
    monkeypatch.setattr(Repository, "commit", lambda self, name: f"{name == 'step0':040x}")
    done = cs.audit_checkpoints(f"hf://{NAME}", revisions="step*")
    assert [(each.kind, each.steps) for each in done.alarms] == [("same weights", (10, 20))]


@pytest.mark.parametrize("commit_name", ["../../../victim", "{tmp}/victim"])
def test_a_commit_that_is_a_path_deletes_nothing(hub, tmp_path, commit_name, monkeypatch):
    put(hub)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years of work")
    told = commit_name.format(tmp=tmp_path)
    own = Repository.commit
    monkeypatch.setattr(Repository, "commit", lambda s, r: told if r == "step0" else own(s, r))
    with pytest.raises(ConescopeError, match="commit"):
        measured(skip_failed=True)
    assert (victim / "thesis.tex").exists()


@pytest.mark.parametrize("commit_name", ["../../victim", "{tmp}/victim", ""])
def test_a_ref_that_is_a_path_deletes_nothing(hub, tmp_path, commit_name, monkeypatch):
    made = put(hub)["step0"]
    victim = tmp_path / "victim"
    victim.mkdir()
    for name, data in files_of(made).items():
        (victim / name).write_bytes(data)
    home = tmp_path / "models--lab--tiny"
    words = files_of(tokenizer(has_padding=False))
    for number in range(2):
        snapshot = home / "snapshots" / f"c{number}"
        snapshot.mkdir(parents=True)
        for name, data in {**files_of(model("GPTNeoXForCausalLM", number)), **words}.items():
            (snapshot / name).write_bytes(data)
    (home / "refs").mkdir()
    for number in range(2):
        (home / "refs" / f"step{number}").write_text(f"c{number}")
    (home / "refs" / "step2").write_text(commit_name.format(tmp=tmp_path))
    (home / "refs" / "step3").write_text("c1")
    with pytest.raises(ConescopeError, match="commit"):
        cs.measure_hub(home, TEXTS, revisions="step*", out="run", skip_failed=True)
    assert (victim / "model.safetensors").exists()


def test_a_dataset_that_names_a_file_outside_writes_none(hub, tmp_path):
    put(hub)
    inside = {"../../../../../texts-outside.txt": b"a cat\nthe dog\n"}
    hub.add("lab/words", "main", inside, kind="dataset")
    with pytest.raises(ConescopeError):
        measured("hf://datasets/lab/words", out="a/b/c/run")
    assert not [*tmp_path.rglob("texts-outside.txt")]


@pytest.mark.parametrize("config", [
    {"model_type": []}, {"model_type": {"a": 1}}, {"architectures": [5]}, {"architectures": [None]},
    {"architectures": "GPTNeoXForCausalLM"}, {"hidden_size": -8}, {"num_attention_heads": 0},
    {"vocab_size": 10**13}, {"vocab_size": "many"}, {"hidden_size": 7}, {"hidden_act": "no"},
    {"max_position_embeddings": "long"}, {"vocab_size": 5},
    {"rope_parameters": {"rope_type": "unheard-of"}}, {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel"}, {"quantization_config": {"quant_method": "gptq"}},
    {"quantization_config": {"quant_method": "no"}}, {"is_encoder_decoder": True}, 
    {"vocab_size": 12},
])  # fmt: skip
def test_a_configuration_that_lies_is_one_line(hub, config):
    put(hub, revisions=("step0",))
    repository = hub.repositories["model", NAME]
    files = {p: f.data for p, f in repository.revisions["step0"].items()}
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), **config}).encode()
    hub.add(NAME, "step0", files)
    with pytest.raises(ConescopeError) as raised:
        measured()
    print(config, "->", raised.value)
    assert not Path("run").exists()


@pytest.mark.parametrize("name,content", [
    ("tokenizer.json", b"{}"), ("tokenizer.json", b"not json"), ("tokenizer.json", b"[1]"),
    ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}'),
    ("tokenizer_config.json", b"[]"), ("tokenizer_config.json", b"not json"),
    ("tokenizer_config.json", b'{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
    ("tokenizer_config.json", b'{"model_max_length": "x"}'),
    ("tokenizer_config.json", b'{"pad_token": 5}'),
    ("special_tokens_map.json", b"[]"),
])  # fmt: skip
def test_a_tokenizer_that_is_damaged_is_one_line(hub, name, content):
    put(hub, revisions=("step0",))
    repository = hub.repositories["model", NAME]
    files = {p: f.data for p, f in repository.revisions["step0"].items()}
    hub.add(NAME, "step0", {**files, name: content})
    try:
        measured()
        print(name, content, "-> fine")
    except ConescopeError as error:
        print(name, content, "->", error)


@pytest.mark.parametrize(
    "body", [b"<html>Log in to the WLAN</html>", b"[]", b"{}", b"null", b'{"branches": 5}']
)
@pytest.mark.parametrize("what", ["_json", "refs"])
def test_an_answer_that_is_no_list_is_one_line(hub, monkeypatch, body, what):
    put(hub)
    from benchmarks import pretend_hub

    own = pretend_hub._Handler._json

    def json_(self, value):
        if what == "_json" or "/refs" in self.path:
            self._answer(200, body, {"Content-Type": "text/html"})
        else:
            own(self, value)

    monkeypatch.setattr(pretend_hub._Handler, "_json", json_)
    with pytest.raises(ConescopeError) as raised:
        measured()
    print(raised.value)
    with pytest.raises(ConescopeError) as raised:
        cs.measure_hub("hf://lab/tiny-*", TEXTS, out="run")
    print(raised.value)


@pytest.mark.parametrize("labels,pad", [(1, None), (3, None), (3, 7), (3, 1)])
def test_padding_does_not_reach_a_classifier_by_a_causal_model(hub, labels, pad):
    made = put(
        hub, "GPTNeoXForSequenceClassification", ("step0",), num_labels=labels, pad_token_id=pad
    )["step0"]
    run = measured()
    words = tokenizer()
    ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
    made.config.pad_token_id = None  # then it takes its outputs at the last token
    expected = kernel_of(made, lambda i: made(ids[i]).logits[0], 4)
    torch.testing.assert_close(
        run.series.measured[0].values.double(), expected, rtol=1e-4, atol=1e-6
    )


def configured(hub, revision, **changes):
    """Change the config.json of a revision."""
    files = {p: f.data for p, f in hub.repositories["model", NAME].revisions[revision].items()}
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), **changes}).encode()
    hub.add(NAME, revision, files)


def test_a_later_stage_with_another_configuration_is_refused(hub):
    put(hub)
    configured(hub, "step10", transformers_version="4.0", use_cache=False, hidden_dropout=0.5)
    configured(hub, "step20", rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    with pytest.raises(ConescopeError, match=r"step20 is another model .* rope_parameters was"):
        measured()
    assert cs.load_run("run").series.steps == (0, 10)
    with pytest.warns(UserWarning, match="left out"):
        assert measured(skip_failed=True).series.steps == (0, 10)
