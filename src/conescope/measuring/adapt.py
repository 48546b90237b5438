"""Adapt any model to the engine, which takes modules from one tensor to one tensor.

A model of several inputs or of structured outputs is wrapped in a module whose batch is the numbers
of the samples: it looks the inputs up, and takes the outputs from what the model returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conescope.engine import entk, estimate_entk, project
from conescope.engine.arguments import (
    choose_parameters,
    convention,
    refuse_absent_weights,
    unwrapped,
)
from conescope.engine.problem import prepared
from conescope.engine.tracing.forward import FORWARD_ERRORS, describe_failure, feedable
from conescope.engine.tracing.untouched import untouched
from conescope.engine.tracing.writes import watching_writes
from conescope.errors import KernelError, ModelError
from conescope.kernel.estimates import PROJECTED_DRAWS, SEED
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel, Outputs
from conescope.measuring.pooling import POOLS
from conescope.measuring.probe import Probe, copied, count, describe_probe, digest, items

Select = Callable[[Any], Tensor] | str | int
"""A way from what a model returns to its outputs: a function, or a field's name or number."""

Pool = Literal["last", "mean"]
"""Which of the outputs of a sequence of tokens is taken: that of the last one, or the mean."""

_MODEL = "model"


@dataclass(frozen=True)
class Adapted:
    """A model and a probe, made ready for the engine.

    Attributes:
        module: maps a batch of `x` to outputs [b, …]; holds the model under the name "model".
        x: the probe, or the numbers 0 … n − 1 of its samples; [n, …].
        params: the names in `module` of the parameters whose kernel is taken.
    """

    module: _Adapter
    x: Tensor
    params: tuple[str, ...]

    def kernel(
        self,
        outputs: Outputs = "trace",
        *,
        by_layer: bool = False,
        memory: str | float | None = None,
        preconditioner: Mapping[str, Tensor] | None = None,
    ) -> Kernel:
        """Compute the exact kernel on the probe, with the model's names of layers and parameters.

        Raises:
            ModelError: if the model has no exact kernel as it stands.
            KernelError: if `outputs`, `memory` or `preconditioner` is wrong.
        """
        return _own_names(
            entk(
                self.module, self._here(), outputs=outputs, by_layer=by_layer, params=self.params,
                memory=memory, preconditioner=inner_names(preconditioner),
            )
        )  # fmt: skip

    def estimate(
        self,
        draws: int = 4,
        *,
        seed: int = SEED,
        memory: str | float | None = None,
        preconditioner: Mapping[str, Tensor] | None = None,
    ) -> Kernel:
        """Estimate the class trace by shared random cotangents, for models of many outputs.

        Raises:
            ModelError: as `kernel`.
            KernelError: if there are fewer than two draws; otherwise as `kernel`.
        """
        estimate = estimate_entk(
            self.module, self._here(), draws=draws, seed=seed, params=self.params, memory=memory,
            preconditioner=inner_names(preconditioner),
        )  # fmt: skip
        return _own_names(estimate)

    def project(self, dim: int, *, memory: str | float | None = None) -> Features:
        """Project per-sample gradients at random, to features whose products are an estimate.

        Raises:
            ModelError: as `kernel`.
            KernelError: if `dim` is no multiple of 8, or `memory` is wrong.
        """
        return project(
            self.module,
            self._here(),
            dim=dim,
            seed=SEED,
            draws=PROJECTED_DRAWS,
            params=self.params,
            memory=memory,
        )

    def check(self, outputs: Outputs = "trace") -> None:
        """Try the model on two samples, and make all the checks of the engine.

        Raises:
            ModelError: if the model rejects them, or has no exact kernel as it stands.
            KernelError: if `outputs` is wrong.
        """
        x = self._here()
        with untouched(self.module), watching_writes(self.module):
            try:
                output = self.module(feedable(x[[0, -1]]))
            except FORWARD_ERRORS as error:
                probe, failure = self.module.probe, describe_failure(error, self.module)
                raise ModelError(
                    f"the model rejects the probe, {describe_probe(probe)}: {failure}; give it as "
                    f"the model's forward() takes a batch"
                ) from error
        if output.dim() == 0 or len(output) != 2:
            raise ModelError(
                f"two samples give outputs of shape {tuple(output.shape)}, but the first "
                f"dimension must number the samples; choose the outputs with `select`"
            )
        with prepared(self.module, x, None, self.params, *convention(outputs)):
            pass

    def weights(self) -> str:
        """Hash the values of the parameters whose kernel is taken: 16 hexadecimal digits."""
        return digest({name: self.module.get_parameter(name).detach() for name in self.params})

    def description(self) -> dict[str, str]:
        """Describe the model, parameters, probe and outputs: equal for comparable kernels."""
        sizes = [self.module.get_parameter(name).shape for name in self.params]
        names = hashlib.sha256(repr([*zip(self.params, sizes, strict=True)]).encode()).hexdigest()
        select, pool = self.module.select, self.module.pool
        return {
            "model": type(self.module.get_submodule(_MODEL)).__name__,
            "parameters": f"{sum(s.numel() for s in sizes):,} in {len(sizes)}, {names[:16]}",
            "probe": f"{describe_probe(self.module.probe)}, {digest(self.module.probe)}",
            "select": getattr(select, "__name__", None) or str(select),
            "pool": f"at {digest(pool)}" if isinstance(pool, Tensor) else str(pool),
        }

    @property
    def device(self) -> torch.device:
        """The device on which the first of the parameters lies now."""
        return self.module.get_parameter(self.params[0]).device

    def _here(self) -> Tensor:
        return self.x.to(self.device)


def adapt(
    model: nn.Module,
    probe: Probe,
    *,
    select: Select | None = None,
    pool: Pool | Tensor | None = None,
    params: str | Iterable[str] | None = None,
) -> Adapted:
    """Make a model ready for the engine. Nothing is computed, and the model stays as it is.

    Args:
        model: any module, also compiled, or wrapped for data-parallel training.
        probe: its inputs for n samples; copied.
        select: how to get the outputs [n, …] from what the model returns. By default a tensor is
            taken as it is, and of anything else its field "logits".
        pool: for outputs [n, T, …] of T tokens, "last" for the last one or "mean" for their mean;
            tokens that the probe's "attention_mask" [n, T] leaves out do not count. Or, for a
            probe of several tensors, the place of one token in each sample, [n].
        params: names or patterns (`*`, `?`) of parameters or modules, such as
            "layers.*.attention" or "*lora_*"; None for every parameter that is not frozen.

    Raises:
        ModelError: if the model is sharded, lazy or empty, a name is unknown, or the probe is no
            batch of finite numbers.
        KernelError: if `pool` is unknown, or its places are not one for each sample.
    """
    if not isinstance(pool, Tensor) and pool is not None and pool not in POOLS:
        raise KernelError(f"pool is {pool!r}, but must be {' or '.join(map(repr, POOLS))}, or None")
    model = unwrapped(model)
    refuse_absent_weights(model)
    held = copied(probe)
    numbers = torch.arange(count(held))
    x = held if isinstance(held, Tensor) else numbers
    if isinstance(pool, Tensor) and (isinstance(held, Tensor) or pool.shape != numbers.shape):
        raise KernelError(
            f"pool holds the places of {pool.numel()} tokens, but has to hold one for each of the "
            f"{len(numbers)} samples, [{len(numbers)}], of a probe of several tensors; give as many"
        )
    chosen = tuple(f"{_MODEL}.{name}" for name in choose_parameters(model, params))
    return Adapted(_Adapter(model, held, select, pool), x, chosen)


class _Adapter(nn.Module):
    """A module that maps a probe, or the numbers of its samples, to the outputs of a model."""

    wrapped_as = _MODEL

    def __init__(
        self, model: nn.Module, probe: Probe, select: Select | None, pool: Pool | Tensor | None
    ) -> None:
        super().__init__()
        self.add_module(_MODEL, model)
        self.training = False  # the model's own modules keep their modes
        self.probe, self.select, self.pool = probe, select, pool

    def forward(self, x: Tensor) -> Tensor:
        model = self.get_submodule(_MODEL)
        if isinstance(self.probe, Tensor):
            return self._pooled(self._selected(model(x)), None, x)
        anchor = torch.zeros((), device=x.device, requires_grad=True)
        inputs = {
            name: _chosen(value, x, anchor) if isinstance(value, Tensor) else value
            for name, value in items(self.probe)
        }
        if isinstance(self.probe, Mapping):
            return self._pooled(self._selected(model(**inputs)), inputs.get("attention_mask"), x)
        return self._pooled(self._selected(model(*inputs.values())), None, x)

    def _selected(self, output: Any) -> Tensor:
        if callable(self.select):
            output = self.select(output)
        elif self.select is not None:
            output = _field(output, self.select)
        elif not isinstance(output, Tensor):
            output = _field(output, "logits")
        if not isinstance(output, Tensor):
            raise ModelError(
                f"`select` gives a {type(output).__name__}, not a tensor; let it give the outputs "
                f"whose kernel is wanted"
            )
        return output

    def _pooled(self, outputs: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
        if self.pool is None:
            return outputs
        if outputs.dim() < 3:
            raise ModelError(
                f"pool={self.pool!r} is for outputs [n, T, …] of T tokens, not of shape "
                f"{tuple(outputs.shape)}; leave it out"
            )
        if isinstance(self.pool, Tensor):
            places = self.pool.to(x.device)[x]
            return outputs[torch.arange(len(outputs), device=x.device), places]
        mask = outputs.new_ones(outputs.shape[:2]) if mask is None else mask
        return POOLS[self.pool](outputs, mask)


def _chosen(values: Tensor, numbers: Tensor, anchor: Tensor) -> Tensor:
    """Take some samples of a probe; real numbers then require a gradient.

    Re-entrant checkpointing loses the gradients of its parameters if no input requires any.
    """
    chosen = values[numbers.to(values.device)].to(numbers.device)
    return chosen + anchor.to(chosen.dtype) if chosen.is_floating_point() else chosen


def _field(output: Any, name: str | int) -> Any:
    """Take a field of a model's structured output, by name or number."""
    text = str(name)
    if text.isdecimal() and isinstance(output, tuple | list) and int(text) < len(output):
        return output[int(text)]
    if isinstance(output, Mapping) and name in output:
        return output[name]
    if not isinstance(output, Mapping) and hasattr(output, text):
        return getattr(output, text)
    fields = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise ModelError(
        f"the model returns a {type(output).__name__}{fields}, without {name!r}; say with `select` "
        f"where its outputs are, such as select=lambda out: out[0]"
    )


def inner_names(preconditioner: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return the entries of a preconditioner by the names that parameters have in `Adapted`."""
    if preconditioner is None:
        return None
    return {f"{_MODEL}.{name}": entries for name, entries in preconditioner.items()}


def _own_names(kernel: Kernel) -> Kernel:
    def own(names: Mapping[str, Any]) -> dict[str, Any]:
        return {name.partition(".")[2] or "(model)": value for name, value in names.items()}

    return replace(kernel, by_layer=own(kernel.by_layer), routes=own(kernel.routes))
