"""Find the first operation of a model that makes samples depend on each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from conescope.engine.tracing.forward import FORWARD_ERRORS, feedable, shown

_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "roll", "flip", "diff")
_STATISTICS = ("mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "max",
               "amax", "min", "amin", "median", "softmax", "log_softmax", "normalize",
               "batch_norm", "instance_norm", "logsumexp", "prod")  # fmt: skip
_GENERAL_CURE = (
    "remove what mixes samples (batch statistics, sequences along the first axis) or draws at "
    "random (dropout)"
)
_MODULE = "module"
"""Stands for the operation where an output is that of a whole module."""
_REPEATS = 8
"""Times that a forward pass is repeated to find out whether it draws at random."""
_SEQUENCE_FIRST = (nn.RNNBase, nn.MultiheadAttention)

_Path = tuple[tuple[str, nn.Module], ...]
"""Modules with their names, each inside of the one before."""


@dataclass(frozen=True)
class _Step:
    """An operation of a forward pass, the modules that it is called in, and its output."""

    operation: str
    path: _Path
    output: Tensor


def describe_mixing(model: nn.Module, batch: Tensor, sample: int, tolerance: float) -> str:
    """Say where a sample's numbers first change with its batch, and the cure.

    Args:
        model: the network.
        batch: [b, …], in which the sample's outputs differ from those that it has alone.
        sample: its number in the batch.
        tolerance: largest difference that rounding makes.
    """
    alone = batch[sample : sample + 1]
    first_time = list(_steps(model, alone))
    for _ in range(_REPEATS):
        for first, second in zip(first_time, _steps(model, alone), strict=False):
            same_shape = first.output.shape == second.output.shape
            if same_shape and _differ(first.output, second.output, 0.0):
                return (
                    f"the numbers of {_place(model, first)} change from call to call; draw nothing "
                    f"at random (dropout) and keep nothing from one call to the next"
                )
    whole = list(_steps(model, batch))
    for kind in (lambda _: True, lambda step: step.operation == _MODULE):
        # where operations differ, outputs can still be compared module by module
        pairs = zip(filter(kind, whole), filter(kind, first_time), strict=False)
        for together, single in pairs:
            if together.operation != single.operation or together.path != single.path:
                break
            if _mixes(together.output, single.output, len(batch), sample, tolerance):
                return f"first at {_place(model, together)}; {_cure(model, together)}"
    return _GENERAL_CURE


def describe_gradient_mixing(
    model: nn.Module, batch: Tensor, cotangent: Tensor, tolerance: float
) -> str:
    """Say where gradients first mix the samples of a batch; "" if no module does it.

    Args:
        model: the network.
        batch: two or more samples, [b, …].
        cotangent: the cotangent of each sample's outputs, [c].
        tolerance: largest difference that is allowed, relative to the largest gradient.
    """
    together = _boundaries(model, batch, cotangent)
    for sample in range(len(batch)):
        alone = _boundaries(model, batch[sample : sample + 1], cotangent)
        found: list[_Path] = []
        for (path, *whole), (_, *single) in zip(together, alone, strict=False):
            kept = [
                _is_of_sample(a, b, sample, tolerance) for a, b in zip(whole, single, strict=True)
            ]
            if kept == [True, False]:
                found.append(path)
        if found:
            return f"in {_module(model, max(found, key=len))}"
    return ""


def _is_of_sample(
    together: Tensor | None, alone: Tensor | None, sample: int, tolerance: float
) -> bool:
    """Return whether a batch's gradient is, for one sample, that of the sample alone."""
    if together is None or alone is None:
        return together is alone
    if together.dim() != alone.dim() or together.dim() == 0:
        return True  # no axis numbers the samples
    if together.shape[1:] != alone.shape[1:] or len(together) < (sample + 1) * len(alone):
        return True
    part = together[sample * len(alone) : (sample + 1) * len(alone)]
    largest = float(alone.abs().max()) if alone.numel() else 0.0
    return not _differ(part, alone, tolerance * largest)


def _boundaries(
    model: nn.Module, x: Tensor, cotangent: Tensor
) -> list[tuple[_Path, Tensor | None, Tensor | None]]:
    """Return, for each call of a module, its path and the gradients at its output and input."""
    calls: list[tuple[_Path, Tensor, Tensor]] = []
    path: list[tuple[str, nn.Module]] = []
    sources: list[Tensor | None] = []
    names = {module: name for name, module in model.named_modules()}

    # a module gets views of its input and returns a view of its output, so that hooks on these
    # change gradients between the two places that are compared
    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        path.append((names[module], module))
        sources.append(_first_tensor(inputs))
        return tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in inputs)

    def leave(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        source, inside = sources.pop(), tuple(path)
        path.pop()
        if source is None or not isinstance(output, Tensor):
            return None
        if not source.requires_grad or not output.requires_grad:
            return None
        output = output.view_as(output)
        calls.append((inside, output, source))
        return output

    with _hooked(names, enter, leave):
        outputs = model(feedable(x))
    places = [place for _, result, source in calls for place in (result, source)]
    scalar = (outputs.reshape(len(x), -1) @ cotangent).sum()
    found = torch.autograd.grad(scalar, places, allow_unused=True) if places else ()
    pairs = zip(found[::2], found[1::2], strict=True)
    return [(calls[number][0], *pair) for number, pair in enumerate(pairs)]


def _first_tensor(nested: object) -> Tensor | None:
    if isinstance(nested, Tensor):
        return nested
    if isinstance(nested, tuple | list):
        return next((t for t in map(_first_tensor, nested) if t is not None), None)
    return None


def _mixes(together: Tensor, alone: Tensor, b: int, sample: int, tolerance: float) -> bool:
    """Return whether an operation's output for one sample changes with the batch."""
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

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        recorder.keep(_MODULE, output)
        recorder.path.pop()

    with _hooked(names, enter, leave), recorder, suppress(*FORWARD_ERRORS):
        model(x.clone())
    return iter(recorder.steps)


@contextmanager
def _hooked(modules: Iterable[nn.Module], enter: Any, leave: Any) -> Iterator[None]:
    """Call `enter` before and `leave` after the forward pass of every module."""
    hooks = [module.register_forward_pre_hook(enter) for module in modules]
    hooks += [module.register_forward_hook(leave) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _StepRecorder(TorchFunctionMode):
    """Keeps the output of every operation, with the modules that it was called in."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.path: list[tuple[str, nn.Module]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in ("__get__", "__set__"):
            self.keep(name.strip("_"), args[0] if name == "__setitem__" else result)
        return result

    def keep(self, operation: str, result: object) -> None:
        """Keep a copy of the first tensor in an operation's output."""
        tensor = _first_tensor(result)
        if tensor is not None and tensor.layout is torch.strided:
            self.steps.append(_Step(operation, tuple(self.path), tensor.detach().clone()))


def _place(model: nn.Module, step: _Step) -> str:
    place = _module(model, step.path)
    return place if step.operation == _MODULE else f"{step.operation!r} in {place}"


def _module(model: nn.Module, path: _Path) -> str:
    """Describe the innermost module of a path."""
    name, module = path[-1] if path else ("", model)
    name, kind = shown(model, name), type(module).__name__
    return f"module {name!r} ({kind})" if name else f"the model's own forward pass ({kind})"


def _cure(model: nn.Module, step: _Step) -> str:
    for name, module in reversed(step.path):
        if isinstance(module, _SEQUENCE_FIRST) and not module.batch_first:
            return (
                f"module {shown(model, name)!r} ({type(module).__name__}) takes the first axis for "
                f"time: build it with batch_first=True"
            )
    if step.operation in _ALONG:
        return "it runs along the axis of the samples: let it run along another one"
    if step.operation in _STATISTICS:
        return "it takes a statistic over the batch: take it over each sample alone"
    return _GENERAL_CURE
