"""A tokenizer of a few words, and language models small enough for tests."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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
