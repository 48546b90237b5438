"""Images and their classes from parquet files, of the Hugging Face Hub or of a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split
from conescope.training.data.encoded_images import decoded


def load_images(name: str, hub_name: str, column: str, path: str | None, classes: int) -> Dataset:
    """Load a data set with the splits "train" and "test".

    Args:
        name: its name in a recipe.
        hub_name: its name on the Hub, such as ylecun/mnist.
        column: the column that holds the images; the classes are in the column `label`.
        path: a folder with train.parquet and test.parquet to read instead of the Hub.
        classes: the number of classes.

    Raises:
        DataError: if it cannot be found or read, or has another layout.
    """
    layout = f"train.parquet and test.parquet, laid out as {hub_name} on the Hugging Face Hub"
    splits = []
    for split in ("train", "test"):
        source = hub_name if path is None else str(Path(path) / f"{split}.parquet")
        images, labels = _read(name, source, column, split, path is None, layout)
        splits.append(Split(_as_tensor(images), torch.tensor(labels, dtype=torch.int64)))
    train, test = splits
    return Dataset(name, train, test, classes)


def _read(
    name: str, source: str, column: str, split: str, is_on_hub: bool, layout: str
) -> tuple[list[np.ndarray], list[int]]:
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity_error()
    try:
        if is_on_hub:
            rows = datasets.load_dataset(source, split=split)
        elif Path(source).is_file():
            rows = datasets.load_dataset("parquet", data_files={split: source}, split=split)
        else:
            raise DataError(f"{source} does not exist; data.path is a folder that holds {layout}")
        missing = {column, "label"} - set(rows.column_names)
        if missing:
            raise DataError(
                f"{source} has the columns {', '.join(rows.column_names)}, but {name} needs "
                f"{column} and label; data.path is a folder that holds {layout}"
            )
        # Encoded images only: decoding by the library would open the paths that a file names.
        held = rows.cast_column(column, datasets.Image(decode=False))[column]
        return decoded(held, source), _whole(rows["label"][:], source)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        cure = "offline, give --data.path DIR," if is_on_hub else "data.path is"
        raise DataError(f"cannot load {source}: {reason}; {cure} a folder with {layout}") from error


def _whole(labels: Sequence[Any], source: str) -> list[int]:
    for place, label in enumerate(labels, start=1):
        if type(label) is not int:
            raise DataError(
                f"{source}: the label of image {place} is {label!r}, and classes are whole numbers "
                f"from 0 on; number the classes, and leave out images without one"
            )
    return list(labels)


def _as_tensor(arrays: list[np.ndarray]) -> Tensor:
    images = torch.from_numpy(np.stack(arrays))
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
