"""Read a probe from a file: tensors by name, or a single one; no code in the file is run."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import DataError
from conescope.measuring.checkpoints.weight_files import load_torch, read_tensors
from conescope.runs.parquet_tables import read_parquet

_MALFORMED = (
    ValueError, EOFError, KeyError, TypeError, SyntaxError, RecursionError, RuntimeError,
    NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise at a header or an archive that is damaged or packed otherwise."""

_MOST_UNPACKED = 100
_UNSUSPECTED = 2**28  # bytes that an archive may unpack to, however small it is


@checked
def load_probe(
    file: str | Path,
    names: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
    *,
    labels: str | None = None,
) -> Tensor | dict[str, Tensor]:
    """Read a model's inputs for n samples.

    Args:
        file: .parquet, whose columns hold numbers or nested lists of one length; .safetensors;
            .npy or .npz; .pt or .pth with a tensor, or tensors by name.
        names: which columns or tensors to take; None for all. A single one becomes a tensor.
        dtype: the type to which real numbers are converted; None to leave them as they are. Whole
            numbers are never converted.
        labels: the name of a column of classes, which is not taken unless `names` has it; see
            `load_labels`.

    Returns:
        A tensor [n, …], or name → tensor [n, …] if there are several.

    Raises:
        DataError: if the file is missing, damaged, of another kind, lacks a name, or holds what
            is no batch of numbers.
        CheckpointError: if a .pt or .safetensors file is damaged, or a pickle asks for more than
            tensors.
    """
    held = _read(file)
    wanted = [name for name in held if name != labels] if names is None else list(names)
    tensors = {name: _tensor(_column(held, name, file), file, name, dtype) for name in wanted}
    if not tensors:
        raise DataError(f"the probe {file} is empty; write at least one tensor into it")
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def load_labels(file: str | Path, column: str) -> Tensor:
    """Read the classes of a probe's samples, from a column or tensor of its file.

    Args:
        file: as for `load_probe`.
        column: the name of that column or tensor.

    Raises:
        DataError: as `load_probe`; values that are no classes are refused by what takes them.
        CheckpointError: as `load_probe`.
    """
    return _tensor(_column(_read(file), column, file), file, column, None)


def _read(file: str | Path) -> Mapping[str, Any]:
    file = Path(file)
    kinds = " or ".join((", ".join([*_READERS][:-1]), [*_READERS][-1]))
    if not os.path.isfile(file):  # which is false for a name that no file can have
        raise DataError(
            f"the probe {file} does not exist, or is no file; give a file of kind {kinds}"
        )
    if file.suffix not in _READERS:
        raise DataError(f"the probe {file} is of no known kind; give {kinds}")
    return _READERS[file.suffix](file)


def _column(held: Mapping[str, Any], name: str, file: str | Path) -> Any:
    if name not in held:
        raise DataError(f"the probe {file} has no {name}; it has {', '.join(held) or 'nothing'}")
    return held[name]


def _tensor(values: Any, file: str | Path, name: str, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(np.asarray(values))
        except (TypeError, ValueError):
            raise DataError(
                f"the probe {file}: {name} is no array of numbers with rows of one length; pad "
                f"lists to one length, turn images and texts into numbers first, or leave it out"
            ) from None
    return values.to(dtype) if dtype is not None and values.is_floating_point() else values


def _read_parquet(file: Path) -> dict[str, Any]:
    columns, _ = read_parquet(file)
    return columns


def _read_numpy(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return dict(_unpacked(archive, file))
        with file.open("rb") as opened:
            return {"": _read_array(opened, file.stat().st_size, str(file))}
    except (*_MALFORMED, OSError) as error:
        reason = (str(error).splitlines() or ["cut short"])[0]
        raise DataError(
            f"the probe {file} is no file of plain arrays: {reason}; save tensors of numbers anew "
            f"by numpy.save or numpy.savez"
        ) from None


def _unpacked(archive: zipfile.ZipFile, file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Read the arrays of an .npz file, after its list of contents has said how large they are."""
    held = archive.infolist()
    size, packed = sum(one.file_size for one in held), sum(one.compress_size for one in held)
    if size > max(_MOST_UNPACKED * packed, _UNSUSPECTED):
        raise ValueError(f"{packed:,} bytes that unpack to {size:,}")
    for one in held:
        with archive.open(one) as opened:
            name = f"{file}, {one.filename}"
            yield one.filename.removesuffix(".npy"), _read_array(opened, one.file_size, name)


def _read_array(opened: IO[bytes], size: int, name: str) -> np.ndarray:
    """Read an array, after its header was compared with the number of bytes that are there."""
    version = np.lib.format.read_magic(opened)
    read = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
    if version not in read:
        raise ValueError(f"version {version} of the format, and 1.0 and 2.0 are read")
    shape, is_fortran, dtype = read[version](opened)
    if dtype.hasobject or dtype.kind not in "biufc":
        raise ValueError(f"{name} holds {dtype}, and not plain numbers")
    needed, begin = math.prod(shape) * dtype.itemsize, opened.tell()
    if min(shape, default=0) < 0 or begin + needed != size:
        raise ValueError(
            f"its header says {list(shape)} of {dtype}, {needed:,} bytes, and {size - begin:,} "
            f"are there"
        )
    values = np.frombuffer(bytearray(opened.read(needed)), dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_torch(file: Path) -> Mapping[str, Any]:
    content = load_torch(file)
    content = {"": content} if isinstance(content, Tensor) else content
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise DataError(
            f"the probe {file} holds a {type(content).__name__}; save a tensor, or tensors by name"
        )
    return content


_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".parquet": _read_parquet, ".safetensors": read_tensors, ".npy": _read_numpy,
    ".npz": _read_numpy, ".pt": _read_torch, ".pth": _read_torch,
}  # fmt: skip
