"""Series of adapters that peft saved, measured on their base without a build function."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import conescope as cs
from conescope.cli import main
from conescope.errors import CheckpointError, MissingPackageError, ModelError, RecipeError
from hub_series import TEXTS, kernel_of
from tiny_language import files_of, model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and transformers, at saving
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
KIND = "LlamaForCausalLM"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(made, folder):
    Path(folder).mkdir(parents=True)
    for name, content in files_of(made).items():
        (Path(folder) / name).write_bytes(content)
    return folder


def put(kind=KIND, config=LORA, steps=(10, 20), out="out", name="base", base_kind=None):
    """Save a base in the folder base, and adapters of random weights on it."""
    if not Path("base").exists():
        saved(model(base_kind or kind), "base")
        tokenizer(has_ends=kind.startswith("Bert")).save_pretrained("base")
    for step in steps:
        loaded = getattr(transformers, kind).from_pretrained("base", num_labels=3)
        made = get_peft_model(loaded, copy.deepcopy(config))
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        made.peft_config["default"].base_model_name_or_path = name
        made.save_pretrained(f"{out}/checkpoint-{step}")


def reference(folder, kind=KIND, outputs=lambda made, ids: made(input_ids=ids).logits[0, -1]):
    """Return the kernel over what trains of an adapter that peft itself loads."""
    loaded = getattr(transformers, kind).from_pretrained("base", num_labels=3)
    made = PeftModel.from_pretrained(loaded, folder, is_trainable=True).eval()
    trained = torch.nn.ParameterList(p for p in made.parameters() if p.requires_grad)
    words = tokenizer(has_ends=kind.startswith("Bert"))
    ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
    return kernel_of(trained, lambda i: outputs(made, ids[i]), len(TEXTS))


def changed(folder, **values):
    file = Path(folder) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def close(kernel, expected):
    torch.testing.assert_close(kernel.values.double(), expected, rtol=1e-4, atol=1e-6)


def test_adapters_are_measured_on_the_base_that_they_name(here):
    put()
    changed("out/checkpoint-20", target_modules=["v_proj", "q_proj"], peft_version="0.1")
    run = cs.measure_hub("out", TEXTS, out="run")
    assert run.series.steps == (10, 20)
    for kernel, step in zip(run.series.measured, run.series.steps, strict=True):
        close(kernel, reference(f"out/checkpoint-{step}"))
    assert run.description == (
        f"2 checkpoints of {here / 'out'}; LORA adapters on base, a Llama in float32: logits of "
        "the last token; the kernel of what peft trains; 4 texts of 6 tokens (12 tokens of "
        "padding, [PAD], masked out)"
    )


QV = ["q_proj", "v_proj"]
KINDS = [
    LoraConfig(r=2, target_modules=QV, use_dora=True),
    LoraConfig(r=2, target_modules=QV, bias="all", use_rslora=True),
    LoraConfig(r=2, target_modules=QV, modules_to_save=["lm_head"]),
    LoraConfig(r=2, target_modules=[*QV, "embed_tokens"], task_type="CAUSAL_LM"),
    LoraConfig(r=2, target_modules=QV, trainable_token_indices=[1, 6]),
    peft.LoHaConfig(r=2, target_modules=QV),
    peft.LoKrConfig(r=2, target_modules=QV),
    peft.IA3Config(target_modules=[*QV, "down_proj"], feedforward_modules=["down_proj"]),
    peft.OFTConfig(r=2, oft_block_size=0, target_modules=QV),
    peft.BOFTConfig(boft_block_size=2, target_modules=QV),
    peft.HRAConfig(r=2, target_modules=QV),
    peft.VeraConfig(r=2, target_modules=["q_proj"]),
    peft.FourierFTConfig(n_frequency=5, target_modules=QV),
    peft.LNTuningConfig(target_modules=["input_layernorm"]),
    peft.C3AConfig(block_size=4, target_modules=["q_proj"]),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.peft_type.value}-{KINDS.index(c)}")
def test_every_kind_of_adapter_is_what_peft_makes_of_it(here, config):
    put(config=config, steps=(5,))
    run = cs.measure_hub("out", TEXTS, out="run")
    close(run.series.measured[0], reference("out/checkpoint-5"))


@pytest.mark.parametrize("base_kind", ["BertForPreTraining", "BertModel"])
def test_a_classifier_has_the_head_of_its_adapter(here, base_kind):
    kind = "BertForSequenceClassification"
    put(kind, LoraConfig(task_type="SEQ_CLS", r=2), base_kind=base_kind)
    run = cs.measure_hub("out", TEXTS, out="run", by_layer=True)
    found = reference("out/checkpoint-20", kind, lambda made, ids: made(input_ids=ids).logits[0])
    close(run.series.measured[1], found)
    assert any("classifier" in layer for layer in run.series.measured[1].by_layer)
    assert "logits of the classes" in run.description


def test_a_head_that_nobody_kept_is_not_made_up(here):
    kind = "BertForSequenceClassification"
    put(kind, LoraConfig(task_type="SEQ_CLS", r=2), base_kind="BertForMaskedLM")
    with pytest.raises(CheckpointError, match=r"base lacks weights of a .*: bert.pooler"):
        cs.measure_hub("out", TEXTS, out="run")


def test_only_some_of_the_parameters_if_asked(here):
    put(steps=(5,))
    run = cs.measure_hub("out", TEXTS, out="run", params="*lora_B*")
    whole = cs.measure_hub("out", TEXTS, out="whole").series.measured[0].values
    assert torch.all(run.series.measured[0].values.diag() < whole.diag())
    assert "of what peft trains" not in run.description


def test_adapters_on_the_hub_and_their_base(hub):
    put(name="lab/base", steps=(0, 10))
    base = {file.name: file.read_bytes() for file in Path("base").iterdir()}
    hub.add("lab/base", "v1", base)
    hub.add("lab/base", "main", {**base, **files_of(model(KIND, 7))})
    for step in (0, 10):
        changed(f"out/checkpoint-{step}", revision="v1")
        folder = Path(f"out/checkpoint-{step}")
        hub.add("lab/lora", f"step{step}", {f.name: f.read_bytes() for f in folder.iterdir()})
    run = cs.measure_hub("hf://lab/lora", TEXTS, revisions="step*", out="run")
    close(run.series.measured[1], reference("out/checkpoint-10"))
    here = cs.measure_hub("out", TEXTS, out="here")
    for one, two in zip(run.series.measured, here.series.measured, strict=True):
        assert torch.equal(one.values, two.values)
    other = cs.measure_hub("out", TEXTS, out="other", base="hf://lab/base", tokenizer="base")
    assert not torch.equal(other.series.measured[0].values, run.series.measured[0].values)
    assert not Path("run/downloads").exists()
    assert cs.audit_checkpoints("hf://lab/lora", revisions="step*").steps == (0, 10)
    changed("out/checkpoint-10", revision="v2")
    changed("out/checkpoint-0", revision="v2")
    with pytest.raises(CheckpointError, match=r"has no revision v2; it has .*v1"):
        cs.measure_hub("out", TEXTS, out="x")


def test_what_is_stored_is_not_measured_again_though_times_change(here):
    put()
    cs.measure_hub("out", TEXTS, out="run")
    for file in Path("out").rglob("*"):
        os.utime(file, (1, 1))
    put(steps=(30,))
    assert cs.measure_hub("out", TEXTS, out="run").series.steps == (10, 20, 30)
    shutil.copy("out/checkpoint-30/adapter_model.safetensors", "out/checkpoint-10")
    with pytest.raises(CheckpointError, match=r"out/checkpoint-10 has changed since"):
        cs.measure_hub("out", TEXTS, out="run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": "other"}, r"checkpoint-20 is another model .*was 'base' and"),
        ({"lora_alpha": 99}, r"checkpoint-20 is another model .*lora_alpha was 8 and is 99"),
        ({"peft_type": 5}, r"checkpoint-20 is another model"),
    ],
)
def test_a_series_of_different_adapters_is_refused(here, values, message):
    put()
    changed("out/checkpoint-20", **values)
    with pytest.raises(CheckpointError, match=message):
        cs.measure_hub("out", TEXTS, out="run")
    assert cs.load_run("run").series.steps == (10,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": None}, "does not name the base of the adapter; .* --base"),
        ({"base_model_name_or_path": "/none/of/mine"}, "is no folder on this machine; .* --base"),
        ({"base_model_name_or_path": "lab/none"}, "the base of .*; or name it by --base"),
        ({"base_model_name_or_path": "lab/a b"}, "the base of .*; or name it by --base"),
        ({"base_model_name_or_path": "out"}, "out has no config.json, and is no base"),
        ({"base_model_name_or_path": 5}, "is none of peft's"),
        ({"task_type": None, "auto_mapping": "x"}, "is none of peft's"),
        ({"task_type": None, "auto_mapping": {"base_model_class": 5}}, "is none of peft's"),
        ({"peft_type": None}, "cannot put it on|is none of peft's"),
        ({"peft_type": "UNHEARD"}, "cannot put it on base"),
        ({"peft_type": "PROMPT_TUNING"}, "is a soft prompt"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "conescope knows what to measure"),
        ({"task_type": "TOKEN_CLS"}, "conescope knows what to measure"),
        ({"task_type": "SEQ_CLS"}, "holds no layer that classifies"),
        ({"target_modules": ["none"]}, "cannot put it on base: .*none"),
        ({"r": 4}, "does not fit the model"),
        ({"r": "many"}, "cannot put it on base"),
    ],
)
def test_an_adapter_that_cannot_be_put_on_its_base_is_one_line(hub, values, message):
    put()
    for step in (10, 20):
        changed(f"out/checkpoint-{step}", **values)
    with pytest.raises((CheckpointError, ModelError), match=message) as raised:
        cs.measure_hub("out", TEXTS, out="run")
    assert "\n" not in str(raised.value) or values == {"r": 4}
    assert not Path("run").exists()


def test_a_base_of_another_size_is_refused(here):
    put()
    shutil.rmtree("base")
    saved(model(KIND, hidden_size=16), "base")
    with pytest.raises(CheckpointError, match=r"checkpoint-10 does not fit the model"):
        cs.measure_hub("out", TEXTS, out="run", tokenizer="base")
    saved(model("GPTNeoXForCausalLM"), "other")
    with pytest.raises(ModelError, match=r"cannot put it on other: .*Target modules"):
        cs.measure_hub("out", TEXTS, out="run", base="other")


def test_a_base_is_for_adapters_only(here):
    saved(model(KIND), "out/checkpoint-1")
    with pytest.raises(RecipeError, match="is built without one; leave --base out"):
        cs.measure_hub("out", TEXTS, out="run", base="out")
    assert not Path("run").exists()


def test_a_pattern_may_choose_all_parameters_of_base_and_adapter(here):
    put(steps=(5,))
    run = cs.measure_hub("out", TEXTS, out="run", params="*")
    loaded = getattr(transformers, KIND).from_pretrained("base")
    made = PeftModel.from_pretrained(loaded, "out/checkpoint-5").eval().requires_grad_(True)
    ids = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in TEXTS]
    close(
        run.series.measured[0], kernel_of(made, lambda i: made(input_ids=ids[i]).logits[0, -1], 4)
    )


def test_a_configuration_imports_nothing(here, monkeypatch):
    put()
    (here / "harm.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(str(here))
    for step in (10, 20):
        changed(f"out/checkpoint-{step}", megatron_config={"a": 1}, megatron_core="harm")
    cs.measure_hub("out", TEXTS, out="run")
    assert not Path("ran").exists()


def test_a_missing_peft_is_named(here, monkeypatch):
    put()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'conescope\[lora\]'"):
        cs.measure_hub("out", TEXTS, out="run")


def test_the_command_says_one_line(here):
    put()
    Path("t.txt").write_text("\n".join(TEXTS))
    words = [sys.executable, "-m", "conescope", "measure", "out", "--texts", "t.txt"]
    done = subprocess.run([*words, "--out", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "Loading" not in done.stderr
    shutil.move("base", "moved")
    gone = subprocess.run([*words, "--out", "x"], capture_output=True, text=True, check=False,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1
    assert "name it by --base" in gone.stderr
    assert main([*words[3:], "--out", "y", "--base", "moved"]) == 0


def test_whole_models_that_transformers_saved_need_no_build_function(here, capsys):
    for seed, step in enumerate((10, 20)):
        saved(model("GPT2LMHeadModel", seed), f"out/checkpoint-{step}")
    tokenizer().save_pretrained("out")  # where the Trainer puts it
    Path("t.txt").write_text("\n".join(TEXTS))
    assert main(["measure", "out", "--texts", "t.txt", "--out", "run"]) == 0
    run = cs.load_run("run")
    words, made = tokenizer(), model("GPT2LMHeadModel", 1)
    ids = [torch.tensor([words(text)["input_ids"]]) for text in TEXTS]
    close(run.series.measured[1], kernel_of(made, lambda i: made(ids[i]).logits[0, -1], 4))
    pair = ["out/checkpoint-20", "out/checkpoint-10"]  # as a shell writes a glob
    assert main(["measure", *pair, "--texts", "t.txt", "--out", "pair"]) == 0
    assert cs.load_run("pair").series.steps == (10, 20)
    capsys.readouterr()
    assert main(["measure", "out", "--texts", "t.txt", "--out", "x", "--revisions", "a*"]) == 1
    assert "is not on the Hub and has no revisions" in capsys.readouterr().err
    assert main(["measure", "out", "--out", "x"]) == 2
    assert "give texts, by --texts FILE" in capsys.readouterr().err
    torch.save({"w": torch.ones(2)}, "out/step5.pt")
    assert main(["measure", "out/step5.pt", "--texts", "t.txt", "--out", "x"]) == 2
    assert "checkpoints need --model" in capsys.readouterr().err
    assert not Path("x").exists()


def test_an_adapter_may_bring_the_embeddings_of_new_tokens(here):
    put(config=LoraConfig(r=2, target_modules=QV), steps=(5,))
    loaded = load_file("out/checkpoint-5/adapter_model.safetensors")
    embeddings = {f"base_model.model.{n}.weight": torch.randn(11, 8) for n in
                  ("model.embed_tokens", "lm_head")}  # fmt: skip
    save_file(loaded | embeddings, "out/checkpoint-5/adapter_model.safetensors")
    close(cs.measure_hub("out", TEXTS, out="run").series.measured[0], reference("out/checkpoint-5"))
