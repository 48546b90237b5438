"""Build the model that a repository's config.json describes, and load its tokenizer.

Both are the classes of transformers. Code that a repository brings runs only if the user trusts it.
"""

from __future__ import annotations

import os
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
ADAPTER_CONFIG = "adapter_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
                "sentencepiece.bpe.model")  # fmt: skip
"""The files of which a tokenizer needs at least one."""
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip

UNREADABLE = (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError,
               RuntimeError, ArithmeticError, AssertionError,
               getattr(errors, "StrictDataclassError", OSError))  # fmt: skip
"""The errors that transformers and peft raise at files that they cannot use."""

_MOST_LAYERS = 1_000


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
    "EncoderModel": Head(
        "AutoModelForTextEncoding",
        "last_hidden_state",
        "mean",
        "last hidden states, mean over tokens",
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
        adapters: what peft puts on it, for people; "" if the model is taken as it is.
        base: the folder or repository of the model under the adapters; None without any.
    """

    config: Any
    head: Head
    context: int | None
    outputs: int
    runs_code: bool
    adapters: str = ""
    base: str | None = None


def described(
    folder: Path, what: str, *, trusts_code: bool, architecture: str | None = None
) -> Description:
    """Read a config.json, and choose the class that builds its model.

    Args:
        folder: what holds it, and the Python files beside it if they are trusted.
        what: the revision, for messages.
        trusts_code: whether code of the repository may run, if transformers does not know the
            architecture.
        architecture: what to build of it, such as "ForSequenceClassification"; by default what the
            file names.

    Raises:
        CheckpointError: if it is damaged, or needs code that is not trusted.
        ModelError: if it is of a kind that does not read texts, or that conescope does not know.
        MissingPackageError: if transformers is not installed.
    """
    transformers = _transformers()
    try:
        raw = read_json(folder / CONFIG, CheckpointError)
        kind, brings_code = raw["model_type"], "auto_map" in raw
        architecture = architecture or (raw.get("architectures") or [""])[0]
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
    except UNREADABLE as error:
        raise CheckpointError(
            f"{what}: transformers refuses its {CONFIG}: {first_line(error)}; mend it, or "
            f"build the model by --model package.module:build"
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
    config.use_cache = False
    config._attn_implementation = None  # may name a repository, whose code would run
    config._experts_implementation = None
    return Description(config, head, context, int(getattr(config, size, 0)), runs_code)


def build(description: Description, what: str, *, has_values: bool = True) -> nn.Module:
    """Build a model in single precision, with weights that are yet to be loaded.

    Args:
        description: what `described` returned.
        what: the revision, for messages.
        has_values: whether its tensors take memory; without, they are on the meta device.

    Raises:
        ModelError: if transformers cannot build it, or it is too large for this machine.
    """
    auto = getattr(_transformers(), description.head.auto)

    def built(device: str) -> nn.Module:
        with torch.device(device):
            return auto.from_config(
                description.config, dtype=torch.float32, trust_remote_code=description.runs_code
            )

    _check_depth(description.config, what)
    try:
        model = built("meta")
        _check_size(model, what)
        if has_values:
            model = built("cpu")
    except UNREADABLE as error:
        raise ModelError(
            f"{what}: transformers cannot build its model: {first_line(error)}; build it by "
            f"--model package.module:build"
        ) from None
    return model.eval()


def _check_depth(config: Any, what: str) -> None:
    """Raise an error for so many layers that building them would take minutes."""
    depth = getattr(config, "num_hidden_layers", None)
    if isinstance(depth, int) and depth > _MOST_LAYERS:
        raise ModelError(
            f"{what}: its {CONFIG} names {depth:,} layers, and more than {_MOST_LAYERS:,} are "
            f"taken for a mistake; if they are none, build the model by --model "
            f"package.module:build"
        )


def _check_size(model: nn.Module, what: str) -> None:
    """Raise an error for a model that is larger than the memory of this machine."""
    count = sum(parameter.numel() for parameter in model.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * count > memory:
        raise ModelError(
            f"{what} has {count:,} parameters by its {CONFIG}, {4 * count / 1e9:,.0f} GB in "
            f"float32, and this machine has {memory / 1e9:,.0f} GB of memory; measure it on a "
            f"larger one"
        )


def load_tokenizer(folder: Path, what: str) -> Any:
    """Load a tokenizer from a folder; no code in it is run.

    Raises:
        DataError: if transformers cannot.
        MissingPackageError: if transformers is not installed.
    """
    try:
        loaded = _transformers().AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        loaded.model_max_length = int(loaded.model_max_length)
    except UNREADABLE as error:
        raise DataError(
            f"transformers cannot load the tokenizer of {what}: {first_line(error)}; name another "
            f"one by --tokenizer"
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


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return some_of((str(error).strip() or type(error).__name__).splitlines()[:1])
