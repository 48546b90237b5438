"""Build the model that a repository's config.json describes, and load its tokenizer.

Both are the classes of transformers. Code that a repository brings runs only if the user trusts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import errors
from torch import nn

from conescope.errors import CheckpointError, DataError, MissingPackageError, ModelError
from conescope.measuring.checkpoints.weight_files import some_of
from conescope.runs.foreign import read_json

CONFIG = "config.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
                "sentencepiece.bpe.model")  # fmt: skip
"""The files of which a tokenizer needs at least one."""
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip

_UNREADABLE = (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError,
               RuntimeError, ArithmeticError, AssertionError,
               getattr(errors, "StrictDataclassError", OSError))  # fmt: skip
"""The errors that transformers raises at files that it cannot use."""


@dataclass(frozen=True)
class Head:
    """What a kind of model is measured at.

    Attributes:
        auto: the class of transformers that builds it.
        field: the field of its output.
        pool: which of the tokens: "last", "mean", or "mask" for one that is masked; None if the
            output has no tokens.
        words: the same for people.
    """

    auto: str
    field: str
    pool: Literal["last", "mean", "mask"] | None
    words: str


_CAUSAL = Head("AutoModelForCausalLM", "logits", "last", "logits of the last token")
_HEADS = {
    "ForCausalLM": _CAUSAL,
    "LMHeadModel": _CAUSAL,
    "ForMaskedLM": Head("AutoModelForMaskedLM", "logits", "mask", "logits of the masked token"),
    "ForPreTraining": Head(
        "AutoModelForPreTraining", "prediction_logits", "mask", "logits of the masked token"
    ),
    "ForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "logits", None, "logits of the classes"
    ),
    "Model": Head("AutoModel", "last_hidden_state", "mean", "last hidden states, mean over tokens"),
}
"""End of an architecture's name → what such a model is measured at; the first that fits counts."""


@dataclass(frozen=True)
class Description:
    """The model that a config.json describes.

    Attributes:
        config: the configuration, of transformers.
        head: what the model is measured at.
        context: the most tokens that it takes; None if the configuration does not say.
        outputs: the number of its outputs.
        runs_code: whether code of the repository builds it.
    """

    config: Any
    head: Head
    context: int | None
    outputs: int
    runs_code: bool


def described(folder: Path, what: str, *, trusts_code: bool) -> Description:
    """Read a config.json, and choose the class that builds its model.

    Args:
        folder: what holds it, and the Python files beside it if they are trusted.
        what: the revision, for messages.
        trusts_code: whether code of the repository may run, if transformers does not know the
            architecture.

    Raises:
        CheckpointError: if it is damaged, or needs code that is not trusted.
        ModelError: if it is of a kind that does not read texts, or that conescope does not know.
        MissingPackageError: if transformers is not installed.
    """
    transformers = _transformers()
    try:
        raw = read_json(folder / CONFIG, CheckpointError)
        kind, brings_code = raw["model_type"], "auto_map" in raw
        architecture = (raw.get("architectures") or [""])[0]
        if not (isinstance(kind, str) and isinstance(architecture, str)):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(
            f"{what}: its {CONFIG} names no model_type or architecture, by which transformers "
            f"builds a model; build it yourself by --model package.module:build"
        ) from None
    runs_code = kind not in transformers.CONFIG_MAPPING
    if runs_code and not (brings_code and trusts_code):
        raise CheckpointError(_unknown(what, kind, transformers.__version__, brings_code))
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=runs_code)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{what}: transformers refuses its {CONFIG}: {_line(error)}"
        ) from None
    head = next((h for end, h in _HEADS.items() if architecture.endswith(end)), None)
    if head is None or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{what} is a {architecture or kind}; conescope knows what to measure of a causal or "
            f"masked language model, an encoder, or a classifier of texts: build it by --model "
            f"package.module:build, and give its inputs by --probe"
        )
    sizes = {"logits": "vocab_size", "prediction_logits": "vocab_size"}
    size = sizes.get(head.field, "hidden_size") if head.pool else "num_labels"
    context = getattr(config, "max_position_embeddings", None)
    return Description(config, head, context, int(getattr(config, size, 0)), runs_code)


def build(description: Description, what: str) -> nn.Module:
    """Build a model in single precision, with weights that are yet to be loaded.

    Args:
        description: what `described` returned.
        what: the revision, for messages.

    Raises:
        ModelError: if transformers cannot build it.
    """
    auto = getattr(_transformers(), description.head.auto)
    description.config.use_cache = False
    description.config._attn_implementation = None  # may name a repository, whose code would run
    description.config._experts_implementation = None
    try:
        model = auto.from_config(
            description.config, dtype=torch.float32, trust_remote_code=description.runs_code
        )
    except _UNREADABLE as error:
        raise ModelError(f"{what}: transformers cannot build its model: {_line(error)}") from None
    return model.eval()


def load_tokenizer(folder: Path, what: str) -> Any:
    """Load a tokenizer from a folder; no code in it is run.

    Raises:
        DataError: if transformers cannot.
        MissingPackageError: if transformers is not installed.
    """
    try:
        loaded = _transformers().AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        loaded.model_max_length = int(loaded.model_max_length)
    except _UNREADABLE as error:
        raise DataError(
            f"transformers cannot load the tokenizer of {what}: {_line(error)}; name another one "
            f"by --tokenizer"
        ) from None
    return loaded


def code_files(names: Iterable[str]) -> list[str]:
    """Return those of a repository's files that are Python code beside its config.json."""
    return [name for name in names if name.endswith(".py") and "/" not in name]


def _unknown(what: str, kind: str, version: str, brings_code: bool) -> str:
    known = f"{what} is a {kind!r}, which transformers {version} does not know"
    if not brings_code:
        return (
            f"{known}; install a newer transformers, or build the model by --model "
            f"package.module:build"
        )
    return (
        f"{known}. The repository brings Python code for it, which was not run: it could do "
        f"whatever you can do on this machine. Read it, and give --trust-remote-code if you trust "
        f"its authors; or build the model by --model package.module:build"
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError.of("transformers", "transformers") from error
    return transformers


def _line(error: BaseException) -> str:
    return some_of((str(error).strip() or type(error).__name__).splitlines()[:1])
