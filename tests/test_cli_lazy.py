"""`conescope lazy`, and pretrained models of transformers as classifiers."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import conescope as cs
from conescope.cli import main
from conescope.errors import DataError, MissingPackageError, ModelError, RecipeError
from conescope.experiments.lazy import text_classifier as file
from conescope.experiments.lazy.text_classifier import text_classifier

transformers = pytest.importorskip("transformers")

WORDS = ("the", "is", "very", "film", "play", "plot", "song", "poor", "fine")
OPTIONS = ("--lr", "0.01", "--steps", "6", "--seeds", "2", "--probe", "10", "--regression", "30")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *WORDS]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def saved(folder, tokenizer, kind="bert"):
    torch.manual_seed(0)
    if kind == "bert":
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        config = transformers.BertConfig(vocab_size=32, num_attention_heads=2, **size)
        model = transformers.BertModel(config)
    else:
        config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)
        config.bos_token_id = config.eos_token_id = 1
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def written(path, count=36, label=("bad", "good")):
    lines = []
    for k in range(count):
        word = ("poor", "fine")[k % 2]
        text = f"the {WORDS[3 + k % 4]} is {'very ' * (k % 3)}{word}"
        lines.append(json.dumps({"text": text, "label": label[k % 2]}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def model(tmp_path, tokenizer):
    return saved(tmp_path / "model", tokenizer)


def test_the_command_gives_a_verdict_a_page_and_runs_and_goes_on(tmp_path, model, capsys):
    data, out = written(tmp_path / "data.jsonl"), tmp_path / "out"
    words = ["lazy", model, "--data", data, "--out", str(out), *OPTIONS]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "by the kernel" in first
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("lazy-kernel", "lazy-spectrum", "classifier.weight", "bad is 0, good is 1"):
        assert text in page
    assert len(cs.load_run(out / "seed-1").series) > 2
    before = (out / "seed-1" / "result.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (out / "seed-1" / "result.safetensors").stat().st_mtime_ns == before
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert facts["verdict"] in first
    assert facts["signs"]["kernel"]["measured"]["low"] >= 0
    assert facts["report"] == str(out / "report.html")


def test_a_causal_model_is_read_at_its_last_token(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "model", tokenizer, "gpt2")
    data = written(tmp_path / "data.jsonl", label=(0, 1))
    test = written(tmp_path / "test.jsonl", count=8, label=(0, 1))
    out = ["--out", str(tmp_path / "out")]
    assert main(["lazy", folder, "--data", data, "--test", test, *out, *OPTIONS]) == 0
    assert "36 to train on, 8 to test with" in " ".join(capsys.readouterr().out.split())
    made = text_classifier(folder, ["the film is fine", "very"], ["0", "1"])
    model, inputs = made.build(0), made.inputs
    assert inputs["input_ids"][1, -1] == tokenizer.pad_token_id
    with torch.no_grad():
        short = model(input_ids=inputs["input_ids"][1:, :1]).logits
        padded = model(**{name: values[1:] for name, values in inputs.items()}).logits
    torch.testing.assert_close(short, padded)


def test_the_token_of_the_padding_is_the_tokenizers_whatever_the_configuration_says(
    tmp_path, tokenizer
):
    folder = saved(tmp_path / "model", tokenizer, "gpt2")
    config = transformers.GPT2Config.from_pretrained(folder)
    config.pad_token_id = 1
    config.save_pretrained(folder)
    made = text_classifier(folder, ["the film is fine", "very"], ["0", "1"])
    model, inputs = made.build(0), made.inputs
    with torch.no_grad():
        short = model(input_ids=inputs["input_ids"][1:, :1]).logits
        padded = model(**{name: values[1:] for name, values in inputs.items()}).logits
    torch.testing.assert_close(short, padded)


def test_a_text_that_ends_in_the_token_of_the_padding_is_read_to_its_end(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"the": 0, "end": 1, "[UNK]": 2}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="end", unk_token="[UNK]", model_max_length=16
    )
    folder = saved(tmp_path / "model", tokenizer, "gpt2")
    made = text_classifier(folder, ["the end", "the the the end", "end"], ["0", "1"])
    model, inputs = made.build(0), made.inputs
    with torch.no_grad():
        together = model(**inputs).logits
        model.config.pad_token_id = 31  # which no text holds
        for row, ids in enumerate(([0, 1], [0, 0, 0, 1], [1])):
            alone = model(input_ids=torch.tensor([ids])).logits
            torch.testing.assert_close(together[row : row + 1], alone)


def test_a_vocabulary_without_a_free_token_for_the_padding_is_refused(tmp_path, tokenizer):
    folder = saved(tmp_path / "model", tokenizer, "gpt2")
    every = torch.arange(32).expand(2, 32).clone()
    mask = torch.ones_like(every)
    config = transformers.GPT2Config.from_pretrained(folder)
    with pytest.raises(DataError, match="add a padding token"):
        file._with_distinct_padding({"input_ids": every, "attention_mask": mask}, 0, config)


def test_a_head_trained_on_the_classes_in_another_order_is_refused(tmp_path, tokenizer):
    folder = saved(tmp_path / "model", tokenizer)
    names = {0: "World", 1: "Business"}
    model = transformers.BertForSequenceClassification.from_pretrained(folder, id2label=names)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="in another order: world, business"):
        text_classifier(folder, ["the film"], ["Business", "World"])
    for classes in (["World", "Business"], ["0", "1"], ["bad", "good"]):
        assert "own head was kept" in text_classifier(folder, ["the film"], classes).notes[0]


def test_paths_without_a_model_and_damaged_weights_are_refused_in_one_line(tmp_path, model):
    data = tmp_path / "data.jsonl"
    written(data)
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "empty", r"holds no config\.json"),
        (data, "is a file"),
    ):
        with pytest.raises(ModelError, match=message):
            text_classifier(str(path), ["the film"], ["0", "1"])
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be loaded as a classifier of texts"):
        text_classifier(model, ["the film"], ["0", "1"])


def test_heads_differ_between_seeds_and_bodies_do_not(model):
    made = text_classifier(model, ["the film"], ["0", "1", "2"])

    def built(seed):
        torch.manual_seed(seed)
        return made.build(seed).state_dict()

    first, again, other = built(0), built(0), built(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    assert differ == {"classifier.weight"}
    assert "a fresh head was made for the 3 classes" in made.notes[0]


def test_a_head_that_fits_is_kept(tmp_path, model, tokenizer):
    kept = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    kept.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    made = text_classifier(str(tmp_path / "tuned"), ["the film"], ["0", "1"])
    assert torch.equal(made.build(0).classifier.weight, kept.classifier.weight)
    assert "own head was kept" in made.notes[0]
    wider = text_classifier(str(tmp_path / "tuned"), ["the film"], ["0", "1", "2"])
    assert wider.build(0).classifier.weight.shape[0] == 3
    assert "a fresh head" in wider.notes[0]


def test_texts_in_python_are_tokenised_together(model, tokenizer):
    made = text_classifier(model, ["the film"], ["0", "1"])
    texts = [f"the film is {'very ' * (k % 3)}{('poor', 'fine')[k % 2]}" for k in range(24)]
    labels = [k % 2 for k in range(24)]
    settings = {"lr": 0.01, "steps": 3, "seeds": 1, "probe": 10}
    report = cs.lazy_report(
        made.build, (texts, labels), test=(["very very very very fine"], [1]),
        tokenizer=tokenizer, **settings,
    )  # fmt: skip
    assert report.samples.inputs["input_ids"].shape == (25, 6)
    with pytest.raises(DataError, match="tokenizer="):
        cs.lazy_report(made.build, (texts, labels), **settings)


def test_lora_trains_adapters_and_head_by_peft(model, monkeypatch):
    """The package is stood in for, since it need not be installed."""
    asked = {}

    def get_peft_model(network: nn.Module, config: SimpleNamespace) -> nn.Module:
        asked.update(vars(config))
        return network.requires_grad_(False)

    peft = ModuleType("peft")
    peft.LoraConfig = SimpleNamespace
    peft.get_peft_model = get_peft_model
    monkeypatch.setitem(sys.modules, "peft", peft)
    monkeypatch.setattr(file, "find_spec", lambda _: object())
    made = text_classifier(model, ["the film"], ["0", "1"], lora=4)
    assert not any(p.requires_grad for p in made.build(0).parameters())
    assert asked == {
        "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"
    }  # fmt: skip
    assert "LoRA adapters of rank 4, α = 8" in made.notes[1]


def test_peft_itself_trains_adapters_and_head(model):
    pytest.importorskip("peft")
    texts = [f"the film is {'very ' * (k % 3)}{('poor', 'fine')[k % 2]}" for k in range(30)]
    made = text_classifier(model, texts, ["bad", "good"], lora=2)
    trained = {name for name, p in made.build(0).named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    labels = [k % 2 for k in range(30)]
    report = cs.lazy_report(
        made.build, (made.inputs, labels), lr=0.05, steps=6, seeds=1, probe=10
    )  # fmt: skip
    assert float(report.seeds[0].distance[-1]) > 0


def test_bad_models_and_ranks_are_refused_in_one_line(tmp_path, model, monkeypatch):
    with pytest.raises(RecipeError, match="at least 1"):
        text_classifier(model, ["the"], ["0", "1"], lora=0)
    with pytest.raises(ModelError, match="has no tokenizer"):
        text_classifier(saved(tmp_path / "bare", None), ["the"], ["0", "1"])
    (tmp_path / "bare" / "config.json").unlink()
    with pytest.raises(ModelError, match="bare") as raised:
        text_classifier(str(tmp_path / "bare"), ["the"], ["0", "1"])
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(file, "find_spec", lambda name: None if name == "peft" else 1)
    with pytest.raises(MissingPackageError, match=r"pip install 'conescope\[lora\]'"):
        text_classifier(model, ["the"], ["0", "1"], lora=4)
    monkeypatch.setattr(file, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"conescope\[transformers\]"):
        text_classifier(model, ["the"], ["0", "1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--labels", "class"], "no column 'class'"),
        (["--steps", "0"], "steps is at least 1"),
        (["--test", "absent.jsonl"], "do not exist"),
        (["--device", "abacus"], "abacus"),
        (["--out", __file__], "as a file is in its place; choose another folder"),
        (["--out", f"{__file__}/x"], "as a file is in its place; choose another folder"),
    ],
)
def test_what_the_command_cannot_do_it_says_in_one_line(tmp_path, model, capsys, change, message):
    data = written(tmp_path / "data.jsonl")
    out = ["--out", str(tmp_path / "out")]
    assert main(["lazy", model, "--data", data, *out, *OPTIONS, *change]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["hf://lab/none", "lab/none"])
@pytest.mark.usefixtures("hub")
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_one_line(tmp_path, capsys, name):
    data = written(tmp_path / "data.jsonl")
    assert main(["lazy", name, "--data", data, "--out", "out", *OPTIONS]) == 1
    error = capsys.readouterr().err.strip()
    assert "error: lab/none is no folder here, and there is no repository lab/none on" in error
    assert len(error.splitlines()) == 1
