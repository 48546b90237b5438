"""Pretrained models of transformers as classifiers of texts, with LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from conescope.errors import DataError, MissingPackageError, ModelError, RecipeError
from conescope.experiments.lazy.pretrained_classifier import (
    LOADING_ERRORS,
    Classifier,
    about_head,
    check_folder,
    load_classifier,
)
from conescope.experiments.lazy.samples import tokens_notes
from conescope.measuring.checkpoints.trial import quiet_transformers
from conescope.measuring.hub.pretrained import first_line
from conescope.measuring.texts import tokenise

LORA_SCALE = 2
"""LoRA's α as a multiple of its rank R: the adapters' product is scaled by α / R."""


def text_classifier(
    name: str,
    texts: Sequence[str],
    classes: Sequence[str],
    *,
    length: int | None = None,
    lora: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Make a model of transformers ready for the classification of texts.

    The model is that of AutoModelForSequenceClassification, which reads the class of a causal model
    at the last token that is no padding. A head that does not fit the classes is replaced.

    Args:
        name: a local folder, or an id of the Hugging Face Hub.
        texts: the texts of all samples.
        classes: the names of the c classes.
        length: tokens to which the texts are cut or padded; see `tokenise`.
        lora: rank R of LoRA adapters on all linear layers but the head, by peft: only they and the
            head are trained. None to train all parameters.
        device: where to compute.

    Raises:
        MissingPackageError: if transformers, or for LoRA peft, is not installed.
        ModelError: if the model cannot be loaded, or has no tokenizer.
        DataError: as `tokenise`; or if the texts hold every token of the vocabulary.
        RecipeError: if the rank is below 1.
    """
    if find_spec("transformers") is None:
        raise MissingPackageError.of("transformers", "transformers")
    if lora is not None and lora < 1:
        raise RecipeError(f"the rank of LoRA is at least 1, not {lora}")
    if lora is not None and find_spec("peft") is None:
        raise MissingPackageError.of("peft", "lora")
    check_folder(name)
    tokenizer = _tokenizer(name)
    model, fresh = load_classifier(name, len(classes), "texts")
    context = getattr(model.config, "max_position_embeddings", None)
    tokens = tokenise(texts, tokenizer, length, context=context)
    padding = tokenizer.convert_tokens_to_ids(tokens.padded_with)
    inputs, padding = _with_distinct_padding(tokens.inputs, padding, model.config)

    def build(_: int) -> nn.Module:
        model, _fresh = load_classifier(name, len(classes), "texts")
        # by which a causal model finds the last token of a text
        model.config.get_text_config().pad_token_id = padding
        return (model if lora is None else _with_adapters(model, lora)).to(device)

    notes = [about_head(fresh, model.config, classes)]
    if lora is not None:
        notes.append(
            f"trained are LoRA adapters of rank {lora}, α = {LORA_SCALE * lora}, and the head"
        )
    return Classifier(build, inputs, (*notes, *tokens_notes(tokens)))


def _with_distinct_padding(
    inputs: Mapping[str, Tensor], padding: int, config: Any
) -> tuple[dict[str, Tensor], int]:
    """Return the inputs padded with a token that no text holds, and that token.

    A causal classifier takes the last token that is not the padding token for the end of a text,
    and does not ask the attention mask. A tokenizer without a padding token pads with its
    end-of-text token, with which a text may end, too.

    Raises:
        DataError: if the texts hold every token of the vocabulary.
    """
    ids, is_text = inputs["input_ids"], inputs["attention_mask"] != 0
    used = ids[is_text].unique()
    if padding in used:
        vocabulary = torch.arange(config.get_text_config().vocab_size)
        free = vocabulary[~torch.isin(vocabulary, used)]
        if len(free) == 0:
            raise DataError(
                f"the texts hold every token of the vocabulary, token {padding} of the padding "
                f"among them, so the end of a text cannot be told; add a padding token to the "
                f"tokenizer, or leave texts out"
            )
        padding = int(free[0])
    return {**inputs, "input_ids": ids.where(is_text, padding)}, padding


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            found = AutoTokenizer.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise ModelError(_no_tokenizer(name, first_line(error))) from error
    if len(found) <= len(found.all_special_ids):  # what transformers makes of a missing vocabulary
        raise ModelError(_no_tokenizer(name, "it has no vocabulary"))
    return found


def _no_tokenizer(name: str, reason: str) -> str:
    return (
        f"{name} has no tokenizer that can be loaded ({reason}); save the model's own beside it "
        f"with tokenizer.save_pretrained"
    )


def _with_adapters(model: Any, rank: int) -> nn.Module:
    peft = import_module("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=LORA_SCALE * rank, target_modules="all-linear"
    )
    with warnings.catch_warnings():  # of what peft calls in transformers
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft then sets it as it has to be
        return peft.get_peft_model(model, config)
