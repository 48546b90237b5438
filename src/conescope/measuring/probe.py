"""The probe: a model's inputs for n samples, as one tensor or several, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conescope.errors import DataError, ModelError

Probe = Tensor | Sequence[Any] | Mapping[str, Any]
"""A model's inputs: one tensor, several by place, or several by name.

The first dimension of each tensor numbers the samples. What is no tensor goes to the model as it
is.
"""


def items(probe: Probe) -> Iterable[tuple[str, Any]]:
    """Return the tensors of a probe with their names: "" for one tensor, numbers for a sequence."""
    if isinstance(probe, Tensor):
        return [("", probe)]
    if isinstance(probe, Mapping):
        return probe.items()
    return [(str(place), value) for place, value in enumerate(probe)]


def copied(probe: Probe) -> Probe:
    """Copy a probe, so that later changes of its tensors do not reach the copy."""
    with torch.inference_mode(False):
        parts = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in items(probe)
        }
    if isinstance(probe, Tensor):
        return parts[""]
    return parts if isinstance(probe, Mapping) else tuple(parts.values())


def count(probe: Probe) -> int:
    """Return the number of samples of a probe.

    Raises:
        ModelError: if there are no samples, the tensors hold different numbers of them, or one
            holds NaN or infinite values, is sparse or has no values.
    """
    tensors = {name: value for name, value in items(probe) if isinstance(value, Tensor)}
    lengths = {name: len(t) if t.dim() else 0 for name, t in tensors.items()}
    if not lengths or 0 in lengths.values():
        raise ModelError(
            "the probe holds no samples; give a tensor, or several as a tuple or mapping, whose "
            "first dimension numbers the samples"
        )
    if len(set(lengths.values())) > 1:
        raise ModelError(
            f"the probe's tensors hold different numbers of samples: "
            f"{', '.join(f'{name} {length}' for name, length in lengths.items())}; give each the "
            f"same samples in the same order"
        )
    for name, tensor in tensors.items():
        where = f"the probe's {name}" if name else "the probe"
        if not is_plain(tensor):
            raise ModelError(
                f"{where} is sparse, nested or on the meta device; give a plain tensor with values "
                f"(.to_dense(), or padded)"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where} holds NaN or infinite values; look at the data")
    return next(iter(lengths.values()))


def class_labels(labels: Tensor | Sequence[int], samples: int) -> list[int]:
    """Return the classes of a probe's samples as plain numbers.

    Args:
        labels: [n], whole numbers of at least 0.
        samples: the number n of samples in the probe.

    Raises:
        DataError: if the labels are no whole numbers of at least 0, or not one for each sample.
    """
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise DataError("the labels are no numbers; give each class a number, from 0 on") from None
    if not is_plain(values):
        raise DataError("the labels are no plain tensor with values; give a list, or a dense one")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        kind = str(values.dtype).removeprefix("torch.")
        raise DataError(
            f"the labels are {kind}, and classes are whole numbers; look for NaN or targets of a "
            f"regression among them, or convert them with .long()"
        )
    if list(values.shape) != [samples]:
        raise DataError(
            f"the probe's {samples} samples need {samples} labels, [{samples}], and these are "
            f"{list(values.shape)}; give one class for each sample, in the same order"
        )
    if int(values.min()) < 0:
        raise DataError(
            f"the labels hold {int(values.min())}, and classes count from 0; leave out samples "
            f"without a class"
        )
    return values.tolist()


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and holds values."""
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta)


def describe_probe(probe: Probe) -> str:
    """Describe a probe by names, shapes and types, such as "input_ids [100, 32] int64"."""
    return ", ".join(f"{name} {_describe(value)}".strip() for name, value in items(probe))


def digest(probe: Probe) -> str:
    """Hash all values of a probe: 16 hexadecimal digits, the same on every device."""
    total = hashlib.sha256()
    for name, value in items(probe):
        total.update(f"{name} {_describe(value)};".encode())
        if isinstance(value, Tensor):
            total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
