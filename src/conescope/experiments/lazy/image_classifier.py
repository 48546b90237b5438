"""Pretrained models of transformers as classifiers of images in a folder of labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conescope.engine.compute.budget import default_memory
from conescope.errors import DataError, MissingPackageError, ModelError
from conescope.experiments.lazy.pretrained_classifier import (
    LOADING_ERRORS,
    Classifier,
    about_head,
    check_folder,
    load_classifier,
)
from conescope.measuring.checkpoints.trial import quiet_transformers
from conescope.measuring.hub.pretrained import first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""The suffixes of files that count as images."""

_AT_ONCE = 64


def labelled_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Find the images of a folder that has a folder for each class, in the order of their names.

    Hidden files, and files of other kinds, are left out.

    Returns:
        The images' paths, and the name of the class of each.

    Raises:
        DataError: if there is no such folder, or a class without images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images; give one with a folder for each class")
    classes = [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name[0] != "."]
    if not classes:
        raise DataError(f"{folder} holds no folder; put the images of each class into one")
    paths, labels = [], []
    for one in classes:
        found = [path for path in sorted(one.iterdir()) if _is_image(path)]
        if not found:
            raise DataError(f"{one} holds no image ({', '.join(SUFFIXES)}); add some, or delete it")
        paths += found
        labels += [one.name] * len(found)
    return paths, labels


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def image_classifier(
    name: str,
    paths: Sequence[Path],
    classes: Sequence[str],
    *,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Make a model of transformers ready for the classification of images.

    The model is that of AutoModelForImageClassification; a head that does not fit the classes is
    replaced. Images are prepared by the model's own image processor.

    Args:
        name: a local folder, or an id of the Hugging Face Hub.
        paths: the files of all samples.
        classes: the names of the c classes.
        device: where to compute.

    Raises:
        MissingPackageError: if transformers is not installed.
        ModelError: if the model cannot be loaded, or has no image processor.
        DataError: if an image cannot be read, or all take more than a quarter of the memory.
    """
    if find_spec("transformers") is None:
        raise MissingPackageError.of("transformers", "transformers")
    check_folder(name)
    processor = _processor(name)
    model, fresh = load_classifier(name, len(classes), "images")
    _check_size(_pixels(paths[:1], processor), len(paths))
    parts = [
        _pixels(paths[first : first + _AT_ONCE], processor)
        for first in range(0, len(paths), _AT_ONCE)
    ]

    def build(_: int) -> nn.Module:
        return load_classifier(name, len(classes), "images")[0].to(device)

    notes = (about_head(fresh, model.config, classes),)
    return Classifier(build, {"pixel_values": torch.cat(parts)}, notes)


def _processor(name: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{name} has no image processor that can be loaded ({first_line(error)}); save the "
            f"model's own beside it with processor.save_pretrained"
        ) from error


def _check_size(one: Tensor, count: int) -> None:
    need, memory = one.nbytes * count, default_memory([torch.device("cpu")])
    if need > memory:
        raise DataError(
            f"{count:,} images take {need / 1e9:.1f} GB as the model takes them, over a quarter of "
            f"this machine's memory ({memory / 1e9:.1f} GB); give fewer of them"
        )


def _pixels(paths: Sequence[Path], processor: Any) -> Tensor:
    from PIL import Image

    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"the image {path} cannot be read ({first_line(error)}); mend it or leave it out"
            ) from error
    return processor(images, return_tensors="pt")["pixel_values"]
