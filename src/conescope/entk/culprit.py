"""Where samples begin to depend on each other: the first operation of a model that mixes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "roll", "flip", "diff")
_STATISTICS = ("mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "max",
               "amax", "min", "amin", "median", "softmax", "log_softmax", "normalize",
               "batch_norm", "instance_norm", "logsumexp", "prod")  # fmt: skip
_REPEATS = 8
"""Times that a forward pass is repeated to find out whether it draws at random."""
_SEQUENCE_FIRST = (nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class _Step:
    """An operation of a forward pass: its name, the module that calls it, and what it gives."""

    operation: str
    path: tuple[tuple[str, nn.Module], ...]
    output: Tensor


def describe_culprit(model: nn.Module, batch: Tensor, sample: int, tolerance: float) -> str:
    """Where a sample's numbers first change with its batch, and the cure, as text.

    Args:
        model: the network.
        batch: [b, …], in which the sample's outputs are other ones than alone.
        sample: its number in the batch.
        tolerance: of differences by rounding.
    """
    alone = batch[sample : sample + 1]
    first_time = list(_steps(model, alone))
    for _ in range(_REPEATS):
        for first, second in zip(first_time, _steps(model, alone), strict=False):
            same_shape = first.output.shape == second.output.shape
            if same_shape and _differ(first.output, second.output, 0.0):
                return (
                    f"the numbers of {_place(first)} change from call to call; draw nothing at "
                    f"random (dropout) and keep nothing from one call to the next"
                )
    for together, single in zip(_steps(model, batch), first_time, strict=False):
        if together.operation != single.operation:
            break
        if _mixes(together.output, single.output, len(batch), sample, tolerance):
            return f"first at {_place(together)}; {_cure(together)}"
    return (
        "remove what mixes samples (batch statistics, sequences along the first axis) or draws at "
        "random (dropout)"
    )


def _mixes(together: Tensor, alone: Tensor, b: int, sample: int, tolerance: float) -> bool:
    """Whether an operation's output for one sample changes with the batch."""
    if together.shape == alone.shape:  # no axis numbers samples
        return _differ(together, alone, tolerance)
    if together.dim() != alone.dim():
        return False
    for axis in (0, 1):
        if axis < together.dim() and together.shape[axis] == b * alone.shape[axis]:
            size = alone.shape[axis]
            part = together.narrow(axis, sample * size, size)
            return part.shape == alone.shape and _differ(part, alone, tolerance)
    return False


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not (a.is_floating_point() or a.is_complex()):
        return not torch.equal(a, b)
    return bool(((a - b).abs() > tolerance).any())


def _steps(model: nn.Module, x: Tensor) -> Iterator[_Step]:
    recorder = _StepRecorder()
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, _: object) -> None:
        recorder.path.append((names[module], module))

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        recorder.path.pop()

    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        with recorder:
            model(x.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return iter(recorder.steps)


class _StepRecorder(TorchFunctionMode):
    """Keeps what every operation gives, with the modules inside of which it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.path: list[tuple[str, nn.Module]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not name.startswith("__get") and not name.startswith("__set"):
            outputs = result if isinstance(result, tuple | list) else [result]
            tensors = [t for t in outputs if isinstance(t, Tensor) and t.layout is torch.strided]
            for tensor in tensors[:1]:
                copied = tensor.detach().clone()
                self.steps.append(_Step(name.strip("_"), tuple(self.path), copied))
        return result


def _place(step: _Step) -> str:
    name, module = step.path[-1] if step.path else ("", None)
    where = f" in module {name!r}" if name else " in the model's own forward pass"
    kind = f" ({type(module).__name__})" if module is not None else ""
    return f"{step.operation!r}{where}{kind}"


def _cure(step: _Step) -> str:
    for name, module in reversed(step.path):
        if isinstance(module, _SEQUENCE_FIRST) and not module.batch_first:
            return (
                f"module {name!r} ({type(module).__name__}) takes the first axis for time: build "
                f"it with batch_first=True"
            )
    if step.operation in _ALONG:
        return "it runs along the axis of the samples: let it run along another one"
    if step.operation in _STATISTICS:
        return "it takes a statistic over the batch: take it over each sample alone"
    return (
        "remove what mixes samples (batch statistics, sequences along the first axis) or draws at "
        "random (dropout)"
    )
