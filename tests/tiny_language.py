"""A tokenizer of a few words, and language models small enough for tests."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[END]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "a", "cat", "dog", "the", "runs")


def tokenizer(*, has_padding: bool = True, has_ends: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are words.

    Args:
        has_padding: whether it has a padding token.
        has_ends: whether it puts [CLS] before a text and [SEP] behind it, as BERT's does.
    """
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    if has_ends:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special = {"eos_token": "[END]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    if has_padding:
        special["pad_token"] = "[PAD]"
    if has_ends:
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip


def model(kind: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Return a tiny language model of random weights, such as a "GPTNeoXForCausalLM"."""
    torch.manual_seed(seed)
    made = getattr(transformers, kind)
    config = made.config_class(**{**SIZES, "bos_token_id": 1, "eos_token_id": 1, **settings})
    return made(config).eval()


def files_of(
    saved: PreTrainedModel | PreTrainedTokenizerFast, *, as_bin: bool = False
) -> dict[str, bytes]:
    """Return what `save_pretrained` writes, by name; with the weights in torch's own format."""
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if as_bin and isinstance(saved, PreTrainedModel):
        written = io.BytesIO()
        torch.save(saved.state_dict(), written)
        del files["model.safetensors"]
        files["pytorch_model.bin"] = written.getvalue()
    return files
