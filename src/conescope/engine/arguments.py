"""Check the arguments of `entk`: the samples, the parameters chosen, and the cotangents."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from conescope.engine.compute.shape import Pairing
from conescope.engine.tracing.forward import shown
from conescope.errors import KernelError, ModelError
from conescope.kernel.matrix import Outputs

_UNFREEZE = "unfreeze some (requires_grad_(True)) or name them in `params`"
_QUANTISED = (
    "its weights are quantised to whole numbers: measure the model that they were made of, or "
    "adapters of real numbers on it"
)
_MOST_DRAWS = 2**20


class AbsentOutputError(KernelError):
    """An output is asked for that the model does not have, or did not when it was first run."""


@dataclass(frozen=True)
class Cotangents:
    """The vectors v over the outputs whose gradients ∂(v·f)/∂θ make up a kernel.

    They are made a few at a time: the identity of a whole vocabulary would fill the memory.

    Attributes:
        count: q, the number of vectors.
        width: c, the number of outputs of a sample.
        like: an empty tensor of the outputs' dtype and device.
        chosen: the vectors [q, c]; None for the c unit vectors.
    """

    count: int
    width: int
    like: Tensor
    chosen: Tensor | None = None

    @classmethod
    def of(cls, outputs: Outputs, width: int, like: Tensor) -> Cotangents:
        """Return the cotangents of a convention.

        Raises:
            KernelError: if `outputs` is no convention and no index in 0 … c − 1.
        """
        if outputs in ("trace", "full"):
            return cls(width, width, like.new_empty(0))
        if outputs == "sum":
            return cls.from_matrix(like.new_ones(1, width))
        if isinstance(outputs, bool) or not isinstance(outputs, Integral):
            raise KernelError(
                f'outputs is "trace", "full", "sum" or the index of one output, not {outputs!r}'
            )
        if not 0 <= outputs < width:
            raise AbsentOutputError(
                f"output {outputs} is out of range: the model has {width} outputs, "
                f"numbered 0 to {width - 1}; choose one of these"
            )
        v = like.new_zeros(1, width)
        v[0, int(outputs)] = 1
        return cls.from_matrix(v)

    @classmethod
    def signs(cls, count: int, width: int, seed: int, like: Tensor) -> Cotangents:
        """Draw vectors of independent signs ±1, the same on every device."""
        generator = torch.Generator().manual_seed(int(seed))
        signs = torch.randint(0, 2, (count, width), generator=generator, device="cpu")
        return cls.from_matrix((2 * signs - 1).to(like))

    @classmethod
    def normal(cls, width: int, seed: int, like: Tensor) -> Cotangents:
        """Draw one vector of independent normal entries, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return cls.from_matrix(torch.randn(1, width, generator=generator, device="cpu").to(like))

    @classmethod
    def from_matrix(cls, chosen: Tensor) -> Cotangents:
        """Take the rows of a matrix [q, c]."""
        return cls(len(chosen), chosen.shape[1], chosen.new_empty(0), chosen)

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Tensor:
        """Return the vectors start … stop − 1, [stop − start, c]."""
        stop = min(stop, self.count)
        if self.chosen is not None:
            return self.chosen[start:stop]
        vectors = self.like.new_zeros(stop - start, self.width)
        numbers = torch.arange(start, stop, device=vectors.device)
        vectors[numbers - start, numbers] = 1
        return vectors


Convention = Callable[[int, Tensor], Cotangents]
"""From the number of outputs, and an empty tensor of their kind, to the cotangents."""


def convention(outputs: Outputs) -> tuple[Convention, Pairing]:
    """Return how a convention's cotangents are made for any number of outputs, and multiplied."""
    pairing = Pairing.FULL if outputs == "full" else Pairing.SUMMED
    return lambda width, like: Cotangents.of(outputs, width, like), pairing


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def choose_parameters(
    model: nn.Module, params: str | Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """Return the parameters that names or patterns choose, in the model's order.

    Args:
        model: the network.
        params: names or patterns (`*`, `?`; both match dots too) of parameters or modules; None
            for every parameter that is not frozen. A tied weight has several names.

    Returns:
        Name → parameter; a tied weight comes once, under its first name.

    Raises:
        ModelError: if a pattern matches nothing, or no parameter with a derivative is left.
    """
    named = [
        (name, p)
        for name, p in model.named_parameters(remove_duplicate=False)
        if (p.is_floating_point() or p.is_complex())
        and (isinstance(p, UninitializedParameter) or p.numel() > 0)
    ]
    if params is None:
        meant = {id(p) for _, p in named if p.requires_grad}
    else:
        meant = set()
        for pattern in [params] if isinstance(params, str) else params:
            found = {id(p) for name, p in named if _matches(pattern, name)}
            if not found:
                raise _unknown(pattern, model)
            meant |= found
    if not meant:
        if params is not None:
            raise ModelError(
                "`params` names no parameter; leave it out for all that are not frozen"
            )
        raise ModelError(
            f"the model has no trainable parameters with a derivative, so it has no tangent "
            f"kernel; {_QUANTISED if _is_quantised(model) else _UNFREEZE}"
        )
    return {name: p for name, p in model.named_parameters() if id(p) in meant}


def refuse_absent_weights(model: nn.Module) -> None:
    """Raise `ModelError`, with the cure, if values of parameters are missing in this process."""
    named = dict(model.named_parameters())
    if not named:
        raise ModelError(
            "the model has no parameters, so it has no tangent kernel; give a network with weights"
        )
    sharded = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    for name, p in named.items():
        if isinstance(p, UninitializedParameter):
            raise ModelError(f"parameter {name!r} is lazy and has no shape yet; run a batch first")
        if p.is_meta:
            offloaded = any(hasattr(m, "_hf_hook") for m in model.modules())
            cure = (
                "accelerate loads it for each call from a disk or from memory: load the model "
                "whole, without offloading, or over several devices"
                if offloaded
                else "load its values first"
            )
            raise ModelError(f"parameter {name!r} is on the meta device; {cure}")
        if p.is_inference():
            raise ModelError(
                f"parameter {name!r} was made in inference mode and has no gradient; make the "
                f"model outside of torch.inference_mode()"
            )
        if sharded or hasattr(p, "placements"):  # as torch's DTensor has
            raise ModelError(
                f"parameter {name!r} is sharded over processes; gather the weights in a whole "
                f"model (a state dict of full tensors) and measure that"
            )


def check_draws(draws: int, least: int, purpose: str, seed: int) -> None:
    """Raise `KernelError` unless there are enough draws, and the seed is one that torch takes."""
    if draws < least:
        some = "draw" if least == 1 else "draws"
        raise KernelError(f"{purpose} needs at least {least} {some}, not {draws!r}")
    if draws > _MOST_DRAWS:
        raise KernelError(f"draws is at most {_MOST_DRAWS:,}, not {draws!r}; a few are enough")
    if not -(2**63) <= seed < 2**64:
        raise KernelError(f"seed is a whole number, from -2**63 to 2**64 - 1, not {seed!r}")


def check_inputs(name: str, x: Tensor) -> None:
    """Raise `ModelError` unless `x` is a batch of finite numbers."""
    if x.layout is not torch.strided or x.is_nested:
        raise ModelError(
            f"`{name}` is a sparse or nested tensor; give a plain one, with samples of one shape "
            f"(.to_dense(), or padded)"
        )
    if x.dim() == 0 or len(x) == 0:
        raise ModelError(
            f"`{name}` holds no samples (shape {tuple(x.shape)}); its first dimension numbers "
            f"them, at least 1"
        )
    if x.is_meta:
        raise ModelError(f"`{name}` is on the meta device, without values; make it on another one")
    if x.numel() == 0 and not x.is_floating_point():
        raise ModelError(
            f"`{name}` holds samples without a token (shape {tuple(x.shape)}); give sequences of "
            f"at least one"
        )
    if x.is_floating_point() and not is_finite(x):
        raise ModelError(f"`{name}` holds NaN or infinite values; look at the data")


def check_parameters(model: nn.Module) -> None:
    """Raise `ModelError`, naming the parameter, if a weight is NaN or infinite."""
    for name, p in model.named_parameters():
        sparse = p.layout is not torch.strided
        if sparse or (p.is_floating_point() and p.element_size() < 2):
            kind = "sparse" if sparse else str(p.dtype).removeprefix("torch.")
            raise ModelError(
                f"parameter {shown(model, name)!r} is {kind}, for which autograd has no gradients; "
                f"measure a copy of the model with plain weights (.to_dense(), .float())"
            )
        if not is_finite(p.detach()):
            raise ModelError(
                f"parameter {shown(model, name)!r} holds NaN or infinite values; look at the "
                f"training before this step"
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite; a finite sum says so at a fraction of the cost."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _is_quantised(model: nn.Module) -> bool:
    """Return whether weights are whole numbers, or kept where autograd does not see them."""
    whole = any(not (p.is_floating_point() or p.is_complex()) for p in model.parameters())
    return whole or any("quantized" in type(m).__module__.split(".") for m in model.modules())


def _matches(pattern: str, parameter: str) -> bool:
    parts = parameter.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return not pattern or any(p == pattern or fnmatchcase(p, pattern) for p in prefixes)


def _unknown(pattern: str, model: nn.Module) -> ModelError:
    named = model.named_parameters(remove_duplicate=False)
    known = [*(name for name, _ in model.named_modules()), *(name for name, _ in named)]
    near = [name for name in difflib.get_close_matches(pattern, known, n=1) if name != pattern]
    hint = f"did you mean {near[0]!r}?" if near else "take a name of named_parameters()"
    if pattern in known:
        hint = "what it names has no real or complex numbers with a derivative"
        hint += f"; {_QUANTISED}" if _is_quantised(model) else ""
    return ModelError(
        f"`params` names {pattern!r}, which no parameter of the model matches; {hint}"
    )
