"""Files that transformers' `from_pretrained` reads, though their names are not the model's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import conescope as cs
from conescope.errors import CheckpointError
from conescope.measuring.adapt import adapt
from conescope.measuring.checkpoints import find_checkpoints, load_weights, read_weights
from conescope.measuring.checkpoints.loading import fitted
from foreign import same, state_of

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 12,
         "intermediate_size": 16, "max_position_embeddings": 8}  # fmt: skip
TOKENS = {"input_ids": torch.randint(0, 12, (4, 5), generator=torch.Generator().manual_seed(0))}


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def gpt2(kind=GPT2LMHeadModel):
    return kind(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=12, n_positions=8))


def bert(kind=BertForSequenceClassification):
    return kind(BertConfig(**SIZES))


def mixtral():
    return MixtralForCausalLM(
        MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2)
    )


def seeded(make, seed=1):
    torch.manual_seed(seed)
    return make().eval()


def with_old_buffers(state):
    """A file of Pythia as it was written at first: with buffers, and the head's old name."""
    old = {n.replace("lm_head.", "embed_out."): t for n, t in state.items()}
    for layer in range(2):
        path = f"gpt_neox.layers.{layer}.attention"
        old[f"{path}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        old[f"{path}.masked_bias"] = torch.tensor(-1e9)
        old[f"{path}.rotary_emb.inv_freq"] = torch.ones(1)
    return old


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_buffers_that_the_library_drops_are_dropped(tmp_path, prefix):
    models = [seeded(neox, seed) for seed in (0, 1)]
    for seed, model in enumerate(models):
        state = {prefix + n: t for n, t in with_old_buffers(state_of(model)).items()}
        torch.save(state, tmp_path / f"step{seed}.pt")
    run = cs.measure_checkpoints(neox, tmp_path, TOKENS, out=tmp_path / "run", pool="last")
    for kernel, model in zip(run.series.kernels, models, strict=True):
        assert torch.equal(kernel.values, adapt(model, TOKENS, pool="last").kernel().values)
    target = neox()
    load_weights(target, with_old_buffers(state_of(models[1])), Path("a"))
    assert same(state_of(target), state_of(models[1]))


def test_a_transformer_inside_another_module_drops_its_buffers():
    source = seeded(lambda: nn.ModuleDict({"backbone": neox(), "head": nn.Linear(8, 2)}))
    state = state_of(source)
    old = state | {"backbone.gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    target = nn.ModuleDict({"backbone": neox(), "head": nn.Linear(8, 2)})
    load_weights(target, old, Path("a"))
    assert same(state_of(target), state)
    with pytest.raises(CheckpointError, match=r"unexpected in the file \(1\): head.masked_bias"):
        load_weights(target, state | {"head.masked_bias": torch.tensor(-1e9)}, Path("a"))


def test_experts_that_are_written_one_by_one_are_fused(tmp_path, capfd):
    models = [seeded(mixtral, seed) for seed in (0, 1)]
    for seed, model in enumerate(models):
        model.save_pretrained(tmp_path / f"checkpoint-{seed}")
    target = mixtral()
    files = tmp_path / "checkpoint-1/model.safetensors"
    state = read_weights([files])
    assert not state.keys() <= target.state_dict().keys()
    capfd.readouterr()
    load_weights(target, state, files)
    assert capfd.readouterr() == ("", "")
    assert same(state_of(target), state_of(models[1]))
    lacking = {n: t for n, t in state.items() if "layers.1" not in n or "experts.2" not in n}
    before = state_of(target)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*read the checkpoint by from_pre"):
        load_weights(target, lacking, files)
    assert same(state_of(target), before)
    found = find_checkpoints(tmp_path)
    for checkpoint in found:
        fitted(target, read_weights(checkpoint.files), checkpoint.path)
    assert same(state_of(target), before)


def test_the_base_models_name_may_stand_before_the_names_or_not():
    source = seeded(bert)
    base = {n.removeprefix("bert."): t for n, t in state_of(source).items()}
    target = bert()
    load_weights(target, base, Path("a"))
    assert same(state_of(target), state_of(source))
    alone = bert(BertModel)
    load_weights(alone, state_of(source), Path("a"))  # the head on top is no part of it
    assert torch.equal(alone.pooler.dense.weight, source.bert.pooler.dense.weight)
    decoder = gpt2(GPT2Model)
    load_weights(decoder, state_of(seeded(gpt2)), Path("a"))
    assert torch.equal(decoder.wte.weight, seeded(gpt2).transformer.wte.weight)


def test_what_trains_is_never_made_up():
    state = {n: t for n, t in state_of(seeded(bert)).items() if "classifier" not in n}
    target = bert()
    target._keys_to_ignore_on_load_missing = {"classifier"}
    with pytest.raises(CheckpointError, match=r"missing in the file \(2\): classifier.weight"):
        load_weights(target, state, Path("a"))
    for parameter in target.classifier.parameters():
        parameter.requires_grad_(False)
    load_weights(target, state, Path("a"))


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight"])
def test_of_a_tied_weight_one_name_is_enough(name):
    state = state_of(seeded(gpt2))
    del state[name]
    target = gpt2()
    load_weights(target, state, Path("a"))
    assert target.lm_head.weight is target.transformer.wte.weight
    assert same(state_of(target), state_of(seeded(gpt2)))


def test_old_names_of_layer_norms_are_read():
    state = state_of(seeded(bert))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    theirs = {}
    for name, value in state.items():
        for new, before in old.items():
            name = name.replace(new, before)
        theirs[name] = value
    assert theirs.keys() != state.keys()
    target = bert()
    load_weights(target, theirs, Path("a"))
    assert same(state_of(target), state)


def test_another_precision_is_taken_over():
    state = {n: t.half() for n, t in with_old_buffers(state_of(seeded(neox))).items()}
    target = neox()
    load_weights(target, state, Path("a"))
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert torch.equal(target.lm_head.weight.half(), state["embed_out.weight"])


def test_old_masks_of_gpt2_are_dropped():
    state = state_of(seeded(gpt2))
    old = state | {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
                   "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}  # fmt: skip
    target = gpt2()
    load_weights(target, old, Path("a"))
    assert same(state_of(target), state)


def test_a_file_of_whole_numbers_is_refused():
    state = {n: t.to(torch.int8) for n, t in state_of(seeded(mixtral)).items()}
    with pytest.raises(CheckpointError, match="of another shape or kind"):
        load_weights(mixtral(), state, Path("a"))
    save = {n: t.to(torch.int8) for n, t in state_of(seeded(bert)).items()}
    with pytest.raises(CheckpointError, match="of another shape or kind"):
        load_weights(bert(), {n.removeprefix("bert."): t for n, t in save.items()}, Path("a"))


def test_a_series_of_safetensors_of_experts_is_measured(tmp_path):
    for seed in (0, 1):
        seeded(mixtral, seed).save_pretrained(tmp_path / f"checkpoint-{seed}")
        save_file(state_of(seeded(mixtral, seed)), tmp_path / f"fused{seed}.safetensors")
    words = {"pool": "last", "params": "lm_head"}
    run = cs.measure_checkpoints(mixtral, tmp_path, TOKENS, out=tmp_path / "run", **words)
    fused = cs.measure_checkpoints(
        mixtral, f"{tmp_path}/*.safetensors", TOKENS, out=tmp_path / "fused", **words
    )
    for one, other in zip(run.series.kernels, fused.series.kernels, strict=True):
        assert torch.equal(one.values, other.values)
