"""Refuse models whose samples depend on each other: the kernel between them is not defined."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from conescope.engine.arguments import is_finite
from conescope.engine.mixing import describe_mixing
from conescope.engine.tracing.forward import (
    feedable,
    forward,
    reachable,
    rounding_in_graph,
    shown,
)
from conescope.engine.tracing.writes import same_attributes
from conescope.errors import ModelError

_LARGEST = 0.05
"""Relative to the outputs; larger differences are not taken for rounding even in half precision."""
_ROUNDING: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()
"""Model → the coarsest rounding, relative, of the numbers on which its outputs depend."""
_ALONE = 16
"""When a model is first measured, batches of up to so many samples are compared with every sample
alone, larger ones with so many parts."""
_AGAIN = 2
"""Samples that are computed again each later time."""


def refuse_coupling_modules(model: nn.Module) -> None:
    """Raise `ModelError`, naming the module and the cure, for batch statistics and dropout."""
    for name, module in model.named_modules():
        where = f"module {shown(model, name)!r} ({type(module).__name__})"
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
        if getattr(module, "scale_grad_by_freq", False):
            raise ModelError(
                f"{where} scales gradients by how often a token occurs in the batch, so that they "
                f"depend on the other samples; build it with scale_grad_by_freq=False"
            )
        names = ("p",) if isinstance(module, _DropoutNd) else ("dropout", "attention_dropout")
        for rate in (getattr(module, name, 0.0) for name in names):
            if module.training and isinstance(rate, float) and rate > 0.0:
                raise ModelError(f"{where} drops at random (p={rate}); call model.eval()")


def first_pass(model: nn.Module, x: Tensor) -> Tensor:
    """Run the first and the last sample in one batch, and note the rounding of their outputs.

    A single sample is run twice in one batch, and compared with itself alone: several are compared
    where the kernel is computed.

    Args:
        model: the network.
        x: n samples.

    Returns:
        An empty tensor [0, c] of the outputs' dtype and device.

    Raises:
        ModelError: if the model rejects the samples, or their outputs are not finite; of a single
            sample also if its outputs depend on its batch.
    """
    batch = x[[0, -1]]
    try:
        with same_attributes(model):
            outputs = forward(model, feedable(batch))
    except ModelError:
        if len(x) <= len(batch):
            raise
        batch = x[:_ALONE]  # the model may accept some batch sizes only
        outputs = forward(model, feedable(batch))
    _ROUNDING[model] = _rounding(model, outputs)
    together = outputs.detach()
    del outputs
    _refuse_not_finite(model, together, batch, {"x": x})
    if len(x) == 1:
        compare(model, batch, together, ([i] for i in range(len(batch))))
    return together[:0]


def compare_pair(model: nn.Module, pair: Tensor) -> None:
    """Compare two samples in one batch with each of them alone.

    Raises:
        ModelError: if their outputs differ by more than rounding.
    """
    compare(model, pair, forward(model, feedable(pair)).detach(), ([0], [1]))


def compare(model: nn.Module, x: Tensor, together: Tensor, parts: Iterable[list[int]]) -> None:
    """Compare the outputs of a batch with those of parts of it.

    Args:
        model: the network.
        x: the batch, [b, …].
        together: its outputs, [b, c].
        parts: numbers of the samples of each part.

    Raises:
        ModelError: if they differ by more than rounding.
    """
    tolerance = float(_tolerance(model, together).median())
    for part in parts:
        try:
            alone = forward(model, feedable(x[part])).detach()
        except ModelError as error:
            raise ModelError(
                f"the model takes a batch of {len(x)} samples, but not {len(part)} of them: its "
                f"outputs for a sample depend on the batch: "
                f"{describe_mixing(model, x, part[0], tolerance)} ({error})"
            ) from error
        compare_part(model, x, together, part, alone)


def compare_part(
    model: nn.Module, x: Tensor, together: Tensor, part: list[int], alone: Tensor
) -> None:
    """Compare the outputs of a batch [b, c] with those of a part of it, [p, c].

    Raises:
        ModelError: if they differ by more than rounding.
    """
    if alone.shape[1] != together.shape[1]:
        raise ModelError(
            f"the number of outputs of a sample changes with its batch ({together.shape[1]} in a "
            f"batch of {len(x)}, {alone.shape[1]} in one of {len(part)}); return as many for each"
        )
    tolerance = _tolerance(model, together)
    off = ((together[part] - alone).abs() > tolerance).any(dim=1)
    if bool(off.any()):
        sample = part[int(off.nonzero()[0])]
        raise ModelError(
            f"a sample's outputs change with the others in its batch, so that the kernel between "
            f"samples is not defined; "
            f"{describe_mixing(model, x, sample, float(tolerance.median()))}"
        )


def _tolerance(model: nn.Module, outputs: Tensor) -> Tensor:
    """Estimate what rounding may change in each output, [c].

    The tolerance follows the size of each output, so that one far above most, such as a masked
    logit, does not loosen the others; but it is at least that of the median size.
    """
    sizes = outputs.abs().amax(dim=0)
    share = min(1e3 * max(rounding_of(model), torch.finfo(outputs.dtype).eps), _LARGEST)
    return share * torch.maximum(sizes, sizes.median())


def _rounding(model: nn.Module, outputs: Tensor) -> float:
    """Return the coarsest relative rounding of the numbers on which outputs depend."""
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    found, opaque = reachable(outputs, named)
    used = named if opaque else found
    coarsest = max((torch.finfo(named[name].dtype).eps for name in used), default=0.0)
    return max(coarsest, rounding_in_graph(outputs))


def rounding_of(model: nn.Module) -> float:
    """Return the coarsest relative rounding that was found when the model was first run."""
    return _ROUNDING.get(model, 0.0)


class Recheck:
    """The choice of the samples that are computed again without the others in their batch.

    When samples are first measured, these are all samples of all batches; later they are a few of
    one batch, drawn anew for each kernel.

    Args:
        model: the network.
        thorough: whether the samples are measured for the first time.
        generator: draws the samples.
        verify: whether the batches may be larger than those whose gradients were compared.
        done: called when the kernel is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        thorough: bool,
        generator: torch.Generator,
        verify: bool,
        done: Callable[[], None],
    ) -> None:
        self._model, self._generator = model, generator
        self.thorough, self.verify, self.done = thorough, verify, done
        self._chosen, self._next = 0, 0
        self._seen: set[tuple[int, int]] = set()

    def begin(self) -> None:
        """Choose all samples, also those that were compared before, by routes that are new."""
        self.thorough = True
        self._seen.clear()

    def expect(self, x: Tensor, block: int) -> None:
        """Choose one of the batches that will follow, or compare here if each is of one sample.

        Args:
            x: all samples.
            block: the samples of a batch.

        Raises:
            ModelError: if samples depend on each other.
        """
        if block == 1 and self.thorough and len(x) > 1:
            compare_pair(self._model, x[[0, -1]])
        batches = -(-len(x) // block)
        self._chosen = int(torch.randint(batches, (), generator=self._generator, device="cpu"))
        self._next = 0

    def parts(self, x: Tensor) -> list[list[int]]:
        """Return the numbers of a batch's samples to compute again, part by part; none for most."""
        number, self._next = self._next, self._next + 1
        if len(x) < 2 or not (self.thorough or number == self._chosen):
            return []
        order = torch.randperm(len(x), generator=self._generator, device="cpu")
        if not self.thorough:
            return [order[: min(_AGAIN, len(x) - 1)].tolist()]
        key = x.data_ptr(), len(x)
        if key in self._seen:  # was compared for other cotangents
            return []
        self._seen.add(key)
        return [part.tolist() for part in order.split(-(-len(x) // _ALONE))]

    def refuse_not_finite(
        self, outputs: Tensor, batch: Tensor, given: Mapping[str, Tensor | None]
    ) -> None:
        """Raise `ModelError` if outputs are NaN or infinite.

        Args:
            outputs: those of a batch.
            batch: its samples.
            given: all samples, by the name of the argument.
        """
        _refuse_not_finite(self._model, outputs, batch, given)


def _refuse_not_finite(
    model: nn.Module, outputs: Tensor, batch: Tensor, given: Mapping[str, Tensor | None]
) -> None:
    if is_finite(outputs):
        return
    number = int((~torch.isfinite(outputs)).any(dim=1).nonzero()[0])
    kind = "NaN" if bool(outputs[number].isnan().any()) else "infinite"
    if torch.float16 in {outputs.dtype, batch.dtype, *(p.dtype for p in model.parameters())}:
        cure = "float16 overflows above 65,504: measure model.float() on x.float()"
    elif batch.is_floating_point():
        cure = "look at the scale of the inputs, and at divisions in the model"
    else:
        cure = "a sequence without a token beside padding, say, has a mean of 0/0; leave it out"
    raise ModelError(
        f"the model's outputs of sample {_place(batch[number], given)} are {kind}, while its "
        f"weights are finite; {cure}"
    )


def _place(sample: Tensor, given: Mapping[str, Tensor | None]) -> str:
    """Return where a sample is among all samples, such as "x[3]"."""
    for name, samples in given.items():
        for number, other in enumerate(() if samples is None else samples):
            if other.shape == sample.shape and torch.equal(other, sample):
                return f"{name}[{number}]"
    raise AssertionError("a batch holds samples that were given")
