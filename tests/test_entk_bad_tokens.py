"""Language models and their inputs: what is measured, and one clear line for what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from conescope.engine import entk, plan
from conescope.errors import KernelError, ModelError
from problems import Apply
from reference import assert_matches_reference

VOCABULARY = 100
IDS = torch.randint(1, VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(0))


class Reads(nn.Module):
    """A function of a language model and tokens."""

    def __init__(self, model: nn.Module, read: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, ids: Tensor) -> Any:
        return self.read(self.model, ids)


def gpt2(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(**tokens, **sizes, **settings)
    return transformers.GPT2LMHeadModel(config).eval()


def llama(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, **settings,
        )
    ).eval()  # fmt: skip


def last(model: Any, ids: Tensor) -> Tensor:
    return model(ids).logits[:, -1]


def average_of_tokens(model: Any, ids: Tensor) -> Tensor:
    kept = ids != 0
    logits = model(ids, attention_mask=kept.long()).logits * kept[..., None]
    return logits.sum(1) / kept.sum(1, keepdim=True)


def refused(match: str, model: nn.Module, x: Tensor = IDS, **options: Any) -> None:
    with pytest.raises(ModelError, match=match):
        entk(model, x, outputs="sum", **options)


def changed(sample: int, position: int | slice, token: int) -> Tensor:
    ids = IDS.clone()
    ids[sample, position] = token
    return ids


def test_a_sequence_of_padding_is_named():
    ids = changed(17, slice(None), 0)
    refused(r"sample x\[17\] are NaN.*padding", Reads(gpt2(), average_of_tokens), ids)
    with pytest.raises(ModelError, match=r"sample y\[17\]"):
        entk(Reads(gpt2(), average_of_tokens), IDS[:3], ids, outputs="sum")


@pytest.mark.parametrize("token", [VOCABULARY, -1, 1234])
def test_a_token_out_of_range(token: int):
    words = rf"'model.transformer.wte.weight' has rows 0 to 99.*row {token}: a token.*nonzero"
    refused(words, Reads(gpt2(), last), changed(17, 3, token))


def test_a_sequence_beyond_the_last_position():
    ids = IDS.repeat(1, 3)
    refused("'model.transformer.wpe.weight' has rows 0 to 31.*position", Reads(gpt2(), last), ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_tokens_of_another_dtype(dtype: torch.dtype):
    refused(r"wte.*int64 or int32.*x.long\(\)", Reads(gpt2(), last), IDS.to(dtype))


def test_tokens_of_int32():
    model = Reads(gpt2(), last)
    expected = entk(model, IDS[:4], outputs="sum").values
    assert torch.equal(entk(model, IDS[:4].int(), outputs="sum").values, expected)


def test_sequences_without_a_token():
    refused("samples without a token", Reads(gpt2(), last), IDS[:, :0])


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda m, ids: m(ids), r"CausalLMOutput.*logits\[:, -1\]"),
        (lambda m, ids: m(ids, labels=ids), r"CausalLMOutput.*logits\[:, -1\]"),
        (lambda m, ids: m(ids, return_dict=False), r"tuple.*model\(x\)\[0\]"),
        (lambda m, ids: {"scores": m(ids).logits}, r"dict.*model\(x\)\['scores'\]"),
        (lambda m, ids: m(ids).past_key_values, "Cache, not a tensor"),
        (lambda m, ids: m(ids, labels=ids).loss, "loss of a whole batch is one number"),
    ],
)
def test_outputs_that_have_to_be_taken_out(read, words: str):
    refused(words, Reads(gpt2(), read))


def test_dropout_is_named():
    refused(r"'model.transformer.drop' \(Dropout\)", Reads(gpt2().train(), last).train())
    model = Reads(llama(attention_dropout=0.1), last).train()
    refused(r"'model.model.layers.0.self_attn' \(LlamaAttention\).*p=0.1", model)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool):
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = Reads(gpt2(**none), last).double()
    expected = entk(model, IDS[:4], outputs="sum").values
    model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = entk(model.train(), IDS[:4], outputs="sum").values
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_weights_that_are_elsewhere(tmp_path):
    on_meta = gpt2()
    on_meta.lm_head.weight = nn.Parameter(torch.empty(VOCABULARY, 16, device="meta"))
    refused("meta device; load its values", Reads(on_meta, last))
    on_disk = gpt2()
    accelerate.disk_offload(on_disk, str(tmp_path), execution_device=torch.device("cpu"))
    refused("meta device; accelerate.*load the model whole", Reads(on_disk, last))


class Quantised(nn.Module):
    """A linear map whose weights are whole numbers, in steps of 1/100."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        whole = (100 * layer.weight).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) / 100)


class Adapted(nn.Module):
    """A frozen layer with a trainable map of low rank beside it."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base, self.down = base.requires_grad_(False), nn.Linear(inputs, 2, bias=False)
        self.up = nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_quantised_weights_have_no_kernel_but_adapters_on_them_do():
    torch.manual_seed(0)
    whole, x = Quantised(nn.Linear(5, 4)), torch.randn(3, 5).double()
    refused("quantised to whole numbers.*adapters", whole, x)
    refused("quantised", nn.Sequential(whole, nn.Linear(4, 2)).double(), x, params="0.weight")
    assert_matches_reference(Adapted(whole, 5, 4).double(), x)


def test_frozen_weights_under_adapters_take_no_part():
    model = llama().requires_grad_(False)
    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj, 16, 16)
    adapted = Reads(model, last)
    assert_matches_reference(adapted, IDS[:4], outputs="sum")
    layers = {layer.layer.rpartition(".")[2] for layer in plan(adapted, IDS[:4]).layers}
    assert layers == {"up", "down"}


def mixture(m: nn.Module, ids: Tensor) -> Tensor:
    mean = m.tokens(ids).mean(1)
    shares = m.gate(mean).softmax(1)
    return shares[:, :1] * m.experts[0](mean) + shares[:, 1:] * m.experts[1](mean)


def test_only_embeddings_or_one_expert():
    torch.manual_seed(0)
    model = Apply(
        mixture,
        tokens=nn.Embedding(9, 5), gate=nn.Linear(5, 2),
        experts=nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)]),
    ).double()  # fmt: skip
    x = torch.randint(0, 9, (4, 6))
    whole = entk(model, x, by_layer=True)
    for layer in ("tokens", "experts.1"):
        found = entk(model, x, params=layer)
        torch.testing.assert_close(found.values, whole.by_layer[layer], rtol=1e-10, atol=1e-10)
    refused("'experts.2', which no parameter", model, x, params="experts.2")


@pytest.mark.parametrize("tied", [True, False])
def test_the_least_memory_for_a_large_vocabulary(tied: bool):
    model = Reads(llama(tie_word_embeddings=tied), last)
    model.model.resize_token_embeddings(50_000)
    ids = 1_000 * IDS[:3] % 50_000
    with pytest.raises(KernelError, match=r"allow at least memory=\d+e6") as refusal:
        entk(model, ids, outputs="sum", memory="1MB")
    least = float(str(refusal.value).split("memory=")[-1].split()[0])
    kernel = entk(model, ids, outputs="sum", memory=least)
    expected = entk(model, ids, outputs="sum").values
    assert float((kernel.values - expected).abs().max() / expected.diagonal().max()) <= 1e-5


def test_the_hooks_of_a_device_map_change_nothing():
    plain = entk(Reads(gpt2(), last), IDS[:4], outputs="sum")
    places = {"transformer": "cpu", "lm_head": "cpu"}
    mapped = accelerate.dispatch_model(gpt2(), places, force_hooks=True)
    found = entk(Reads(mapped, last), IDS[:4], outputs="sum")
    assert found.routes == plain.routes
    assert torch.equal(found.values, plain.values)
