"""Language models of transformers, of the real width and vocabulary, in single precision."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

import conescope as cs
from conescope.engine import plan
from conescope.engine.arguments import Cotangents
from conescope.errors import KernelError


class LastToken(nn.Module):
    """A language model that returns the logits of the last token, [n, vocabulary]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits[:, -1]


def one_layer(kind: str) -> tuple[nn.Module, Tensor]:
    """Return one layer of an architecture with its whole vocabulary, and three sequences."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1))
    elif kind == "pythia":
        model = transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                vocab_size=50304, hidden_size=512, num_hidden_layers=1, num_attention_heads=8,
                intermediate_size=2048,
            )
        )  # fmt: skip
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=49152, hidden_size=576, num_hidden_layers=1, num_attention_heads=9,
                num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True,
            )
        )  # fmt: skip
    return LastToken(model).eval(), torch.randint(0, model.config.vocab_size, (3, 12))


@pytest.mark.parametrize("kind", ["gpt2", "pythia", "llama"])
def test_a_draw_is_a_float64_product_of_the_models_own_gradients(kind: str):
    model, ids = one_layer(kind)
    estimate = cs.estimate_entk(model, ids, draws=2, memory="2GB")
    c = model.model.config.vocab_size
    sign = Cotangents.signs(2, c, 0, torch.empty(0)).part(0, 1)[0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    gradients = [torch.autograd.grad(model(ids[i : i + 1])[0] @ sign, [*model.parameters()])
                 for i in range(3)]  # fmt: skip
    for rows in zip(*gradients, strict=True):
        flat = [row.flatten().double() for row in rows]
        expected += torch.tensor([[float(a @ b) for b in flat] for a in flat]).double()
    error = (estimate.draws[0].double() - expected).abs().max() / expected.diagonal().max()
    assert float(error) <= 1e-6


def test_a_budget_that_is_too_small_names_one_that_works():
    model, ids = one_layer("gpt2")
    with pytest.raises(KernelError, match=r"allow at least memory=\d+e6") as refusal:
        cs.estimate_entk(model, ids, draws=2, memory="100MB")
    least = float(str(refusal.value).split("memory=")[-1].split()[0])
    assert cs.estimate_entk(model, ids, draws=2, memory=least).draws.shape == (2, 3, 3)


def test_a_plan_of_a_vocabulary_makes_no_identity():
    model, ids = one_layer("pythia")
    planned = plan(model, ids, memory="1GB")
    assert planned.bytes <= 1.1e9
    assert planned.cotangents < 50304
