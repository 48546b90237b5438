"""What goes wrong with a series on the Hub is named in one line, and the same call goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from conescope.cli import main
from conescope.errors import CheckpointError, SkippedWarning
from conescope.experiments.stored import load_run
from hub_series import NAME, TEXTS, commit, measured, put
from tiny_language import files_of, model, tokenizer


@pytest.fixture
def hasty(monkeypatch):
    """Waiting takes no time."""
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.01)))


def weights(hub, revision):
    return f"{commit(hub, revision)}/model.safetensors"


def test_a_cut_connection_is_taken_up_where_it_broke(hub, hasty, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
    put(hub)
    hub.fail(weights(hub, "step10"), "cut", times=2)
    assert len(measured().series) == 3
    asked = [begin for _, path, begin in hub.asked(weights(hub, "step10")) if begin]
    assert len(asked) == 2
    assert all(begin.startswith("bytes=") for begin in asked)


def test_a_hub_that_is_busy_is_waited_for(hub, hasty):
    put(hub)
    hub.fail("/refs", 429, times=2)
    hub.fail("/tree/", 503, times=1)
    hub.fail(weights(hub, "step10"), 429, times=2)
    assert len(measured().series) == 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (503, "answers lab/tiny@step10 with status 503; try again later"),
        ("wrong", r"lab/tiny@step10: model.safetensors does not have the hash"),
        (404, r"lab/tiny@step10"),
    ],
)
def test_a_revision_that_fails_is_named_and_the_same_call_goes_on(hub, hasty, how, message):
    put(hub)
    hub.fail(weights(hub, "step10"), how)
    with pytest.raises(CheckpointError, match=message) as raised:
        measured()
    assert "\n" not in str(raised.value)
    assert load_run("run").series.steps == (0,)
    hub.failures.clear()
    hub.requests.clear()
    run = measured()
    assert run.series.steps == (0, 10, 20)
    assert hub.asked(weights(hub, "step0")) == []
    assert not Path("run/downloads").exists()


def test_a_wrong_hash_is_fetched_again(hub):
    put(hub)
    hub.fail(weights(hub, "step10"), "wrong", times=1)
    assert len(measured().series) == 3


@pytest.mark.parametrize("how", [503, "wrong"])
def test_a_revision_that_fails_is_left_out_if_asked(hub, hasty, how):
    put(hub)
    hub.fail(weights(hub, "step10"), how)
    with pytest.warns(SkippedWarning, match="left out: .*lab/tiny@step10"):
        run = measured(skip_failed=True)
    assert run.series.steps == (0, 20)
    hub.failures.clear()
    assert measured().series.steps == (0, 10, 20)


def test_weights_that_are_not_finite_or_do_not_fit_are_named(hub):
    put(hub)
    bad = model("GPTNeoXForCausalLM")
    with torch.no_grad():
        bad.gpt_neox.embed_in.weight[0, 0] = torch.nan
    hub.add(NAME, "step10", files_of(bad))
    with pytest.raises(CheckpointError, match="lab/tiny@step10 holds NaN or infinite weights"):
        measured()
    deep = files_of(model("GPTNeoXForCausalLM", num_hidden_layers=2))
    hub.add(NAME, "step10", {"model.safetensors": deep["model.safetensors"]})
    with pytest.raises(CheckpointError, match="lab/tiny@step10 does not fit the model"):
        measured()
    with pytest.warns(SkippedWarning):
        assert measured(skip_failed=True).series.steps == (0, 20)


def test_if_all_fail_there_is_no_run(hub, hasty):
    put(hub)
    hub.fail("model.safetensors", 503)
    with (
        pytest.warns(SkippedWarning),
        pytest.raises(CheckpointError, match="every checkpoint was left out"),
    ):
        measured(skip_failed=True)
    assert not Path("run/journal.jsonl").exists()


def test_weights_of_another_format_are_refused(hub):
    put(hub)
    words = files_of(tokenizer())
    hub.add(NAME, "step10", {"flax_model.msgpack": b"x", **words})
    with pytest.raises(CheckpointError, match=r"step10 holds neither .*it has flax_model.msgpack"):
        measured()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    files = {"model.safetensors.index.json": json.dumps(index).encode(),
             "model-00001-of-00002.safetensors": b"x"}  # fmt: skip
    hub.add(NAME, "step10", files)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        measured()


class Harm:
    """An object whose pickle makes a file when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_a_pickle_that_asks_for_more_than_tensors_is_refused(hub):
    put(hub, as_bin=True)
    written = io.BytesIO()
    torch.save({"w": Harm()}, written)
    hub.add(NAME, "step10", {"pytorch_model.bin": written.getvalue()})
    with pytest.raises(CheckpointError, match="was refused, and nothing in it was run"):
        measured()
    assert not Path("harm").exists()


def words_of(*words, name=NAME):
    return [f"hf://{name}", "--texts", "texts.txt", "--out", "run", *words]


MISTAKES = [
    (words_of(), 1, "say which revisions of lab/tiny to measure by a pattern"),
    (words_of("--revisions", "stp*"), 1, "matches 'stp*'; it has main, step0, step10, step20"),
    (words_of("--revisions", "*"), 1, "main has no number in its name"),
    (words_of("--revisions", "step*", name="lab/none"), 1, "there is no repository lab/none on"),
    (words_of("--revisions", "step*", name="tiny"), 1, "names no repository; write hf://ORG"),
    (words_of("--revisions", "step*", name="lab/ti\nny"), 1, "'hf://lab/ti\\nny' names no reposit"),
    (words_of("--revisions", "step*", name="lab/tiny?x=1"), 1, "tiny?x=1 names no repository"),
    (words_of("--revisions", "step*", "--tokenizer", "./no"), 1, "tokenizer ./no is no folder on"),
    (words_of("--revisions", "step*", "--tokenizer", "no/no"), 1, "tokenizer is no folder here, a"),
    (words_of("--revisions", "step*", "--out", "texts.txt"), 1, "choose another folder"),
    (words_of("--revisions", "step*", "--length", "99"), 1, "over the 16 of the model's context"),
    (words_of("--revisions", "step*", "--samples", "9"), 1, "9 texts are asked for, and there are"),
    (words_of("--revisions", "step*", "--texts", "none.txt"), 1, "texts none.txt do not exist"),
    (words_of("--revisions", "step*", "--texts", "void.txt"), 1, "texts void.txt hold nothing"),
    (words_of("--revisions", "step*", "--texts", "gap.txt"), 1, "text 2 of gap.txt is empty"),
    (words_of("--revisions", "step*", "--column", "body"), 1, "have no columns, and so no body"),
    (words_of("--revisions", "step*", "--batchnorm", "running"), 2, "on the Hub, which takes no"),
    (words_of("--revisions", "step*", "--probe", "p.npy"), 2, "--probe, which takes no --texts"),
    (["hf://lab/tiny", "hf://lab/two", "--out", "run"], 2, "is one repository on the Hub"),
    (["hf://lab/tiny", "--revisions", "s*", "--out", "run"], 2, "there is nothing to measure at"),
    (["ckpts", "--out", "run", "--texts", "t"], 1, "ckpts holds no checkpoint"),
    (["ckpts", "--out", "run", "--model", "m:b"], 2, "need --probe, such as data.parquet; or --"),
    (["ckpts", "--out", "run", "--texts", "t", "--model", "m:b"], 2, "--tokenizer FOLDER or ORG/"),
    (["ckpts", "--out", "run", "--length", "3", "--model", "m:b"], 2, "which takes no --length"),
    (["ckpts", "--out", "ckpts/../ckpts", "--texts", "t"], 2, "holds the checkpoints; choose ano"),
    (words_of("--revisions", "step*", name="lab/own"), 1, "install a newer transformers"),
    (words_of("--revisions", "step*", name="lab/t5"), 1, "is a T5ForConditionalGeneration"),
    (words_of("--revisions", "step*", name="lab/void"), 1, "its config.json names no model_type"),
]


@pytest.mark.parametrize(("words", "status", "message"), MISTAKES)
def test_a_users_mistake_is_one_line(hub, capsys, words, status, message):
    for name in ("step0", "step10", "step20", "main"):
        hub.add(NAME, name, {**files_of(TINY), **WORDS})
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    hub.add("lab/own", "step1", {"config.json": json.dumps(own).encode()})
    t5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    hub.add("lab/t5", "step1", {"config.json": json.dumps(t5).encode()})
    hub.add("lab/void", "step1", {"config.json": b"[]"})
    Path("texts.txt").write_text("\n".join(TEXTS))
    Path("void.txt").write_text("")
    Path("gap.txt").write_text("a\n\nb")
    capsys.readouterr()
    found = main(["measure", *words])
    captured = capsys.readouterr()
    assert (found, captured.out) == (status, "")
    assert message in captured.err
    assert captured.err.startswith("conescope: error: ")
    assert captured.err.count("\n") == 1
    assert not Path("run").exists()


TINY = model("GPTNeoXForCausalLM")
WORDS = files_of(tokenizer())


def test_a_hub_that_is_not_there_is_one_line(hub, hasty, capsys):
    put(hub)
    Path("texts.txt").write_text("a cat")
    hub.stop()
    capsys.readouterr()
    assert main(["measure", *words_of("--revisions", "step*")]) == 1
    err = capsys.readouterr().err
    assert f"cannot reach {hub.url} for lab/tiny" in err
    assert err.count("\n") == 1


def test_a_kill_in_mid_download_loses_nothing(hub, tmp_path):
    put(hub)
    Path("texts.txt").write_text("\n".join(TEXTS))
    hub.fail(weights(hub, "step20"), "slow", times=1)
    words = [sys.executable, "-m", "conescope", "measure", *words_of("--revisions", "step*")]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        kernel, folder = Path("run/kernels/00000010.safetensors"), Path("run/downloads")
        while not kernel.exists() or not [*folder.rglob("*.incomplete")]:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert load_run("run").series.steps == (0, 10)
    hub.requests.clear()
    assert main(["measure", *words_of("--revisions", "step*")]) == 0
    assert load_run("run").series.steps == (0, 10, 20)
    assert hub.asked(weights(hub, "step10")) == []
    assert not Path("run/downloads").exists()
