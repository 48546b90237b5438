"""Pretrained models of transformers, loaded with a head for the classes of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from conescope.errors import CheckpointError, ModelError
from conescope.measuring.checkpoints.trial import quiet_transformers
from conescope.measuring.hub.pretrained import first_line

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""The errors that transformers raises for a folder or a name from which it can load nothing."""

_AUTO = {
    "texts": "AutoModelForSequenceClassification",
    "images": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class Classifier:
    """A pretrained model with a head for c classes, and its inputs.

    Attributes:
        build: from a seed to the model; torch's generator decides what is initialised anew.
        inputs: those of all samples, in their order, as the model takes them.
        notes: what was done that its user should know, one sentence each.
    """

    build: Callable[[int], nn.Module]
    inputs: Mapping[str, Tensor]
    notes: tuple[str, ...]


def check_folder(name: str) -> None:
    """Refuse a path at which there is no model of transformers.

    Raises:
        ModelError: if the path is a file, does not exist, or is a folder without a configuration.
    """
    path = Path(name)
    if path.is_file():
        raise ModelError(f"{name} is a file; give the model's folder, which holds config.json")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{name} holds no config.json, and so no model of transformers; save one there with "
            f"model.save_pretrained"
        )
    if not path.exists() and (path.is_absolute() or name.startswith(".") or len(path.parts) > 2):
        raise ModelError(f"{name} does not exist; look for a typing mistake in the name")
    if not path.exists():
        _check_on_hub(name)


def _check_on_hub(name: str) -> None:
    """Refuse a name under which neither the Hub nor the cache of it has a configuration."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    from conescope.measuring.hub.connection import explained

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the client tells each attempt to reach the Hub
    try:
        with explained(name):
            hf_hub_download(name, "config.json")
    except CheckpointError as error:
        raise ModelError(f"{name} is no folder here, and {error}") from error
    finally:
        logging.set_verbosity(level)


def load_classifier(
    name: str, classes: int, of: Literal["texts", "images"]
) -> tuple[Any, list[str]]:
    """Load a model with a head for so many classes; also the names of what is initialised anew.

    Raises:
        ModelError: if it cannot be loaded.
    """
    import transformers

    try:
        with quiet_transformers():
            model, about = getattr(transformers, _AUTO[of]).from_pretrained(
                name,
                num_labels=classes,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{name} cannot be loaded as a classifier of {of}: {first_line(error)}; name a model "
            f"of that kind"
        ) from error
    other = [one[0] if isinstance(one, tuple) else one for one in about["mismatched_keys"]]
    return model.eval(), sorted({*about["missing_keys"], *other})


def about_head(fresh: Sequence[str], config: Any, classes: Sequence[str]) -> str:
    """Say which head the model has.

    Args:
        fresh: the names of what was initialised anew.
        config: the model's configuration.
        classes: the names of the classes, in the order of their numbers.

    Raises:
        ModelError: if the model's own head has the same classes in another order.
    """
    if fresh:
        return (
            f"a fresh head was made for the {len(classes)} classes ({', '.join(fresh)}), another "
            f"one with each seed"
        )
    own = [str(config.id2label.get(number)).casefold() for number in range(len(classes))]
    given = [name.casefold() for name in classes]
    if own != given and sorted(own) == sorted(given):
        raise ModelError(
            f"the model's own head has the classes in another order: {', '.join(own)}, and here "
            f"they are {', '.join(given)}; give the classes as numbers, as the model counts them"
        )
    return "the model's own head was kept; seeds differ in their batches"
