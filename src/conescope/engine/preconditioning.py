"""The diagonal preconditioner of a kernel: what it has to be, and how gradients meet it.

K_P = J P Jᵀ is the kernel of the rows J P^½, so that each entry of every gradient is multiplied by
the root of its entry of P before products are made. That is done wherever gradients of parameters
are whole: in rows, in gradients that are formed block by block, and at the tokens of embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from conescope.engine.arguments import is_finite, unwrapped
from conescope.engine.layers.call import OuterCall
from conescope.engine.tracing.forward import shown
from conescope.engine.tracing.survey import Survey, with_formed_gradients
from conescope.errors import KernelError


class Roots:
    """The square roots of a diagonal preconditioner's entries.

    Args:
        model: the network.
        parameters: those whose kernel is wanted, by name.
        given: parameter name → entries of P, of its shape; a tied weight may have any of its names.
        dtype: the dtype of the kernel.

    Attributes:
        uniform: the parameters all of whose entries are equal.
        fixed: those all of whose entries are zero.
        bytes: what they hold, with the copies in the order of a weight's outer products.

    Raises:
        KernelError: if entries are missing, of another shape, negative or not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        given: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        owners = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        owners |= dict(model.named_parameters(remove_duplicate=False))
        unknown = [name for name in given if name not in owners]
        if unknown:
            raise KernelError(
                f"preconditioner names {unknown[0]!r}, which is no parameter of the model; take "
                f"the names of named_parameters()"
            )
        found: dict[int, Tensor] = {}
        for name, entries in given.items():
            held = found.setdefault(id(owners[name]), entries)
            if held is not entries and not torch.equal(held, entries):
                raise KernelError(
                    f"preconditioner has two different entries for one tied weight, one of them "
                    f"under {name!r}; give them under one of its names"
                )
        self._roots: dict[str, Tensor] = {}
        for name, p in parameters.items():
            if id(p) not in found:
                raise KernelError(
                    f"preconditioner has no entries for parameter {shown(model, name)!r}; give "
                    f"them, or leave it out of the kernel by params=list(preconditioner)"
                )
            entries = _real_entries(found[id(p)], p, shown(model, name))
            self._roots[name] = entries.detach().sqrt().to(p.device, dtype)
        self.fixed = {name for name, root in self._roots.items() if not bool(root.any())}
        if len(self.fixed) == len(self._roots):
            raise KernelError(
                "preconditioner is zero everywhere, and so is the kernel; give entries above zero"
            )
        self.uniform = {name for name, root in self._roots.items() if bool((root == root[0]).all())}
        sizes = [root.numel() for root in self._roots.values()]
        self.bytes = 2 * (sum(sizes) + max(sizes)) * dtype.itemsize
        self._arranged: dict[tuple[object, ...], Tensor] = {}

    def scaled(self, name: str, gradients: Tensor) -> Tensor:
        """Return gradients [..., p] of a parameter, in real numbers, times its roots."""
        return gradients * self._roots[name].to(gradients.device)

    def formed(self, survey: Survey) -> Survey:
        """Return a survey whose gradients are whole wherever they are to be multiplied."""
        return with_formed_gradients(survey, self.uniform)

    def of_weight(self, name: str, call: OuterCall) -> Tensor:
        """Return the roots of a weight as a call's outer products have its entries, [g, o, a]."""
        key = name, *call.joins
        if key not in self._arranged:
            shape, root = call.shape, self._roots[name]
            empty = root.new_zeros(1, shape.groups, shape.outputs, shape.inputs)
            empty.requires_grad_()
            with torch.enable_grad():  # the transpose of a change of order is its inverse
                arranged = call.arranged(empty)
            (self._arranged[key],) = torch.autograd.grad(arranged, empty, root[None])
        return self._arranged[key][0]

    def multiply(self, name: str, cotangent: Tensor, call: OuterCall) -> None:
        """Multiply a weight's cotangents by its roots, where these depend on no output and feature.

        Args:
            name: the weight.
            cotangent: at the output of a call, [b, g, o, T]; changed.
            call: the call.
        """
        if name in self.uniform:
            cotangent *= self._roots[name][0]
        elif call.shape.sparse:
            shape = len(cotangent), 1, call.shape.positions, 1
            tokens = torch.zeros(shape, dtype=torch.int64, device=cotangent.device)
            call.write_features(tokens, 0, len(cotangent))
            by_output = self.of_weight(name, call)[0]
            cotangent *= by_output[:, tokens[:, 0, :, 0]].movedim(1, 0)[:, None]


def _real_entries(entries: Tensor, p: Tensor, name: str) -> Tensor:
    """Return entries of P as a vector of real numbers, two for each complex parameter.

    Raises:
        KernelError: if they do not fit the parameter.
    """
    where = f"preconditioner[{name!r}]"
    if entries.layout is not torch.strided or entries.is_meta:
        raise KernelError(f"{where} is sparse or on the meta device; give a plain tensor of values")
    if entries.shape != p.shape or (entries.is_complex() and not p.is_complex()):
        kind = " complex" if entries.is_complex() else ""
        raise KernelError(
            f"{where} has the shape {tuple(entries.shape)}{kind}, but the parameter has "
            f"{tuple(p.shape)}; give one real number for each entry of the parameter"
        )
    entries = entries.to(torch.complex128 if entries.is_complex() else torch.float64)
    if entries.is_complex():
        entries = torch.view_as_real(entries.resolve_conj())
    elif p.is_complex():
        entries = entries[..., None].expand(*entries.shape, 2)
    if not is_finite(entries):
        kind = "NaN" if bool(entries.isnan().any()) else "infinite"
        raise KernelError(f"{where} holds {kind} entries; look at the optimiser's state")
    if bool((entries < 0).any()):
        raise KernelError(
            f"{where} holds negative entries, down to {float(entries.min()):.3g}; a kernel needs "
            f"entries of at least 0"
        )
    return entries.flatten()
