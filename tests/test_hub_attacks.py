"""Repositories, servers and folders that mean harm, or that nobody thought of."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from benchmarks import pretend_hub
from benchmarks.pretend_hub import Repository

import conescope as cs
from conescope.cli import main
from conescope.errors import ConescopeError, ModelError, SkippedWarning
from conescope.measuring.hub import online
from hub_series import NAME, TEXTS, kernel_of, measured, put
from tiny_language import files_of, model, tokenizer


def files(hub, revision):
    return {p: f.data for p, f in hub.repositories["model", NAME].revisions[revision].items()}


def configured(hub, revision, **changes):
    """Change the config.json of a revision."""
    held = files(hub, revision)
    held["config.json"] = json.dumps({**json.loads(held["config.json"]), **changes}).encode()
    hub.add(NAME, revision, held)


@pytest.mark.parametrize(
    "words",
    [
        ["measure", "hf://lab/nothing", "--texts", "t.txt", "--revisions", "step*"],
        ["measure", f"hf://{NAME}", "--texts", "nothing.txt", "--revisions", "step*"],
        ["audit", f"hf://{NAME}", "--revisions", "step*"],
        ["audit", f"hf://{NAME}", "--revisions", "none*"],
    ],
)
def test_folders_of_the_users_own_are_left_alone(hub, words):
    put(hub)
    names = ("downloads", "revisions", "downloads/revisions", "downloads/files")
    for name in names:
        Path(name).mkdir(exist_ok=True)
        Path(name, "thesis.tex").write_text("years of work")
    assert main([*words, "--out", "."]) != 0
    assert all(Path(name, "thesis.tex").exists() for name in names)


def test_an_audit_of_two_names_of_one_commit(hub, monkeypatch):
    put(hub, revisions=("step0", "step10"))
    revisions = hub.repositories["model", NAME].revisions
    revisions["step20"] = revisions["step10"]
    monkeypatch.setattr(Repository, "commit", lambda _, name: f"{name == 'step0':040x}")
    done = cs.audit_checkpoints(f"hf://{NAME}", revisions="step*")
    assert [(each.kind, each.steps) for each in done.alarms] == [("same weights", (10, 20))]


@pytest.mark.parametrize("told", ["../../../victim", "{tmp}/victim"])
def test_a_commit_that_is_a_path_deletes_nothing(hub, tmp_path, told, monkeypatch):
    put(hub)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years of work")
    told, own = told.format(tmp=tmp_path), Repository.commit
    monkeypatch.setattr(Repository, "commit", lambda s, r: told if r == "step0" else own(s, r))
    with pytest.raises(ConescopeError, match="which is no hash"):
        measured(skip_failed=True)
    assert (victim / "thesis.tex").exists()


@pytest.mark.parametrize("told", ["../../victim", "{tmp}/victim", ""])
def test_a_ref_that_is_a_path_deletes_nothing(tmp_path, told):
    victim, home = tmp_path / "victim", tmp_path / "models--lab--tiny"
    words = files_of(tokenizer(has_padding=False))
    folders = {victim: 0, home / "snapshots/c0": 0, home / "snapshots/c1": 1}
    for folder, seed in folders.items():
        folder.mkdir(parents=True)
        for name, data in {**files_of(model("GPTNeoXForCausalLM", seed)), **words}.items():
            (folder / name).write_bytes(data)
    (home / "refs").mkdir()
    for step, commit in enumerate(("c0", "c1", told.format(tmp=tmp_path), "c1")):
        (home / f"refs/step{step}").write_text(commit)
    with pytest.raises(ConescopeError, match="which is no hash"):
        cs.measure_hub(home, TEXTS, revisions="step*", out=tmp_path / "run", skip_failed=True)
    assert (victim / "model.safetensors").exists()


def test_a_data_set_that_names_a_file_outside_writes_none(hub, tmp_path):
    put(hub)
    hub.add("lab/words", "main", {"../../../../../outside.txt": b"a cat\n"}, kind="dataset")
    with pytest.raises(ConescopeError, match="which is outside of it"):
        measured("hf://datasets/lab/words", out="a/b/c/run")
    assert not [*tmp_path.rglob("outside.txt")]


@pytest.mark.parametrize("config", [
    {"model_type": []}, {"model_type": {"a": 1}}, {"architectures": [5]}, {"architectures": [None]},
    {"architectures": "GPTNeoXForCausalLM"}, {"hidden_size": -8}, {"num_attention_heads": 0},
    {"vocab_size": 10**13}, {"vocab_size": "many"}, {"hidden_size": 7}, {"hidden_act": "no"},
    {"max_position_embeddings": "long"}, {"vocab_size": 5}, {"vocab_size": 12},
    {"rope_parameters": {"rope_type": "unheard-of"}}, {"is_encoder_decoder": True},
])  # fmt: skip
def test_a_configuration_that_lies_is_refused(hub, config):
    put(hub, revisions=("step0",))
    configured(hub, "step0", **config)
    with pytest.raises(ConescopeError):
        measured()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**7}, "10,000,000 layers, and more than 1,000 are .* --model"),
        ({"intermediate_size": 10**11}, r"has [\d,]+ parameters .* GB of memory"),
    ],
)
def test_a_model_of_absurd_size_is_refused_before_it_is_built(hub, values, message):
    put(hub, revisions=("step0",))
    configured(hub, "step0", **values)
    with pytest.raises(ModelError, match=message):
        measured()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_names_no_code_to_run(hub, key):
    put(hub, revisions=("step0",))
    whole = measured()
    configured(hub, "step0", **{key: "evil/kernel"})
    assert torch.equal(measured(out="b").series.measured[0].values, whole.series.measured[0].values)


def test_a_later_stage_with_another_configuration_is_refused(hub):
    put(hub)
    configured(hub, "step10", transformers_version="4.0", use_cache=False, hidden_dropout=0.5)
    configured(hub, "step20", rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    with pytest.raises(ConescopeError, match=r"step20 is another model .* rope_parameters was"):
        measured()
    assert cs.load_run("run").series.steps == (0, 10)
    with pytest.warns(SkippedWarning, match="left out"):
        assert measured(skip_failed=True).series.steps == (0, 10)


def test_an_earlier_revision_with_another_configuration_is_refused(hub):
    put(hub)
    whole = files(hub, "step0")
    measured(revisions=["step10", "step20"])
    configured(hub, "step0", rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    with pytest.raises(ConescopeError, match=r"step10 is another model .* rope_parameters was"):
        measured()
    hub.add(NAME, "step0", whole)
    configured(hub, "step0", use_cache=False)
    assert measured().series.steps == (0, 10, 20)


@pytest.mark.parametrize(("name", "content"), [
    ("tokenizer.json", b"{}"), ("tokenizer.json", b"not json"), ("tokenizer.json", b"[1]"),
    ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}'),
    ("tokenizer_config.json", b"[]"), ("tokenizer_config.json", b"not json"),
    ("tokenizer_config.json", b'{"model_max_length": "x"}'),
    ("tokenizer_config.json", b'{"pad_token": 5}'), ("special_tokens_map.json", b"[]"),
])  # fmt: skip
def test_a_tokenizer_that_is_damaged_is_refused(hub, name, content):
    put(hub, revisions=("step0",))
    hub.add(NAME, "step0", {**files(hub, "step0"), name: content})
    with pytest.raises(ConescopeError):
        measured()


@pytest.mark.parametrize("lie", [
    {"model_max_length": None}, {"model_max_length": -5},
    {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
])  # fmt: skip
def test_a_tokenizer_that_lies_changes_nothing(hub, lie):
    put(hub, revisions=("step0",))
    whole = measured()
    held = files(hub, "step0")
    told = {**json.loads(held["tokenizer_config.json"]), **lie}
    lying = {"tokenizer_config.json": json.dumps(told).encode(), "evil.py": b"raise SystemExit"}
    hub.add(NAME, "step0", {**held, **lying})
    assert torch.equal(measured(out="b").series.measured[0].values, whole.series.measured[0].values)


@pytest.mark.parametrize(
    "body", [b"<html>Log in</html>", b"[]", b"{}", b"null", b'{"branches": 5}']
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_an_answer_that_is_none_of_a_hub_is_one_line(hub, monkeypatch, body, everywhere):
    put(hub)
    own = pretend_hub._Handler._json

    def answer(self, value):
        if everywhere or "/refs" in self.path:
            self._answer(200, body, {"Content-Type": "text/html"})
        else:
            own(self, value)

    monkeypatch.setattr(pretend_hub._Handler, "_json", answer)
    with pytest.raises(ConescopeError):
        measured()
    with pytest.raises(ConescopeError):
        cs.measure_hub("hf://lab/tiny-*", TEXTS, out="run")


@pytest.mark.parametrize(("labels", "pad"), [(1, None), (3, None), (3, 7), (3, 1)])
def test_padding_does_not_reach_a_classifier_by_a_causal_model(hub, labels, pad):
    made = put(
        hub, "GPTNeoXForSequenceClassification", ("step0",), num_labels=labels, pad_token_id=pad
    )["step0"]
    run = measured()
    words = tokenizer()
    ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
    made.config.pad_token_id = None  # then it takes its outputs at the last token
    expected = kernel_of(made, lambda i: made(ids[i]).logits[0], 4)
    found = run.series.measured[0].values.double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("ConvBertForMaskedLM", {"embedding_size": 8, "head_ratio": 1}), ("FNetForMaskedLM", {})],
)
def test_a_model_that_sees_its_padding_is_refused(hub, kind, settings):
    put(hub, kind, ("step0",), **settings)
    with pytest.raises(ConescopeError, match="padding"):
        measured(pool="mean")
    assert len(measured(["a cat", "the dog"], pool="mean").series.measured) == 1


def test_a_token_is_not_sent_to_another_host(hub, monkeypatch):
    put(hub, revisions=("step0",))
    seen, own = [], pretend_hub._Handler.do_GET

    def get(self):
        seen.append((self.server.is_store, self.headers.get("Authorization")))
        own(self)

    monkeypatch.setattr(pretend_hub._Handler, "do_GET", get)
    monkeypatch.setenv("HF_TOKEN", pretend_hub.TOKEN)
    measured()
    assert {sent for is_store, sent in seen if is_store} == {None}
    assert (False, f"Bearer {pretend_hub.TOKEN}") in seen


def test_the_room_of_one_revision_is_enough(hub, monkeypatch):
    put(hub)
    own = online.hf_hub_download

    def download(*words, local_dir, **options):
        held = [file.parent for file in Path("run/downloads/revisions").glob("*/*.safetensors")]
        if "revisions" in str(local_dir) and any(folder != Path(local_dir) for folder in held):
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(*words, local_dir=local_dir, **options)

    monkeypatch.setattr(online, "hf_hub_download", download)
    assert measured().series.steps == (0, 10, 20)
