"""Run a forward pass of any model, and turn whatever goes wrong into clear errors.

Whatever is wrong with a model or its input becomes a `ModelError` that says so; `attempted` turns
errors into `RoutesChangedError` where another route is tried next.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node

from conescope.engine.layers.call import RoutesChangedError
from conescope.errors import ModelError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
FORWARD_ERRORS = (
    RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError,
    ArithmeticError,
)  # fmt: skip
"""The exceptions that a forward pass raises if its input or its code is wrong."""


Result = TypeVar("Result")

_TF32 = 2.0**-10
"""The relative rounding of TF32."""


@contextmanager
def attempted() -> Iterator[None]:
    """Turn any error into `RoutesChangedError`, so that a plainer route is tried.

    No error is lost: the last route is plain autograd, which raises the model's own errors again.
    """
    try:
        yield
    except RoutesChangedError:
        raise
    except Exception as error:  # the code of a model may raise anything
        raise RoutesChangedError from error


def watched(run: Callable[[], tuple[Tensor, Result]]) -> tuple[Tensor, Result, dict[int, int]]:
    """Return what a recorded forward pass returns, and what autograd saves of it; see `Trace`."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node held would never be freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), attempted():
            return *run(), saved
    except RoutesChangedError:
        return *run(), {}


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs as a matrix [n, c].

    Raises:
        ModelError: if the model rejects the input, or its output is no batch of numbers.
    """
    try:
        output = model(x)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model rejects an input of shape {tuple(x.shape)} and type {x.dtype}"
            f"{_elsewhere(model, x)}: {describe_failure(error, model)}; check that model(x) works "
            f"by itself, and shape, dtype and device (x.to(…)) against what it expects"
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            f"returns the outputs whose kernel is wanted{_example(output)}"
        )
    if output.dim() == 0 or len(output) != len(x):
        hint = ""
        if output.numel() == 1 and len(x) > 1:
            hint = (
                " (the loss of a whole batch is one number: return the outputs that it is made of)"
            )
        elif len(x) == 1:
            hint = " (a final squeeze() drops the axis of a lone sample: write squeeze(-1))"
        raise ModelError(
            f"a batch of size {len(x)} gives outputs of shape {tuple(output.shape)}; the first "
            f"dimension must number the samples{hint}"
        )
    if not output.is_floating_point():
        cure = "return its real and imaginary parts, or its modulus" if output.is_complex() else (
            "return the real numbers that they are made of"
        )  # fmt: skip
        raise ModelError(f"the outputs are {output.dtype}, which has no derivative; {cure}")
    if output.numel() == 0:
        raise ModelError(
            f"the model gives outputs of shape {tuple(output.shape)}, which hold no numbers; "
            f"return at least one for each sample"
        )
    return output.reshape(len(x), -1)


def _elsewhere(model: nn.Module, x: Tensor) -> str:
    """Say where the parameters are, if none is where the input is."""
    devices = sorted({str(p.device) for p in model.parameters()})
    if str(x.device) in devices:
        return ""
    return f" on {x.device} (its parameters are on {', '.join(devices)})"


class OtherOutputsError(ModelError):
    """Some samples have another number of outputs than others, or than a model had before."""


def refuse_other_outputs(outputs: Tensor, width: int) -> None:
    """Raise `OtherOutputsError` unless outputs [b, c] have as many columns as the first ones."""
    if outputs.shape[1] != width:
        raise OtherOutputsError(
            f"some samples have {outputs.shape[1]} outputs, and others {width}; a kernel between "
            f"them needs as many for each: pad or pool them"
        )


def feedable(x: Tensor) -> Tensor:
    """Return a copy of the samples for a forward pass, which may write to it.

    Real samples are part of a graph of autograd: re-entrant checkpoints lose the gradients of
    their parameters if no input requires any, and leaves of a graph cannot be written to.
    """
    if not (x.is_floating_point() or x.is_complex()):
        return x.clone()
    return x.detach().clone() + torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)


def reachable(outputs: Tensor, parameters: Mapping[str, Tensor]) -> tuple[set[str], bool]:
    """Find the parameters to which autograd's graph leads from the outputs.

    Args:
        outputs: the outputs of a forward pass.
        parameters: the parameters to look for, by name.

    Returns:
        Their names, and whether a re-entrant checkpoint hides part of the graph; then no names.
    """
    names = {id(p): name for name, p in parameters.items()}
    found: set[str] = set()
    for node in _graph(outputs):
        if node.name() == "CheckpointFunctionBackward":
            return set(), True
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
    return found, False


def rounding_in_graph(outputs: Tensor) -> float:
    """Return the coarsest relative rounding of the numbers that autograd's graph has gradients of.

    Operations under autocast are coarser than the parameters and the outputs may tell, and so are
    convolutions and products of matrices on a GPU for which TF32 is allowed.
    """
    made = [number for node in _graph(outputs) for number in node._input_metadata]
    dtypes = {number.dtype for number in made if number.dtype.is_floating_point}
    on_gpu = any(number.device.type == "cuda" for number in made)
    tf32 = on_gpu and torch.float32 in dtypes and _tf32_is_allowed()
    return max([_TF32 * tf32, *(torch.finfo(dtype).eps for dtype in dtypes)])


def _tf32_is_allowed() -> bool:
    backends = getattr(torch.backends.cudnn, "conv", None), torch.backends.cuda.matmul
    return any(getattr(b, "fp32_precision", "tf32") == "tf32" for b in backends)  # or older torch


def _graph(outputs: Tensor) -> Iterator[Node]:
    """Yield the nodes of autograd's graph, from the outputs on."""
    pending: list[Node | None] = [outputs.grad_fn]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending.extend(child for child, _ in node.next_functions)


def shown(model: nn.Module, name: str) -> str:
    """Return the name of a parameter or module in the user's own model.

    Args:
        model: the model that the engine was given; if it is a wrapper of conescope's, its
            attribute `wrapped_as` is the name under which it holds the user's model.
        name: a name in that model.
    """
    prefix = getattr(model, "wrapped_as", None)
    if prefix is None:
        return name
    return "" if name == prefix else name.removeprefix(f"{prefix}.")


def describe_failure(error: BaseException, model: nn.Module) -> str:
    """Describe an error in one line, with the hook that raised it, if one did.

    Args:
        error: the error as it was caught.
        model: the model, whose modules may carry hooks of other libraries.
    """
    said = (str(error).strip() or "no message").splitlines()[0]
    told = f"{type(error).__name__}: {said}{_row_asked_for(error, model)}"
    hooks = _hooks(model)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in hooks:
            module, package = hooks[frame.f_code]
            return (
                f"{told}, raised by a hook of {package} on module {module!r}; remove that hook, or "
                f"measure the model without {package}'s wrapper"
            )
    return told


def _example(output: object) -> str:
    """Return an example of how to take the outputs out of what a model returns."""
    keys = output if isinstance(output, Mapping) else {}
    if "logits" in keys:
        return ", such as model(ids).logits[:, -1], those of a sequence's next token"
    known = next((key for key, value in keys.items() if isinstance(value, Tensor)), None)
    if known is not None:
        return f", such as model(x)[{known!r}]"
    sequence = isinstance(output, tuple | list) and any(isinstance(t, Tensor) for t in output)
    return ", such as model(x)[0]" if sequence else ""


def _row_asked_for(error: BaseException, model: nn.Module) -> str:
    """Say which row of which embedding an operation asked for, if that is what went wrong."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is not F.embedding.__code__:
            continue
        rows, weight = frame.f_locals["input"], frame.f_locals["weight"]
        names = (name for name, p in model.named_parameters() if p.data_ptr() == weight.data_ptr())
        table = f"embedding {shown(model, next(names, '?'))!r}"
        if rows.dtype not in (torch.int64, torch.int32):
            return f": {table} takes whole numbers of int64 or int32, such as x.long()"
        outside = rows[(rows < 0) | (rows >= len(weight))]
        if outside.numel() > 0:
            row = int(outside[0])
            return (
                f": {table} has rows 0 to {len(weight) - 1}, and is asked for row {row}: a token "
                f"of another vocabulary ((x == {row}).nonzero() finds it), or a position beyond "
                f"the longest sequence"
            )
    return ""


def _hooks(model: nn.Module) -> dict[CodeType, tuple[str, str]]:
    """Map the code of each hook to the name of its module and the package that it comes from."""
    found: dict[CodeType, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for kind in _HOOKS:
            for hook in getattr(module, kind).values():
                function = _function(hook)
                code = getattr(function, "__code__", None)
                if isinstance(code, CodeType):
                    package = (getattr(function, "__module__", None) or "?").partition(".")[0]
                    found.setdefault(code, (shown(model, name), package))
    return found


def _function(hook: Any) -> Any:
    """Return the function behind partial applications, methods and callable objects."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    if not hasattr(hook, "__code__") and hasattr(type(hook), "__call__"):  # noqa: B004
        hook = getattr(type(hook).__call__, "__func__", type(hook).__call__)
    return hook


def different_weights(outputs: Tensor) -> Tensor:
    """Return a power of two for each sample of outputs [b, c]; they tell the samples apart, [b]."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randperm(len(outputs), generator=generator, device="cpu") % 4
    return (0.5**exponents).to(outputs)
