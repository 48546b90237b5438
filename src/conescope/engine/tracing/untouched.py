"""Compute with a model and leave it as it was, to the bit, whatever its forward pass writes.

Inside `untouched`, a model computes the same function as in training: gradients are on, autocast
and compilation are off, checkpoints keep what they compute, and the faster code that torch
substitutes in evaluation mode is not used.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conescope.engine.tracing.forward import feedable, forward
from conescope.engine.tracing.writes import Attributes, SavedValues
from conescope.errors import SkippedWarning

MOST_OUTPUT_BYTES = 4 * 2**20
"""The size up to which outputs are kept beside a kernel."""
_CHECKPOINTS = "_checkpoint_without_reentrant_generator"
_FEWEST, _MOST = 2, 16
_NUMBERS = 2**16


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Compute with a model, and leave everything as it was.

    Put back are: parameters, buffers and other tensors that the model holds, the attributes of
    its modules (with lists, dictionaries, sets, arrays and plain objects in them), which
    parameters require gradients, and the states of the random generators.

    Raises:
        ModelError: if a forward pass has written a tensor that it did not write when it was first
            watched (`watching_writes`), so that its values are lost.
    """
    devices = {p.device for p in model.parameters()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    attributes = Attributes(model)
    values = SavedValues(model, attributes.tensors)
    with ExitStack() as stack:
        stack.enter_context(_same_random_states(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_no_fast_path())
        stack.enter_context(_no_recomputation())
        _take_off_precision_wrappers(model)
        try:
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)
            attributes.restore()
            values.restore()
    values.refuse_lost()


def outputs_of(model: nn.Module, x: Tensor) -> Tensor | None:
    """Return the outputs of a model as it stands on all samples, if they can be kept.

    They are computed for 2 to 31 samples at a time: the fewer, the larger a sample is, and 2 or 3
    if it is of whole numbers, such as tokens, each of which may have many outputs. Gradients are
    on, since re-entrant checkpoints warn without them.

    Args:
        model: any model that has a kernel; it is left as it was.
        x: n samples.

    Returns:
        [n, c], in the model's own type; None if they take more than 4 MB (2²² bytes), or are not
        finite.

    Raises:
        ModelError: if the model rejects the samples.

    Warns:
        SkippedWarning: if they take more.
    """
    numbers = max(1, x[0].numel()) if x.is_floating_point() else _NUMBERS
    few = min(max(_NUMBERS // numbers, _FEWEST), _MOST)
    found: list[Tensor] = []
    with untouched(model):
        for batch in x.tensor_split(max(1, len(x) // few)):
            found.append(forward(model, feedable(batch)).detach().clone())
            size = len(x) * found[0][0].nbytes
            if size > MOST_OUTPUT_BYTES:
                warnings.warn(
                    f"the outputs on {len(x):,} samples take {size / 1e6:,.1f} MB, and at most "
                    f"{MOST_OUTPUT_BYTES / 1e6:,.1f} MB are stored with a kernel: none are, unless "
                    f"the probe is smaller",
                    SkippedWarning,
                    stacklevel=2,
                )
                return None
    outputs = torch.cat(found)
    return outputs if bool(outputs.isfinite().all()) else None


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Turn off attention's fast path, which treats padding otherwise than training does."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_recomputation() -> Iterator[None]:
    """Let checkpoints keep what they compute, unless they are re-entrant: the gradients are equal.

    What they compute a second time, in the backward pass, is not recorded, and rules save other
    tensors than it does.
    """
    checkpoints: Any = sys.modules.get("torch.utils.checkpoint")
    before = getattr(checkpoints, _CHECKPOINTS, None)
    if before is None:
        yield
        return
    setattr(checkpoints, _CHECKPOINTS, _around_once)
    try:
        yield
    finally:
        setattr(checkpoints, _CHECKPOINTS, before)


def _around_once(
    function: Any,  # noqa: ARG001
    preserve_rng_state: bool,  # noqa: ARG001
    context_fn: Callable[[], tuple[AbstractContextManager[Any], Any]],
    *_: Any,
    **__: Any,
) -> Iterator[None]:
    """Enter a checkpoint's own context; torch calls the function while this generator waits."""
    with context_fn()[0] if torch.is_grad_enabled() else nullcontext():  # as torch does
        yield


def _take_off_precision_wrappers(model: nn.Module) -> None:
    """Give modules back their own forward pass where a wrapper around it enters autocast.

    Libraries that train in mixed precision, such as accelerate, replace `forward` on the instance.
    `Attributes.restore` puts theirs back.
    """
    for module in model.modules():
        replaced = module.__dict__.get("forward")
        if replaced is not None and _enters_autocast(replaced):
            original = module.__dict__.get("_original_forward")
            module.__dict__["forward"] = original or MethodType(type(module).forward, module)


def _enters_autocast(function: Any) -> bool:
    """Return whether a wrapper, or a function that it wraps, enters autocast.

    The forward passes of modules are not searched: their own autocast is part of the model.
    """
    pending, seen = [function], set()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.autocast):
            return True
        if isinstance(found, MethodType):
            found = found.__func__
        if isinstance(found, FunctionType):
            code = found.__code__
            owner = code.co_qualname.rpartition(".")[0]
            if code.co_name == "forward" and owner and not owner.endswith("<locals>"):
                continue  # autocast in there is part of the model
            if "autocast" in code.co_names:
                return True
            pending += [cell.cell_contents for cell in found.__closure__ or () if _is_full(cell)]
            pending.append(getattr(found, "__wrapped__", None))
        elif callable(found) and not isinstance(found, nn.Module | type):
            pending += [v for v in getattr(found, "__dict__", {}).values() if callable(v)]
    return False


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a cell that is not filled yet
        return False


@contextmanager
def _same_random_states(devices: set[torch.device]) -> Iterator[None]:
    indices: dict[str, list[int]] = {}
    for device in devices:
        if device.type not in ("cpu", "meta"):
            indices.setdefault(device.type, []).append(device.index or 0)
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, numbers in indices.items():
            stack.enter_context(torch.random.fork_rng(numbers, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def requiring_grad(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let these parameters require gradients, beside those that do, and restore the flags."""
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in flags:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
