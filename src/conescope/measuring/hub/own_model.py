"""Texts as the probe of a model that the user builds, by a tokenizer that the user names."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from conescope.measuring.adapt import Pool, Select
from conescope.measuring.hub.online import hub_or_cache
from conescope.measuring.hub.padding import check_padding
from conescope.measuring.hub.pretrained import load_tokenizer
from conescope.measuring.hub.probe_of_texts import (
    DATASETS,
    ProbeOfTexts,
    dataset_file,
    first,
    probe_of,
)
from conescope.measuring.hub.small_files import named_tokenizer
from conescope.measuring.texts import read_texts


def probe_for(
    model: nn.Module,
    texts: str,
    tokenizer: str,
    *,
    column: str | None = None,
    labels: str | None = None,
    length: int | None = None,
    samples: int | None = None,
    select: Select | None = None,
    pool: Pool | None = None,
) -> ProbeOfTexts:
    """Make the probe of a model whose checkpoints have no tokenizer beside them.

    Args:
        model: the model.
        texts: a file, see `read_texts`; or `hf://datasets/org/name`.
        tokenizer: a folder, or a repository on the Hub.
        column: see `read_texts`.
        labels: see `read_texts`.
        length: see `tokenise`.
        samples: how many of the texts are taken, from the first on; None for all.
        select: see `adapt`.
        pool: see `adapt`.

    Raises:
        CheckpointError: if the tokenizer or the data set cannot be had.
        DataError: as `read_texts` and `tokenise`; or if there are not so many texts.
        ModelError: if the model takes no texts, or sees their padding.
    """
    where = hub_or_cache()
    with TemporaryDirectory(prefix="conescope-") as place:
        folder, file = Path(place), Path(texts)
        if texts.startswith(DATASETS):
            file = dataset_file(texts, where, folder / "texts")
        read = first(read_texts(file, column, labels), samples)
        loaded = load_tokenizer(named_tokenizer(tokenizer, where, folder), tokenizer)
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    made = probe_of(read, loaded, model, pool, length=length, context=context)
    check_padding(model.eval(), made.inputs, select, made.pool)
    return made
