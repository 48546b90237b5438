"""Real architectures at their real size, with random weights, from the classes of transformers.

transformers is imported when a model is made, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_CALIBRATION_BATCHES = 8
_CALIBRATION_IMAGES = 8


class _LastLogits(nn.Module):
    """The logits of the last token, [n, vocabulary], of token numbers [n, T]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits[:, -1]


class _ImageLogits(nn.Module):
    """The logits [n, labels] of images [n, 3, height, width]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


@dataclass(frozen=True)
class Architecture:
    """A model of transformers and the inputs that it is measured with.

    Attributes:
        label: its name in tables.
        model: the name of its class in transformers.
        config: the name of the class of its configuration.
        options: of the configuration, where they differ from the class's defaults.
        images: the side of its images, or None for a language model.
    """

    label: str
    model: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None

    def make(self, n: int, tokens: int) -> tuple[nn.Module, Tensor]:
        """The model in evaluation mode and n inputs, the same in every process.

        Args:
            n: number of samples.
            tokens: of each sample of a language model.
        """
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)(config).float()
        if self.images is None:
            ids = torch.randint(config.vocab_size, (n, tokens))
            return _LastLogits(model).eval(), ids
        chosen = _ImageLogits(model)
        size = 3, self.images, self.images
        _calibrate(chosen, lambda: torch.randn(_CALIBRATION_IMAGES, *size))
        return chosen.eval(), torch.randn(n, *size)


def _calibrate(model: nn.Module, batch: Callable[[], Tensor]) -> None:
    """Give BatchNorm the mean statistics of a few batches, in place of 0 and 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # torch's sign for a cumulative mean
    model.train()
    with torch.no_grad():
        for _ in range(_CALIBRATION_BATCHES):
            model(batch())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int = 50304) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25
        },
    }  # fmt: skip


_SMOLLM = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
_LABELS = {"num_labels": 1000}
_TINY = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50}
_GPT2 = "GPT2LMHeadModel", "GPT2Config"
_NEOX = "GPTNeoXForCausalLM", "GPTNeoXConfig"

ARCHITECTURES = {
    "gpt2": Architecture("GPT-2", *_GPT2),
    "pythia-70m": Architecture("Pythia-70M", *_NEOX, _pythia(512, 6, 8)),
    "pythia-160m": Architecture("Pythia-160M", *_NEOX, _pythia(768, 12, 12)),
    "smollm-135m": Architecture("SmolLM-135M", "LlamaForCausalLM", "LlamaConfig", _SMOLLM),
    "bert-base": Architecture("BERT-base", "BertForMaskedLM", "BertConfig"),
    "vit-b16": Architecture("ViT-B/16", "ViTForImageClassification", "ViTConfig", _LABELS, 224),
    "resnet-50": Architecture(
        "ResNet-50", "ResNetForImageClassification", "ResNetConfig", _LABELS, 224
    ),
    "convnext-t": Architecture(
        "ConvNeXt-T", "ConvNextForImageClassification", "ConvNextConfig", _LABELS, 224
    ),
    "gpt2-tiny": Architecture("GPT-2, tiny", *_GPT2, _TINY),
    "pythia-tiny": Architecture("Pythia, tiny", *_NEOX, _pythia(16, 2, 2, vocabulary=50)),
}
QUICK_RUN = ("gpt2-tiny", "pythia-tiny")
FULL_RUN = tuple(name for name in ARCHITECTURES if name not in QUICK_RUN)
