"""Images and their classes from parquet files, of the Hugging Face Hub or of a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.runs.parquet_tables import read_parquet
from conescope.training.data.dataset import Dataset, Split
from conescope.training.data.encoded_images import decoded


def load_images(
    name: str,
    hub_name: str,
    column: str,
    path: str | None,
    classes: int,
    most_decoded: int | None = None,
) -> Dataset:
    """Load a data set with the splits "train" and "test".

    Args:
        name: its name in a recipe.
        hub_name: its name on the Hub, such as ylecun/mnist.
        column: the column that holds the images; the classes are in the column `label`.
        path: a folder with train.parquet and test.parquet to read instead of the Hub.
        classes: the number of classes.
        most_decoded: how many images of a split are decoded at most; they are repeated for the
            others, which is enough to time a training. None for all of them.

    Raises:
        DataError: if it cannot be found or read, or has another layout.
    """
    layout = f"train.parquet and test.parquet, laid out as {hub_name} on the Hugging Face Hub"
    splits = []
    for split in ("train", "test"):
        if path is None:
            source, found = hub_name, _from_hub(hub_name, column, split, layout, most_decoded)
        else:
            source = str(Path(path) / f"{split}.parquet")
            found = _from_file(Path(source), column, layout, most_decoded)
        encoded, labels = found
        images = _as_tensor(decoded(encoded, source))
        if len(images) < len(labels):
            images = images[torch.arange(len(labels)) % len(images)]
        splits.append(Split(images, _labels(labels, source)))
    train, test = splits
    return Dataset(name, train, test, classes)


_Rows = tuple[Sequence[Any], Sequence[Any]]
"""Encoded images, and the classes of all of them."""


def _from_file(path: Path, column: str, layout: str, most: int | None) -> _Rows:
    cure = f"data.path is a folder that holds {layout}"
    if not path.is_file():
        raise DataError(f"{path} does not exist; {cure}")
    try:
        images, _ = read_parquet(path, [column], most)
        labels, _ = read_parquet(path, ["label"])
    except DataError as error:
        raise DataError(f"{error}; {cure}") from None
    return images[column], labels["label"]


def _from_hub(source: str, column: str, split: str, layout: str, most: int | None) -> _Rows:
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    try:
        rows = datasets.load_dataset(source, split=split)
        if not {column, "label"} <= {*rows.column_names}:
            raise ValueError(f"it has the columns {', '.join(rows.column_names)}")
        # Encoded images only: decoding by the library would open the paths that a file names.
        rows = rows.cast_column(column, datasets.Image(decode=False))
        return rows[column][:most], rows["label"][:]
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load {source}: {reason}; offline, give --data.path DIR, a folder with {layout}"
        ) from error


def _labels(values: Sequence[Any], source: str) -> Tensor:
    for place, label in enumerate(values, start=1):
        if type(label) is not int or abs(label) >= 2**63:
            raise DataError(
                f"{source}: the label of image {place} is {label!r}, and classes are whole numbers "
                f"from 0 on; number the classes, and leave out images without one"
            )
    return torch.tensor(values, dtype=torch.int64)


def _as_tensor(arrays: list[np.ndarray]) -> Tensor:
    images = torch.from_numpy(np.stack(arrays))
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
