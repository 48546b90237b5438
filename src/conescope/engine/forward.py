"""A forward pass of anybody's model: outputs as a matrix, or an error that says what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conescope.engine.failure import describe_failure
from conescope.errors import ModelError

FORWARD_ERRORS = (
    RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError,
    ArithmeticError,
)  # fmt: skip
"""What a model's forward pass raises when something is wrong with its input or its code."""


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs as a matrix [n, c].

    Raises:
        ModelError: if the model rejects the input, or its output is no batch of numbers.
    """
    try:
        output = model(x)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model rejects an input of shape {tuple(x.shape)} and type {x.dtype}: "
            f"{describe_failure(error, model)}; check that model(x) works by itself, and shape and "
            f"dtype (x.to(…)) against what it expects"
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            f"returns the outputs whose kernel is wanted"
        )
    if output.dim() == 0 or len(output) != len(x):
        hint = ""
        if len(x) == 1:
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


def refuse_other_outputs(outputs: Tensor, width: int) -> None:
    """Raise `ModelError` unless outputs [b, c] have as many numbers a sample as the first ones."""
    if outputs.shape[1] != width:
        raise ModelError(
            f"some samples have {outputs.shape[1]} outputs, and others {width}; a kernel between "
            f"them needs as many for each: pad or pool them"
        )


def feedable(x: Tensor) -> Tensor:
    """A copy of the samples for a forward pass, which may write to it.

    Real samples are part of a graph of autograd: re-entrant checkpoints lose the gradients of
    their parameters if no input requires any, and leaves of a graph cannot be written to.
    """
    if not (x.is_floating_point() or x.is_complex()):
        return x.clone()
    return x.detach().clone() + torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
