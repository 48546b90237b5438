"""Refusal of models whose samples depend on each other: they have no per-sample tangent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from conescope.errors import ModelError


def refuse_coupling_modules(model: nn.Module) -> None:
    """Raise `ModelError`, naming the module and the cure, for batch statistics and dropout."""
    for name, module in model.named_modules():
        where = f"module {name!r} ({type(module).__name__})"
        if isinstance(module, _BatchNorm):
            if module.training:
                raise ModelError(
                    f"{where} is in training mode: it mixes the samples, so their kernel is not "
                    f"defined; call model.eval()"
                )
            if module.running_mean is None:
                raise ModelError(
                    f"{where} keeps no running statistics and mixes the samples even in "
                    f"evaluation mode; build it with track_running_stats=True"
                )
        rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(rate, float) and rate > 0.0:
            raise ModelError(f"{where} drops at random (p={rate}); call model.eval()")


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs as a matrix [n, c].

    Raises:
        ModelError: if the model rejects the input, or its output is no batch of numbers.
    """
    try:
        output = model(x)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise ModelError(
            f"the model rejects an input of shape {tuple(x.shape)} and type {x.dtype}: {error}; "
            f"check shape and dtype (x.to(…)) against what the model expects"
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            f"returns the outputs whose kernel is wanted"
        )
    if output.dim() == 0 or len(output) != len(x):
        raise ModelError(
            f"{len(x)} samples give outputs of shape {tuple(output.shape)}; the first dimension "
            f"must number the samples"
        )
    if not output.is_floating_point():
        raise ModelError(f"the outputs are {output.dtype}, which has no derivative")
    return output.reshape(len(x), -1)


def refuse_dependent_rows(model: nn.Module, x: Tensor) -> Tensor:
    """Compare the first of a batch of two samples with the same one alone.

    Returns:
        The outputs of the two, [2, c].

    Raises:
        ModelError: if a sample's outputs depend on the others in its batch, or are not finite.
    """
    pair = x[:2] if len(x) > 1 else x[[0, 0]]
    together = forward(model, attachable(pair)).detach()
    alone = forward(model, attachable(pair[:1])).detach()
    if not bool(torch.isfinite(together).all()):
        raise ModelError("the model's outputs are NaN or infinite on these inputs")
    scale = float(together.abs().max())
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} | {together.dtype}
    tolerance = scale * 1e3 * max(torch.finfo(dtype).eps for dtype in dtypes)
    if float((together[:1] - alone).abs().max()) > tolerance:
        raise ModelError(
            f"a sample's outputs change with the others in its batch (or from call to call)"
            f"{_culprit(model, pair, tolerance)}: the kernel between samples is not defined; "
            f"remove what mixes samples (batch statistics) or draws at random (dropout)"
        )
    return together


def attachable(x: Tensor) -> Tensor:
    """A copy of the samples that requires gradients if it can.

    Re-entrant checkpoints lose the gradients of their parameters if no input requires any.
    """
    copy = x.detach().clone()
    return copy.requires_grad_() if copy.is_floating_point() else copy


def _culprit(model: nn.Module, pair: Tensor, tolerance: float) -> str:
    """Names the first module whose output differs between the batch and the samples alone."""
    names = {module: name for name, module in model.named_modules() if name}
    outputs: list[tuple[str, Tensor]] = []

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() > 0:
            outputs.append((names[module], output))

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        for batch in (pair, pair[:1]):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    half = len(outputs) // 2
    for (name, together), (_, alone) in zip(outputs[:half], outputs[half:], strict=False):
        if together[:1].shape == alone.shape and bool(
            ((together[:1] - alone).abs() > tolerance).any()
        ):
            return f", first at module {name!r}"
    return ""
