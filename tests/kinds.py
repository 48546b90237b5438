"""Kinds of models that were once measured wrongly, each with its right outcome.

The outcome is a kernel, or an error whose message holds certain words.

Every row is a kind, a name, a model, its inputs and an outcome. Models are built in torch's
default dtype of the moment, so that views and copies of weights that they make fit.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import types
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from conescope.errors import KernelError, ModelError

# Outcomes


@dataclass(frozen=True)
class Right:
    """The outcome that the kernel is that of each sample's own gradients."""


@dataclass(frozen=True)
class Refused:
    """The outcome of an error whose message matches each of the words, regular expressions."""

    words: tuple[str, ...]
    errors: tuple[type[Exception], ...] = (ModelError,)


@dataclass(frozen=True)
class Either(Refused):
    """The outcome of either the right kernel or such an error."""


RIGHT = Right()


def refused(*words: str) -> Refused:
    return Refused(words)


def mixed(where: str, *cures: str) -> Refused:
    """An error that names the module in which samples begin to depend on each other."""
    return Refused((where, r"batch|samples", *cures))


# Rows


@dataclass(frozen=True)
class Row:
    """A model and its inputs, the same each time, with their outcome.

    Attributes:
        model: builds the model, in the default dtype.
        inputs: makes so many samples.
        plain: builds the model that the reference takes, if it cannot take the other.
    """

    kind: str
    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    outcome: Right | Refused
    n: int = 6
    plain: Callable[[], nn.Module] | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def build(self, dtype: torch.dtype = torch.float64, plain: bool = False) -> nn.Module:
        builder = self.plain if plain and self.plain is not None else self.model
        with default_dtype(dtype), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, but still in use
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return builder().eval()

    def samples(self, dtype: torch.dtype = torch.float64) -> Tensor:
        with default_dtype(dtype):
            torch.manual_seed(1 + zlib.crc32(self.name.encode()))
            return self.inputs(self.n)

    def parts(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return parameter → its summand of the full kernel, [n, c, n, c]; see `grams`."""
        return _parts(self, dtype)

    def expected(self, outputs: str | int, dtype: torch.dtype = torch.float64) -> Tensor:
        return pick(sum(self.parts(dtype).values()), outputs)


@cache
def _parts(row: Row, dtype: torch.dtype) -> dict[str, Tensor]:
    return grams(row.build(dtype, plain=True), row.samples(dtype))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fed(x: Tensor) -> Tensor:
    """Return a copy that requires gradients, for re-entrant checkpoints, and may be written to."""
    return x.clone().requires_grad_().clone() if x.is_floating_point() else x.clone()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return parameter → [n·c, p], by plain autograd of each sample, in the model's own dtype.

    A complex parameter counts as its real and imaginary parts. The model may be changed by it.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for i in range(len(x)):
        alone = x[i : i + 1]
        for output in model(fed(alone)).reshape(-1):
            model.zero_grad(set_to_none=True)
            if output.requires_grad:
                output.backward(retain_graph=True)
            for name, p in parameters.items():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                real = torch.view_as_real(gradient) if p.is_complex() else gradient
                rows[name].append(real.reshape(-1))
    return {name: torch.stack(row) for name, row in rows.items()}


def grams(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return parameter → the products of its gradients in float64, [n, c, n, c]."""
    parts = {}
    for name, rows in gradients(model, x).items():
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for columns in rows.split(2**19, dim=1):
            total += columns.double() @ columns.double().T
        parts[name] = total.reshape(len(x), -1, len(x), len(rows) // len(x))
    return parts


def pick(full: Tensor, outputs: str | int) -> Tensor:
    """Return a full kernel [n, c, m, c] in another convention."""
    if outputs == "full":
        return full
    if outputs == "trace":
        return torch.einsum("ikjk->ij", full)
    if outputs == "sum":
        return full.sum(dim=(1, 3))
    return full[:, outputs, :, outputs]


def some_signs(full: Tensor) -> Iterator[Tensor]:
    """Yield the kernels [n, n] of v·f for every vector v of signs, up to the sign of v."""
    classes = full.shape[1]
    for rest in itertools.product((1.0, -1.0), repeat=classes - 1):
        v = torch.tensor([1.0, *rest], dtype=full.dtype)
        yield torch.einsum("k,ikjl,l->ij", v, full, v)


# Inputs and modules


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def tokens(vocabulary: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, vocabulary, (n, *shape))


def padded(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    """Return texts of tokens from 1 on, with zeros after the end of each."""

    def make(n: int) -> Tensor:
        ids = torch.randint(1, vocabulary, (n, length))
        lengths = torch.arange(n) * 3 % (length - 1) + 2
        return ids * (torch.arange(length) < lengths[:, None])

    return make


def first_two_equal(*shape: int) -> Callable[[int], Tensor]:
    def make(n: int) -> Tensor:
        x = torch.randn(n, *shape)
        x[1] = x[0]
        return x

    return make


def weight(*shape: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(scale * torch.randn(shape))


def complex_weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.complex(torch.randn(*shape), torch.randn(*shape)))


def complex_dtype() -> torch.dtype:
    return torch.cdouble if torch.get_default_dtype() == torch.float64 else torch.cfloat


class Net(nn.Module):
    """A module of named members, whose forward pass is a function of itself and its input."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **members: object) -> None:
        super().__init__()
        self.run = run
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Mix(Net):
    """A step between layers that has no weights of its own."""


def net(run: Callable[[nn.Module, Tensor], Tensor], **members: Callable[[], object]):
    """Return a builder of a `Net` from builders of its members."""
    return lambda: Net(run, **{name: make() for name, make in members.items()})


def between(step: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Return a builder of two layers with a step between, in a module named 'mix'."""
    return net(
        lambda m, x: m.b(torch.tanh(m.mix(m.a(x)))),
        a=lambda: nn.Linear(5, 4),
        mix=lambda: Mix(lambda _, h: step(h)),
        b=lambda: nn.Linear(4, 3),
    )


def two_layers(i: int = 5, h: int = 4, o: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(i, h), nn.Tanh(), nn.Linear(h, o))


def table(kind: str, *rows: tuple) -> list[Row]:
    """Make rows of one kind from tuples (name, outcome, model, inputs[, n[, plain]])."""
    return [
        Row(kind, name, model, inputs, outcome, *more)
        for name, outcome, model, inputs, *more in rows
    ]


# 1. Sums of millions of summands, in float32

SUMS = table(
    "sums keep digits",
    ("raw matrix", RIGHT,
        net(
            lambda m, x: torch.tanh(x @ m.w) @ m.v,
            w=lambda: weight(2000, 2000, scale=2000**-0.5),
            v=lambda: weight(2000, 10, scale=2000**-0.5),
        ), normal(2000), 2),
    ("linear", RIGHT,
        lambda: two_layers(3000, 3000, 10), normal(3000), 2),
    ("linear with inputs that are all positive", RIGHT,
        lambda: two_layers(2000, 2000, 10),
        lambda n: torch.rand(n, 2000), 2),
    ("convolution", RIGHT,
        lambda: nn.Sequential(
            nn.Conv2d(256, 256, 5), nn.Tanh(), nn.Flatten(), nn.Linear(256 * 9, 10)
        ), normal(256, 7, 7), 2),
    ("convolution of groups", RIGHT,
        lambda: nn.Sequential(
            nn.Conv1d(512, 1024, 9, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(1024 * 4, 10)
        ), normal(512, 12), 2),
    ("embedding of long texts", RIGHT,
        net(
            lambda m, x: m.b(torch.tanh(m.a(m.e(x))).mean(1)),
            e=lambda: nn.Embedding(60_000, 64),
            a=lambda: nn.Linear(64, 32),
            b=lambda: nn.Linear(32, 10),
        ), tokens(60_000, 1000), 2),
    ("tied embedding", RIGHT,
        net(
            lambda m, x: (torch.tanh(m.e(x)).mean(1) @ m.e.weight.T)[:, ::6000],
            e=lambda: nn.Embedding(60_000, 64),
        ), tokens(60_000, 500), 2),
    ("raw matrix under a raw vector of gains", RIGHT,
        net(
            lambda m, x: torch.einsum("bi,io,o,ok->bk", x, m.w, m.g, m.v),
            w=lambda: weight(1500, 1500, scale=1500**-0.5),
            g=lambda: weight(1500),
            v=lambda: weight(1500, 10, scale=1500**-0.5),
        ), normal(1500), 2),
)  # fmt: skip


# 3. Samples that depend on each other

RECURRENT = ("batch_first=True",)


def recurrent(kind: type[nn.RNNBase], **options) -> Callable[[], nn.Module]:
    width = 8 * (1 + options.get("bidirectional", False))
    return net(
        lambda m, x: m.h(m.r(x)[0][:, -1]),
        r=lambda: kind(6, 8, **options),
        h=lambda: nn.Linear(width, 3),
    )


class Leak(torch.autograd.Function):
    """The identity, whose backward pass adds the mean gradient of the batch."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g + g.mean(0)


class Leak2(torch.autograd.Function):
    """The identity, whose backward pass mixes all samples but the first two, in pairs."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.cat([g[:2], g[2:] + g[2:].flip(0)]) if len(g) > 2 else g


def hooked(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the identity as a step, with a hook that changes the gradient."""

    def step(h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(change)
        return h

    return step


def last_takes_the_first(h: Tensor) -> Tensor:
    return torch.cat([h[:-1], h[-1:] + h[:1]]) if len(h) > 1 else h


def third_takes_the_fifth(h: Tensor) -> Tensor:
    return torch.cat([h[:2], h[2:3] + 0.1 * h[4:5], h[3:]])


def one_exceeds(n: int) -> Tensor:
    x = 0.1 * torch.randn(n, 5)
    x[4] *= 100
    return x


MIX = mixed(r"'mix' \(Mix\)")
GRADIENT = mixed(r"'mix' \(Mix\)", "gradient")

DEPENDENT = table(
    "dependence between samples",
    ("lstm", mixed(r"'r' \(LSTM\)", *RECURRENT), recurrent(nn.LSTM), normal(5, 6)),
    ("gru", mixed(r"'r' \(GRU\)", *RECURRENT), recurrent(nn.GRU), normal(5, 6), 5),
    ("rnn", mixed(r"'r' \(RNN\)", *RECURRENT), recurrent(nn.RNN), normal(5, 6), 9),
    ("lstm of two directions", mixed(r"'r' \(LSTM\)", *RECURRENT),
        recurrent(nn.LSTM, bidirectional=True), normal(5, 6)),
    ("lstm of three layers", mixed(r"'r' \(LSTM\)", *RECURRENT),
        recurrent(nn.LSTM, num_layers=3), normal(5, 6), 7),
    ("lstm deep inside", mixed(r"'body\.1\.r' \(LSTM\)", *RECURRENT),
        net(
            lambda m, x: m.head(m.body(x)),
            body=lambda: nn.Sequential(nn.Linear(6, 6), recurrent(nn.LSTM)()),
            head=lambda: nn.Linear(3, 2),
        ), normal(5, 6)),
    ("lstm, samples that are all alike but one", mixed(r"'r' \(LSTM\)", *RECURRENT),
        recurrent(nn.LSTM),
        lambda n: torch.cat([torch.zeros(n - 1, 5, 6), torch.randn(1, 5, 6)])),
    ("attention", mixed(r"'a' \(MultiheadAttention\)", *RECURRENT),
        net(
            lambda m, x: m.h(m.a(x, x, x)[0].mean(1)),
            a=lambda: nn.MultiheadAttention(6, 2),
            h=lambda: nn.Linear(6, 3),
        ), normal(5, 6)),
    ("attention without weights", mixed(r"'a' \(MultiheadAttention\)", *RECURRENT),
        net(
            lambda m, x: m.h(m.a(x, x, x, need_weights=False)[0].mean(1)),
            a=lambda: nn.MultiheadAttention(6, 2),
            h=lambda: nn.Linear(6, 3),
        ), normal(5, 6)),
    (
        "transformer layer",
        mixed(r"'t(\.self_attn)?' \((TransformerEncoderLayer|MultiheadAttention)\)", *RECURRENT),
        net(
            lambda m, x: m.h(m.t(x).mean(1)),
            t=lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0),
            h=lambda: nn.Linear(6, 3),
        ), normal(5, 6), 8),
    ("transformer", mixed(r"'t\.layers\.0(\.self_attn)?' \((Transformer|Multihead)", *RECURRENT),
        net(
            lambda m, x: m.h(m.t(x)[:, 0]),
            t=lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), 2, enable_nested_tensor=False
            ),
            h=lambda: nn.Linear(6, 3),
        ), normal(5, 6)),
    ("cumulative sum", MIX, between(lambda h: h.cumsum(0)), normal(5)),
    ("cumulative sum from behind", MIX, between(lambda h: h.flip(0).cumsum(0).flip(0)), normal(5)),
    ("running maximum", MIX, between(lambda h: h.cummax(0).values), normal(5)),
    ("only on the next sample", MIX, between(lambda h: h + F.pad(h[1:], (0, 0, 0, 1))), normal(5)),
    ("roll", MIX, between(lambda h: torch.roll(h, 1, 0)), normal(5)),
    ("roll by the half", MIX, between(lambda h: torch.roll(h, len(h) // 2, 0)), normal(5), 5),
    ("reversed", MIX, between(lambda h: h.flip(0)), normal(5), 7),
    ("mean", MIX, between(lambda h: h - h.mean(0)), normal(5)),
    ("mean, first two equal", MIX, between(lambda h: h - h.mean(0)), first_two_equal(5)),
    ("mean that is detached", MIX, between(lambda h: h - h.detach().mean(0)), normal(5)),
    ("mean, first two equal, in one layer of many", MIX,
        between(lambda h: torch.cat([h[:, :3], h[:, 3:] - h[:, 3:].mean(0)], 1)),
        first_two_equal(5),
        9),
    ("deviation", MIX, between(lambda h: h / (1 + h.var(0, unbiased=False))), first_two_equal(5)),
    ("batch statistics by function", MIX,
        between(lambda h: F.batch_norm(h, None, None, training=True) if len(h) > 1 else h),
        first_two_equal(5)),
    ("norm over all", MIX, between(lambda h: h / h.norm()), normal(5)),
    ("norm along the samples", MIX, between(lambda h: F.normalize(h, dim=0)), normal(5)),
    ("softmax along the samples", MIX, between(lambda h: h.softmax(0)), normal(5)),
    ("sorting along the samples", MIX, between(lambda h: h.sort(0).values), normal(5)),
    ("sorting samples that are sorted but for the last two", MIX,
        between(lambda h: h.sort(0).values),
        lambda n: (
            torch.cat([torch.arange(n - 2.0), torch.tensor([n, n - 1.0])])[:, None] * torch.ones(5)
        ), 8),
    ("attention between samples", MIX, between(lambda h: (h @ h.T).softmax(-1) @ h), normal(5)),
    ("only the last on the first", MIX, between(last_takes_the_first), normal(5)),
    ("only the third on the fifth", MIX,
        between(third_takes_the_fifth), normal(5), 7),
    ("only when there are more than three", MIX,
        between(lambda h: h - h.mean(0) if len(h) > 3 else h), normal(5)),
    ("only when there are exactly all", MIX,
        between(lambda h: h * 1.5 if len(h) == 9 else h), normal(5), 9),
    ("a maximum that one exceeds", MIX,
        between(lambda h: h / h.abs().max().clamp_min(3)), one_exceeds),
    ("a maximum of each feature that one exceeds", MIX,
        between(lambda h: h / h.abs().amax(0).clamp_min(3)), one_exceeds),
    ("a threshold that few are below", MIX,
        between(lambda h: torch.where(h > h.mean() - 1.2 * h.std(correction=0), h, 0.5 * h)),
        normal(5),
        9),
    ("gradients only: a function", GRADIENT, between(Leak.apply), normal(5)),
    ("gradients only: after the first two", GRADIENT, between(Leak2.apply), normal(5), 5),
    ("gradients only: a hook that centres", GRADIENT,
        between(hooked(lambda g: g - 0.5 * g.mean(0))), normal(5)),
    ("gradients only: a hook that normalises", GRADIENT,
        between(hooked(lambda g: g / (1e-3 + g.norm()))), normal(5)),
    ("gradients only: a hook that clips all to the smallest", GRADIENT,
        between(hooked(lambda g: g * (g.norm(dim=1).min() / (1e-9 + g.norm(dim=1, keepdim=True))))),
        normal(5)),
)  # fmt: skip


def packed(m: nn.Module, x: Tensor) -> Tensor:
    lengths = (x.abs().sum(-1) > 0).sum(1).cpu()
    batch = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return m.h(m.r(batch)[1][0][-1])


def series_of_lengths(n: int) -> Tensor:
    x = torch.randn(n, 7, 6)
    for i in range(n):
        x[i, 2 + 3 * i % 5 :] = 0
    return x


INDEPENDENT = table(
    "no dependence between samples",
    ("lstm", RIGHT, recurrent(nn.LSTM, batch_first=True), normal(5, 6)),
    ("gru", RIGHT, recurrent(nn.GRU, batch_first=True, bidirectional=True), normal(5, 6)),
    ("lstm, time first inside", RIGHT,
        net(
            lambda m, x: m.h(m.r(x.transpose(0, 1))[0][-1]),
            r=lambda: nn.LSTM(6, 8),
            h=lambda: nn.Linear(8, 3),
        ), normal(5, 6)),
    ("lstm of as many times as samples", RIGHT,
        net(
            lambda m, x: m.h(m.r(x.transpose(0, 1))[0][-1]),
            r=lambda: nn.LSTM(6, 8),
            h=lambda: nn.Linear(8, 3),
        ), normal(6, 6)),
    ("packed lstm", RIGHT,
        net(packed, r=lambda: nn.LSTM(6, 8, batch_first=True), h=lambda: nn.Linear(8, 3)),
        series_of_lengths),
    ("attention, time first inside", RIGHT,
        net(
            lambda m, x: m.h(m.a(*[x.transpose(0, 1)] * 3)[0].mean(0)),
            a=lambda: nn.MultiheadAttention(6, 2),
            h=lambda: nn.Linear(6, 3),
        ), normal(5, 6)),
    ("samples unrolled", RIGHT,
        net(
            lambda m, x: m.b(torch.tanh(m.a(x.flatten(0, 1)))).reshape(len(x), -1),
            a=lambda: nn.Linear(4, 5),
            b=lambda: nn.Linear(5, 2),
        ), normal(2, 4)),
    ("cumulative sum of an unrolled sample's parts", RIGHT,
        net(
            lambda m, x: m.a(x.reshape(-1, 4)).reshape(len(x), 3, 2).cumsum(1)[:, -1],
            a=lambda: nn.Linear(4, 2),
        ), normal(3, 4)),
    ("sorting within a sample", RIGHT, between(lambda h: h.sort(1).values), normal(5)),
    ("softmax within a sample", RIGHT, between(lambda h: h.softmax(1)), normal(5)),
    ("norm within a sample", RIGHT, between(lambda h: F.normalize(h, dim=1)), normal(5)),
    ("mean within a sample", RIGHT, between(lambda h: h - h.mean(1, keepdim=True)), normal(5)),
    ("layer norm", RIGHT,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)), normal(5)),
    ("batch norm in evaluation mode", RIGHT,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)),
        normal(5)),
    ("instance norm", RIGHT,
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 3)
        ), normal(2, 6)),
    ("there and back", RIGHT, between(lambda h: h.flip(0).tanh().flip(0)), normal(5)),
    ("sorted and put back", RIGHT,
        between(lambda h: h[(o := h[:, 0].argsort())].tanh()[o.argsort()]), normal(5)),
    ("some at a time", RIGHT,
        between(lambda h: torch.cat([c.sin() for c in h.split(4)])), normal(5)),
    ("the same by another way when there are many", RIGHT,
        between(lambda h: torch.cat([r.sin()[None] for r in h]) if len(h) > 3 else h.sin()),
        normal(5)),
    ("a hook that scales each sample's gradient", RIGHT,
        between(hooked(lambda g: g * 3)), normal(5)),
    ("a forward hook that doubles", RIGHT,
        lambda: with_hook("register_forward_hook", lambda _, __, y: 2 * y), normal(5)),
    ("a forward hook before", RIGHT,
        lambda: with_hook("register_forward_pre_hook", lambda _, x: (x[0].sin(),)), normal(5)),
    ("a backward hook that only looks", RIGHT,
        lambda: with_hook("register_full_backward_hook", lambda _, __, g: g[0].norm() and None),
        normal(5)),
    ("a backward hook that doubles", RIGHT,
        lambda: with_hook("register_full_backward_hook", lambda _, g, __: (2 * g[0],)), normal(5)),
)  # fmt: skip


def with_hook(register: str, hook: Callable) -> nn.Module:
    model = two_layers()
    getattr(model[2], register)(hook)
    return model


# 4. Complex parameters


class Spectral(nn.Module):
    """A convolution whose complex weights act on the lowest frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = complex_weight(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)[..., :3]
        out = torch.einsum("bif,iof->bof", spectrum, self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


def tied_complex() -> nn.Module:
    w = complex_weight(4, 4)
    return Net(lambda m, x: ((x.to(m.w.dtype) @ m.w).tanh() @ m.v).imag, w=w, v=w)


COMPLEX = table(
    "complex parameters",
    ("weight", RIGHT,
        net(lambda m, x: (x.to(m.w.dtype) @ m.w).abs(), w=lambda: complex_weight(4, 3)), normal(4)),
    ("linear", RIGHT,
        net(
            lambda m, x: m.a(x.to(m.a.weight.dtype)).real,
            a=lambda: nn.Linear(4, 3, dtype=complex_dtype()),
        ), normal(4)),
    ("linear between real ones", RIGHT,
        net(
            lambda m, x: m.b(m.a(m.first(x).to(m.a.weight.dtype)).abs()),
            first=lambda: nn.Linear(5, 4),
            a=lambda: nn.Linear(4, 3, dtype=complex_dtype()),
            b=lambda: nn.Linear(3, 2),
        ), normal(5)),
    ("convolution", RIGHT,
        net(
            lambda m, x: m.a(x.to(m.a.weight.dtype)).abs().mean(-1),
            a=lambda: nn.Conv1d(2, 3, 3, dtype=complex_dtype()),
        ), normal(2, 6)),
    ("weight beside a real one", RIGHT,
        net(
            lambda m, x: (x.to(m.w.dtype) @ m.w).real + torch.tanh(x @ m.v) + m.c.sin(),
            w=lambda: complex_weight(4, 3),
            v=lambda: weight(4, 3),
            c=lambda: weight(3),
        ), normal(4)),
    ("real parameter seen as complex", RIGHT,
        net(
            lambda m, x: (x.to(complex_dtype_of(x)) @ torch.view_as_complex(m.w)).abs(),
            w=lambda: weight(4, 3, 2),
        ), normal(4)),
    ("phases", RIGHT,
        net(
            lambda m, x: torch.einsum("bi,io->bo", x, torch.polar(m.r.exp(), m.phase).real),
            r=lambda: weight(4, 3),
            phase=lambda: weight(4, 3),
        ), normal(4)),
    ("spectral convolution", RIGHT,
        net(
            lambda m, x: m.h((m.s(x) + m.c(x)).tanh().flatten(1)),
            s=Spectral,
            c=lambda: nn.Conv1d(2, 3, 1),
            h=lambda: nn.Linear(24, 2),
        ), normal(2, 8)),
    ("tied", RIGHT, tied_complex, normal(4)),
    ("only the imaginary part counts", RIGHT,
        net(lambda m, x: x @ m.w.imag, w=lambda: complex_weight(4, 3)), normal(4)),
    ("complex and unused", RIGHT,
        net(lambda m, x: m.a(x), a=lambda: nn.Linear(4, 3), w=lambda: complex_weight(3)),
        normal(4)),
    ("recurrence of complex states", RIGHT,
        net(
            lambda m, x: torch.stack(
                [(x.to(m.w.dtype) * m.w.exp() ** k).sum(-1).real for k in range(3)],
                -1,
            ),
            w=lambda: complex_weight(4),
        ), normal(4)),
)  # fmt: skip


def complex_dtype_of(x: Tensor) -> torch.dtype:
    return torch.cdouble if x.dtype == torch.float64 else torch.cfloat


# 5. Models whose function could change with the arguments of `entk`


def encoder(**options) -> Callable[[], nn.Module]:
    return net(
        lambda m, ids: m.head(m.t(m.e(ids), src_key_padding_mask=ids == 0).flatten(1)),
        e=lambda: nn.Embedding(9, 8),
        t=lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options), 2
        ),
        head=lambda: nn.Linear(40, 3),
    )


def masked_attention(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.e(ids)
    out, _ = m.a(x, x, x, key_padding_mask=ids == 0, need_weights=False)
    return m.head(torch.tanh(out).mean(1))


def frozen_branch() -> nn.Module:
    """Build a model that branches by the flag of a frozen parameter."""
    model = Net(
        lambda m, x: m.head(torch.tanh(m.a(x) if m.a.weight.requires_grad else 2 * m.a(x))),
        a=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )
    model.a.weight.requires_grad_(False)
    return model


ONE_FUNCTION = table(
    "the same function whatever is asked",
    ("encoder with padding", RIGHT, encoder(), padded(9, 5)),
    ("encoder with padding, gelu", RIGHT, encoder(activation="gelu"), padded(9, 5)),
    ("encoder with padding, norm first", RIGHT, encoder(norm_first=True), padded(9, 5)),
    ("attention with padding", RIGHT,
        net(
            masked_attention,
            e=lambda: nn.Embedding(9, 8),
            a=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            head=lambda: nn.Linear(8, 3),
        ), padded(9, 5)),
    ("branch by a parameter's flag", RIGHT,
        net(
            lambda m, x: m.head(torch.tanh(x @ m.w if m.w.requires_grad else 2 * (x @ m.w))),
            w=lambda: weight(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
    ("branch by a frozen parameter's flag", RIGHT, frozen_branch, normal(5)),
    ("branch by all flags", RIGHT,
        net(
            lambda m, x: m.head(
                torch.tanh(m.a(x)) * (1 + sum(p.requires_grad for p in m.parameters()))
            ),
            a=lambda: nn.Linear(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
    ("branch by the mode of autograd", RIGHT,
        net(
            lambda m, x: m.head(torch.tanh(m.a(x)) if torch.is_grad_enabled() else m.a(x)),
            a=lambda: nn.Linear(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
    ("branch by whether the hidden layer has a gradient", RIGHT,
        net(
            lambda m, x: m.head(torch.tanh(h) if (h := m.a(x)).requires_grad else h.sin()),
            a=lambda: nn.Linear(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
    ("branch by autocast", RIGHT,
        net(
            lambda m, x: m.head(m.a(x).sin() if torch.is_autocast_enabled("cpu") else m.a(x)),
            a=lambda: nn.Linear(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
    ("branch by a module's mode", RIGHT,
        net(
            lambda m, x: m.head(torch.tanh(m.a(x)) * (2 if m.training else 1)),
            a=lambda: nn.Linear(5, 4),
            head=lambda: nn.Linear(4, 3),
        ), normal(5)),
)  # fmt: skip


# 6. Forward passes that write


def written(write: Callable[[nn.Module, Tensor, Tensor], object], **members) -> Callable:
    """Return a builder of two layers that write something, from the input and the hidden layer."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.tanh(m.a(x))
        write(m, x, h)
        return m.b(h)

    return net(run, a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3), **members)


def changed(write: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """Return a builder of two layers that first change their input in place."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        write(x)
        return m.b(torch.tanh(m.a(x)))

    return net(run, a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3))


def blanked(m: nn.Module, ids: Tensor) -> Tensor:
    ids[ids > 5] = 0
    return m.h(torch.tanh(m.e(ids)).mean(1))


def clipped(m: nn.Module, x: Tensor) -> Tensor:
    m.w.data.clamp_(-0.5, 0.5)
    with torch.no_grad():
        m.h.bias.zero_()
    return m.h(torch.tanh(x @ m.w))


def clipped_anew(m: nn.Module, x: Tensor) -> Tensor:
    m.w.data = m.w.data.clamp(-0.5, 0.5)
    return m.h(torch.tanh(x @ m.w))


def in_one_place(m: nn.Module, x: Tensor) -> None:
    m.array[0] = float(x.detach().flatten()[0])
    m.array[1:] = 7.0


def old_norm(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = nn.Sequential(norm(nn.Linear(5, 4)), nn.Tanh(), norm(nn.Linear(4, 3)))
        for _ in range(3):  # the vectors of the power iteration converge somewhat
            model(torch.randn(2, 5))
        return model

    return build


WRITES = table(
    "forward passes that write",
    ("embedding of a largest norm", RIGHT,
        lambda: nn.Sequential(nn.Embedding(20, 6, max_norm=1.0), nn.Flatten(), nn.Linear(24, 3)),
        tokens(10, 4)),
    ("bag of a largest norm", RIGHT,
        lambda: nn.Sequential(nn.EmbeddingBag(20, 6, max_norm=1.0), nn.Tanh(), nn.Linear(6, 3)),
        tokens(10, 4)),
    ("a buffer that counts", RIGHT,
        lambda: with_buffer(
            written(lambda m, _, __: m.calls.add_(1))(), "calls", torch.zeros((), dtype=torch.int64)
        ), normal(5)),
    ("a buffer that is replaced", RIGHT,
        lambda: with_buffer(
            written(lambda m, _, __: setattr(m, "calls", m.calls + 1))(), "calls", torch.zeros(())
        ), normal(5)),
    ("a buffer of running means", RIGHT,
        lambda: with_buffer(
            written(lambda m, _, h: m.mean.lerp_(h.detach().mean(0), 0.1))(), "mean", torch.zeros(4)
        ), normal(5)),
    ("a tensor that is kept", RIGHT,
        written(lambda m, _, h: setattr(m, "kept", h), kept=lambda: None), normal(5)),
    ("a tensor that is kept in place of another", RIGHT,
        written(lambda m, _, h: setattr(m, "kept", h.detach()), kept=lambda: torch.ones(2)),
        normal(5)),
    ("an attribute that is new", RIGHT,
        written(lambda m, x, _: setattr(m, "last_input", x)), normal(5)),
    ("a tensor attribute written in place", RIGHT,
        written(lambda m, _, h: m.kept.add_(h.detach().sum()), kept=lambda: torch.ones(2)),
        normal(5)),
    ("a list that grows", RIGHT,
        written(lambda m, _, h: m.history.append(h), history=lambda: ["begin"]), normal(5)),
    ("a deque of the last two", RIGHT,
        written(lambda m, _, h: m.history.append(h), history=lambda: deque([1, 2], maxlen=2)),
        normal(5)),
    ("a dictionary by shape", RIGHT,
        written(lambda m, x, h: m.memo.__setitem__(tuple(x.shape), h), memo=lambda: {"begin": 0}),
        normal(5)),
    ("a set of sizes", RIGHT,
        written(lambda m, x, _: m.sizes.add(len(x)), sizes=lambda: {-1}), normal(5)),
    ("a list in a dictionary", RIGHT,
        written(lambda m, _, h: m.memo["inside"].append(h), memo=lambda: {"inside": []}),
        normal(5)),
    ("an array", RIGHT,
        written(lambda m, x, _: in_one_place(m, x), array=lambda: np.zeros(3)), normal(5)),
    ("a count of calls", RIGHT,
        written(lambda m, _, __: setattr(m, "calls", m.calls + 1), calls=lambda: 0), normal(5)),
    ("an input's column", RIGHT, changed(lambda x: x[:, 0].fill_(0)), normal(5)),
    ("an input's column by index", RIGHT, changed(lambda x: x.__setitem__((..., 0), 0)), normal(5)),
    ("an input doubled", RIGHT, changed(lambda x: x.mul_(2)), normal(5)),
    ("an input rectified", RIGHT, changed(lambda x: x.clamp_(0)), normal(5)),
    ("an input, its view", RIGHT, changed(lambda x: x.view(-1).sub_(1)), normal(5)),
    ("an input, by its data", RIGHT, changed(lambda x: x.data.mul_(2)), normal(5)),
    ("an input by an in-place rectifier", RIGHT,
        lambda: nn.Sequential(nn.ReLU(inplace=True), *two_layers()), normal(5)),
    ("tokens blanked", RIGHT,
        net(blanked, e=lambda: nn.Embedding(9, 6), h=lambda: nn.Linear(6, 3)), tokens(9, 4)),
    ("weights clipped", RIGHT,
        net(clipped, w=lambda: weight(5, 4), h=lambda: nn.Linear(4, 3)), normal(5)),
    ("weights clipped, by new data", RIGHT,
        net(clipped_anew, w=lambda: weight(5, 4), h=lambda: nn.Linear(4, 3)), normal(5)),
    ("a buffer written by its data", RIGHT,
        lambda: with_buffer(
            written(lambda m, _, h: m.mean.data.add_(h.detach().mean(0)))(), "mean", torch.zeros(4)
        ), normal(5)),
    ("a buffer written by numpy", RIGHT,
        lambda: with_buffer(
            written(lambda m, _, __: m.mean.numpy().fill(3.0))(), "mean", torch.zeros(4)
        ), normal(5)),
    ("something that cannot be copied", RIGHT,
        written(lambda m, _, __: m.lock.locked(), lock=threading.Lock), normal(5)),
    ("a generator of its own", RIGHT,
        written(
            lambda m, *_: torch.rand(3, generator=m.draw),
            draw=lambda: torch.Generator().manual_seed(3),
        ), normal(5)),
    ("a generator of numpy's of its own", RIGHT,
        written(lambda m, *_: m.draw.random(3), draw=lambda: np.random.default_rng(3)), normal(5)),
    ("spectral norm", RIGHT,
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)
        ), normal(5)),
    ("weight norm by hooks", RIGHT, old_norm(nn.utils.weight_norm), normal(5)),
    ("spectral norm by hooks", RIGHT, old_norm(nn.utils.spectral_norm), normal(5)),
    ("random generators", RIGHT,
        written(lambda *_: (torch.rand(3), random.random(), np.random.rand())), normal(5)),
    ("a mode", RIGHT,
        written(lambda m, _, __: m.b.train()), normal(5)),
)  # fmt: skip


def with_buffer(model: nn.Module, name: str, value: Tensor) -> nn.Module:
    model.register_buffer(name, value)
    return model


# 7. Operations that transforms of torch.func cannot follow


def state_by_size(m: nn.Module, x: Tensor) -> Tensor:
    if m.state is None or len(m.state) != len(x):
        m.state = x.new_zeros(len(x), 4)
    return torch.tanh(x + m.state) @ m.w


def positions_by_length(m: nn.Module, x: Tensor) -> Tensor:
    if m.angles is None or len(m.angles) < x.shape[1]:
        m.angles = torch.outer(torch.arange(x.shape[1]).to(x), m.rate.to(x)).cos()
    return m.a((x * m.angles[: x.shape[1]]).flatten(1))


class Hand(torch.autograd.Function):
    """x ↦ sin(x) W with a backward pass by hand, and without a rule for vmap."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.sin() @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return x.cos() * (g @ w.T), x.sin().T @ g


class HandByNumpy(torch.autograd.Function):
    """x ↦ x², with both passes in numpy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy() * g.numpy())


def by_value(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([m.a(row) if row.sum() > 0 else m.b(row) for row in x.split(1)])


def seeded(m: nn.Module, x: Tensor) -> Tensor:
    state = random.getstate()
    random.seed(3)
    factor = random.random()
    random.setstate(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        noise = torch.randn(4).to(x)
    return m.b(torch.tanh(m.a(x)) * factor + noise)


def forces(m: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of an energy by the input, as networks of molecules do."""
    with torch.enable_grad():
        at = x if x.requires_grad else x.requires_grad_(True)
        energy = m.b(torch.tanh(m.a(at))).sum()
        return torch.autograd.grad(energy, at, create_graph=True)[0][:, :3]


def forces_of_a_copy(m: nn.Module, x: Tensor) -> Tensor:
    at = x.detach().clone().requires_grad_()
    energy = m.b(torch.tanh(m.a(at))).sum()
    return torch.autograd.grad(energy, at, create_graph=True)[0][:, :3]


def forces_by_transform(m: nn.Module, x: Tensor) -> Tensor:
    energy = torch.func.grad(lambda at: m.b(torch.tanh(m.a(at))).sum())
    return energy(x)[:, :3]


def nested_call(m: nn.Module, x: Tensor) -> Tensor:
    return torch.func.functional_call(m.a, dict(m.a.named_parameters()), (x,)).tanh() @ m.w


def by_index(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    out = torch.zeros_like(h)
    chosen = (h > 0).nonzero(as_tuple=True)
    out[chosen] = h[chosen].sin()
    return m.b(out)


def filled(m: nn.Module, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 6)
    out[:, :4] = torch.tanh(m.a(x))
    out[:, 4:] = 1.0
    return out @ m.w


class Discarded:
    """A file that discards what is written to it."""

    def write(self, _: str) -> None:
        pass


def text_of(m: nn.Module, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    m.log = f"{h.mean():.3f} of {x!r}"
    m.texts.write(str(h))
    m.texts.write(f"sum {h.sum().item()}, of shape {tuple(h.shape)}")
    return m.b(h)


TRANSFORMS = table(
    "what transforms stumble over",
    ("a state of the batch's size", RIGHT, net(state_by_size, w=lambda: weight(4, 3),
     state=lambda: None), normal(4)),
    ("positions by length", RIGHT, net(positions_by_length, a=lambda: nn.Linear(12, 3),
     rate=lambda: torch.rand(4), angles=lambda: None), normal(3, 4)),
    ("a number of a weight", RIGHT, net(
        lambda m, x: m.b(torch.tanh(m.a(x)) / m.a.weight.norm().item()),
        a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a number of each sample", RIGHT, net(
        lambda m, x: torch.cat([m.a(r) * (1 + abs(r.sum().item())) for r in x.split(1)]),
        a=lambda: nn.Linear(5, 3)), normal(5)),
    ("a way by value", RIGHT, net(by_value, a=lambda: nn.Linear(5, 3), b=lambda: nn.Linear(5, 3)),
     normal(5)),
    ("a way by a weight's value", RIGHT, net(
        lambda m, x: m.a(x).sin() if bool((m.a.weight > 0).any()) else m.a(x),
        a=lambda: nn.Linear(5, 3)), normal(5)),
    ("a list of the values", RIGHT, net(
        lambda m, x: m.a(x) * torch.tensor(x.detach().abs().sum(1).tolist()).to(x)[:, None],
        a=lambda: nn.Linear(5, 3)), normal(5)),
    ("texts of tensors", RIGHT, net(text_of, a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3),
     log=lambda: "", texts=lambda: Discarded()), normal(5)),
    ("there and back through numpy", RIGHT, net(
        lambda m, x: m.b((h := torch.tanh(m.a(x))) + torch.from_numpy(np.sin(h.detach().numpy()))),
        a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a scripted part", RIGHT, net(
        lambda m, x: m.b(m.s(x)), s=lambda: torch.jit.script(nn.Sequential(nn.Linear(5, 4),
        nn.Tanh())), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a traced part", RIGHT, net(
        lambda m, x: m.b(m.s(x)), s=lambda: torch.jit.trace(nn.Sequential(nn.Linear(5, 4),
        nn.Tanh()), torch.randn(2, 5)), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a function by hand", RIGHT, net(lambda m, x: m.b(Hand.apply(x, m.w)),
     w=lambda: weight(5, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a function by hand through numpy", RIGHT, net(lambda m, x: m.b(HandByNumpy.apply(m.a(x))),
     a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a gradient inside", RIGHT, net(forces_by_transform, a=lambda: nn.Linear(5, 4),
     b=lambda: nn.Linear(4, 1)), normal(5)),
    ("forces", RIGHT, net(forces, a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 1)),
     normal(5)),
    ("forces of a copy", RIGHT, net(forces_of_a_copy, a=lambda: nn.Linear(5, 4),
     b=lambda: nn.Linear(4, 1)), normal(5)),
    ("a map inside", RIGHT, net(lambda m, x: torch.func.vmap(lambda r: m.a(r).sin())(x),
     a=lambda: nn.Linear(5, 3)), normal(5)),
    ("a functional call inside", RIGHT, net(nested_call, a=lambda: nn.Linear(5, 4),
     w=lambda: weight(4, 3)), normal(5)),
    ("checkpoint", RIGHT, net(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False)),
     a=lambda: two_layers(5, 4, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("re-entrant checkpoint", RIGHT, net(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=True)),
     a=lambda: two_layers(5, 4, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
    ("re-entrant checkpoint of all", RIGHT, net(
        lambda m, x: checkpoint(m.a, x, use_reentrant=True), a=lambda: two_layers()), normal(5)),
    ("a buffer written in place", RIGHT, lambda: with_buffer(net(
        lambda m, x: m.b(torch.tanh(m.a(x)) * m.scale.copy_(m.a.weight.detach().norm())),
        a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3))(), "scale", torch.ones(())),
     normal(5)),
    ("a row of a buffer written in place", RIGHT, lambda: with_buffer(written(
        lambda m, _, h: m.rows[0].copy_(h[0].detach()))(), "rows", torch.zeros(2, 4)), normal(5)),
    ("random numbers with seeds", RIGHT, net(seeded, a=lambda: nn.Linear(5, 4),
     b=lambda: nn.Linear(4, 3)), normal(5)),
    ("indices of as many as there are", RIGHT, net(by_index, a=lambda: nn.Linear(5, 4),
     b=lambda: nn.Linear(4, 3)), normal(5)),
    ("a tensor filled piece by piece", RIGHT, net(filled, a=lambda: nn.Linear(5, 4),
     w=lambda: weight(6, 3)), normal(5)),
    ("a hidden layer changed in place", RIGHT, net(
        lambda m, x: m.b(m.a(x).mul_(2).add_(1).sigmoid_()),
        a=lambda: nn.Linear(5, 4), b=lambda: nn.Linear(4, 3)), normal(5)),
)  # fmt: skip


# 8. Weights that are not reached as attributes


def in_a_list() -> nn.Module:
    model = Net(lambda m, x: torch.tanh(x) @ m.all[0], w=weight(5, 3))
    model.all = [model.w]
    return model


def in_a_closure() -> nn.Module:
    w = weight(5, 3)
    return Net(lambda _, x: torch.tanh(x) @ w, w=w)


def in_a_partial() -> nn.Module:
    w = weight(3, 5)
    model = Net(lambda m, x: m.map(torch.tanh(x)), w=w)
    model.map = partial(F.linear, weight=w)
    return model


def seen_at_build() -> nn.Module:
    model = Net(lambda m, x: F.linear(torch.tanh(x), m.wt), w=weight(5, 3))
    model.wt = model.w.t()
    return model


def halves_seen_at_build() -> nn.Module:
    model = Net(lambda m, x: m.b(x @ m.parts[0] + torch.tanh(x @ m.parts[1])), w=weight(5, 8))
    model.b = nn.Linear(4, 3)
    model.parts = model.w[:, :4], model.w[:, 4:]
    return model


def modules_in_a_dict() -> nn.Module:
    model = Net(lambda m, x: m.table["b"](torch.tanh(m.table["a"](x))))
    model.a, model.b = nn.Linear(5, 4), nn.Linear(4, 3)
    model.table = {"a": model.a, "b": model.b}
    return model


def half_in_a_dict() -> nn.Module:
    """Build a model whose first layer is in a dictionary, and so none of its modules."""
    model = Net(lambda m, x: m.b(torch.tanh(m.table["a"](x))), b=nn.Linear(4, 3))
    model.table = {"a": nn.Linear(5, 4)}
    return model


def alias() -> nn.Module:
    model = Net(lambda m, x: torch.tanh(x) @ m.v, w=weight(5, 3))
    model.v = model.w
    return model


def alias_of_both() -> nn.Module:
    model = Net(lambda m, x: torch.tanh(x @ m.v) @ m.w, w=weight(4, 4))
    model.v = model.w
    return model


def alias_of_a_module() -> nn.Module:
    model = Net(lambda m, x: m.b(torch.tanh(m.again(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    model.again = model.a
    return model


def tied_in_a_list() -> nn.Module:
    model = Net(lambda m, x: torch.tanh(x @ m.w) @ m.all[0].T, w=weight(4, 3))
    model.all = (model.w,)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(5, 5), nn.Tanh())
    model.append(nn.Linear(5, 7))
    model[4].weight = model[0].weight
    return model


ANOTHER_WAY = table(
    "weights reached another way",
    ("a list", RIGHT, in_a_list, normal(5)),
    ("a closure", RIGHT, in_a_closure, normal(5)),
    ("a partial function", RIGHT, in_a_partial, normal(5)),
    ("a view made at build time", RIGHT, seen_at_build, normal(5)),
    ("halves made at build time", RIGHT, halves_seen_at_build, normal(5)),
    ("modules in a dictionary", RIGHT, modules_in_a_dict, normal(5)),
    ("a module in a dictionary only", RIGHT, half_in_a_dict, normal(5)),
    ("an alias", RIGHT, alias, normal(5)),
    ("an alias and the first name", RIGHT, alias_of_both, normal(4)),
    ("an alias of a module", RIGHT, alias_of_a_module, normal(5)),
    ("a list and the name", RIGHT, tied_in_a_list, normal(4)),
    ("tied", RIGHT, tied, tokens(7, 1)),
    ("the first of the parameters", RIGHT, net(lambda m, x: x.sin() @ next(m.parameters()),
     w=lambda: weight(5, 3)), normal(5)),
    ("a dictionary made by each call", RIGHT, net(
        lambda m, x: x.sin() @ dict(m.named_parameters())["w"], w=lambda: weight(5, 3)),
     normal(5)),
    ("the state dictionary", RIGHT, net(
        lambda m, x: x.sin() @ m.state_dict(keep_vars=True)["w"], w=lambda: weight(5, 3)),
     normal(5)),
    ("the module's own dictionary", RIGHT, net(
        lambda m, x: x.sin() @ m._parameters["w"], w=lambda: weight(5, 3)), normal(5)),
    ("a list of parameters", RIGHT, net(
        lambda m, x: sum(x.sin() @ p for p in m.ps),
        ps=lambda: nn.ParameterList([weight(5, 3), weight(5, 3)])), normal(5)),
    ("a module that holds its owner", RIGHT, lambda: holding_its_owner(), normal(5)),
)  # fmt: skip


def holding_its_owner() -> nn.Module:
    model = Net(lambda m, x: m.inner(x), w=weight(5, 3))
    model.inner = Net(lambda m, x: x.sin() @ m.owner[0].w)
    model.inner.owner = [model]
    return model


# 9. Parameters without a rule, and unused ones

NOTHING = refused(r"no output depends on the parameters")


def detached_at_the_end() -> nn.Module:
    return Net(lambda m, x: m.a(x).detach(), a=nn.Linear(5, 3))


def without_gradients(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.a(x)


UNUSED = table(
    "parameters that are not used",
    ("an lstm and an unused layer", RIGHT, net(lambda m, x: m.r(x)[0][:, -1],
     r=lambda: nn.LSTM(4, 3, batch_first=True), aux=lambda: nn.Linear(3, 2)), normal(5, 4)),
    ("an unused layer and a cell", RIGHT, net(lambda m, x: m.r(x, x), aux=lambda: nn.Linear(3, 2),
     r=lambda: nn.GRUCell(3, 3)), normal(3)),
    ("a raw weight and an unused one", RIGHT, net(lambda m, x: torch.tanh(x @ m.w).cumsum(1) @ m.v,
     w=lambda: weight(4, 3), v=lambda: weight(3, 3), u=lambda: weight(2)), normal(4)),
    ("a scalar and an unused convolution", RIGHT, net(lambda m, x: (x * m.w.exp()).sin(),
     w=lambda: weight(), c=lambda: nn.Conv2d(2, 2, 2)), normal(3)),
    ("one that only some samples use", RIGHT, net(
        lambda m, x: torch.cat([r @ (m.w if r.sum() > 0 else m.v) for r in x.split(1)]),
        w=lambda: weight(4, 3), v=lambda: weight(4, 3), u=lambda: weight(2)), normal(4)),
    ("all unused", NOTHING, net(lambda _, x: x.sin(), a=lambda: nn.Linear(4, 3)), normal(4)),
    ("a forward pass without gradients", NOTHING, net(without_gradients,
     a=lambda: nn.Linear(5, 3)), normal(5)),
    ("outputs that are detached", NOTHING, detached_at_the_end, normal(5)),
    ("outputs of a copy of the weight", NOTHING, net(lambda m, x: x @ m.w.data,
     w=lambda: weight(5, 3)), normal(5)),
    ("outputs by way of numpy", NOTHING, net(
        lambda m, x: torch.from_numpy(m.a(x).detach().numpy()), a=lambda: nn.Linear(5, 3)),
     normal(5)),
)  # fmt: skip


# 10. Numbers that are not finite


def pair_equal_in_five(n: int) -> Tensor:
    x = torch.randn(n, 2, 4)
    x[5, 1] = x[5, 0]
    return x


def zero_in_five(n: int) -> Tensor:
    x = torch.randn(n, 4)
    x[5] = 0
    return x


def distance(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return (h[:, 0] - h[:, 1]).square().sum(1, keepdim=True).sqrt()


FIVE = refused(r"sample\D{0,20}\b5\b", "gradient", r"weights and outputs are finite")

NOT_FINITE = table(
    "gradients that are not finite",
    ("root of nothing", FIVE, net(distance, a=lambda: nn.Linear(4, 6)), pair_equal_in_five, 8),
    ("root of a rectifier's nothing", FIVE, net(
        lambda m, x: (x @ m.w).square().sum(1, keepdim=True).clamp(min=0).sqrt() + m.b,
        w=lambda: weight(4, 3), b=lambda: weight(2)), zero_in_five, 8),
    ("infinite", FIVE, net(lambda m, x: (m.s * x.abs().sum(1, keepdim=True) + m.c).sqrt(),
     s=lambda: nn.Parameter(torch.ones(())), c=lambda: nn.Parameter(torch.zeros(()))),
     zero_in_five, 8),
    ("the branch that is not taken", FIVE, net(
        lambda m, x: torch.where((h := x @ m.w) == 0, torch.ones_like(h), h.sin() / h),
        w=lambda: weight(4, 3)), zero_in_five, 8),
    ("an angle of nothing", FIVE, net(
        lambda m, x: torch.acos(torch.cos(x @ m.w).clamp(-1, 1)), w=lambda: weight(4, 1)),
     zero_in_five, 8),
)  # fmt: skip


def wide_half() -> nn.Module:
    return nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 5)).half()


def steep_half() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).half()
    for p, value in zip(model.parameters(), (0.0, 0.0, 1000.0, 0.0), strict=True):
        nn.init.constant_(p, value)
    return model


def steep() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.constant_(model[1].weight, 1e20)
    model[1].weight.data[0] *= 3  # no two random signs cancel
    return model.float()


BOTH = (ModelError, KernelError)
OVERFLOWS = table(
    "overflow",
    ("a kernel of float32", Refused(("overflow", r"float64|\.double\(\)"), BOTH), steep,
     lambda n: torch.randn(n, 4).float()),
)  # fmt: skip


# 11. Outputs of another shape


def ending(end: Callable[[Tensor], object], classes: int = 1) -> Callable[[], nn.Module]:
    return net(lambda m, x: end(m.a(x)), a=lambda: nn.Linear(5, classes))


SQUEEZED = refused(r"\(\)|\[\]", r"(one|single|1) sample", r"squeeze\(-1\)")

SHAPES = table(
    "outputs of another shape",
    ("squeezed", SQUEEZED, ending(lambda y: y.squeeze()), normal(5)),
    ("squeezed, two samples", SQUEEZED, ending(lambda y: y.squeeze()), normal(5), 2),
    ("squeezed, one sample", SQUEEZED, ending(lambda y: y.squeeze()), normal(5), 1),
    ("squeezed, the last", RIGHT, ending(lambda y: y.squeeze(-1)), normal(5)),
    ("squeezed, several outputs", refused(r"\(3,\)|\[3\]", r"(one|single|1) sample", "squeeze"),
     ending(lambda y: y.squeeze(), 3), normal(5)),
    ("a mean", refused("first dimension"), ending(lambda y: y.mean(), 3), normal(5)),
    ("flattened", refused("first dimension"), ending(lambda y: y.flatten(), 3), normal(5)),
    ("transposed", refused("first dimension"), ending(lambda y: y.T, 3), normal(5)),
    ("transposed, as many as samples", refused("samples"), ending(lambda y: y.T, 6), normal(5)),
    ("complex", refused("complex", r"real"), ending(lambda y: torch.complex(y, y.sin()), 3),
     normal(5)),
    ("whole numbers", refused("int64", "derivative"), ending(lambda y: y.argmax(1), 3), normal(5)),
    ("truth values", refused("bool", "derivative"), ending(lambda y: y > 0, 3), normal(5)),
    ("a tuple", refused("tuple", "tensor"), ending(lambda y: (y, y.sin()), 3), normal(5)),
    ("a dictionary", refused("dict", "tensor"), ending(lambda y: {"logits": y}, 3), normal(5)),
    ("nothing", refused("None", "tensor"), ending(lambda y: None, 3), normal(5)),
)  # fmt: skip


# 13. Compiled parts


def compiled(part: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: torch.compile(part(), backend="eager")


def around(first: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return net(lambda m, x: m.b(m.a(x)), a=first, b=lambda: nn.Linear(4, 3))


def compiled_in_place() -> nn.Module:
    model = around(lambda: two_layers(5, 4, 4))()
    model.a.compile(backend="eager")
    return model


def compiled_function() -> nn.Module:
    model = net(lambda m, x: m.step(m.a(x)) @ m.w, a=lambda: nn.Linear(5, 4),
                w=lambda: weight(4, 3))()  # fmt: skip
    model.step = torch.compile(lambda h: torch.tanh(h) + 1, backend="eager")
    return model


def plain_function() -> nn.Module:
    model = net(lambda m, x: m.step(m.a(x)) @ m.w, a=lambda: nn.Linear(5, 4),
                w=lambda: weight(4, 3))()  # fmt: skip
    model.step = lambda h: torch.tanh(h) + 1
    return model


COMPILED = table(
    "compiled parts",
    ("a part", RIGHT, around(compiled(lambda: two_layers(5, 4, 4))), normal(5), 6,
     around(lambda: two_layers(5, 4, 4))),
    ("a layer", RIGHT, around(compiled(lambda: nn.Linear(5, 4))), normal(5), 6,
     around(lambda: nn.Linear(5, 4))),
    ("a part in place", RIGHT, compiled_in_place, normal(5), 6,
     around(lambda: two_layers(5, 4, 4))),
    ("a function", RIGHT, compiled_function, normal(5), 6, plain_function),
    ("all", RIGHT, compiled(two_layers), normal(5), 6, two_layers),
)  # fmt: skip


# 14. Forward passes that were replaced


def replaced(wrap: Callable[[Callable], Callable], inside: str = "") -> Callable[[], nn.Module]:
    """Return a builder of two layers, one with its forward() replaced on the instance."""

    def build() -> nn.Module:
        model = two_layers(5, 16, 3)
        module = model.get_submodule(inside)
        module._original_forward = module.forward
        module.forward = wrap(module.forward)
        return model

    return build


def under_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def wrapper(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(x).float()

    return wrapper


def doubled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: 2 * forward(x)


AUTOCAST = table(
    "replaced forward passes, under autocast",
    ("of all", RIGHT, replaced(under_autocast), normal(5), 6, lambda: two_layers(5, 16, 3)),
    ("of a layer", RIGHT, replaced(under_autocast, "0"), normal(5), 6,
     lambda: two_layers(5, 16, 3)),
)  # fmt: skip
"""Measured in float32; the reference is the model before."""

REPLACED = table(
    "replaced forward passes",
    ("of all, doubled", RIGHT, replaced(doubled), normal(5)),
    ("of a layer, doubled", RIGHT, replaced(doubled, "2"), normal(5)),
)  # fmt: skip


# 15. Hooks of other libraries

GRADLIB = types.ModuleType("gradlib")
WRAPPER = types.ModuleType("gradlib.wrapper")
sys.modules |= {"gradlib": GRADLIB, "gradlib.wrapper": WRAPPER}
exec(
    compile(
        """
def keep(module, inputs, output):
    module.activations.append(inputs[0].detach())

def keep_one(module, inputs, output):
    module.activations = [inputs[0].detach()]

def expect(module, grad_inputs, grad_outputs):
    if len(grad_outputs[0]) != module.expected:
        raise RuntimeError(f"{len(grad_outputs[0])} samples, {module.expected} expected")

def per_sample(module, grad_inputs, grad_outputs):
    if not module.activations:
        raise RuntimeError("backward before forward")
    a, g = module.activations.pop(), grad_outputs[0]
    if len(a) != len(g) or len(a) != module.expected:
        raise RuntimeError("activations and gradients are of different batches")
    module.weight.grad_sample = g[:, :, None] * a[:, None, :]
""",
        "gradlib/wrapper.py",
        "exec",
    ),
    vars(WRAPPER),
)


def hooks(forward: str | None, backward: str | None, where: str = "2") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = two_layers()
        layer = model.get_submodule(where)
        layer.activations, layer.expected = [], 16
        if forward is not None:
            layer.register_forward_hook(getattr(WRAPPER, forward))
        if backward is not None:
            layer.register_full_backward_hook(getattr(WRAPPER, backward))
        return model

    return build


HOOKED = Either((r"'2'", "gradlib", "hook", r"remove|unwrapped"))

HOOKS = table(
    "hooks of other libraries",
    ("a batch size that is expected", HOOKED, hooks(None, "expect"), normal(5), 6, two_layers),
    ("gradients per sample", HOOKED, hooks("keep", "per_sample"), normal(5), 6, two_layers),
    ("activations kept", HOOKED, hooks("keep", None), normal(5), 6, two_layers),
    ("activations replaced", HOOKED, hooks("keep_one", None), normal(5), 6, two_layers),
    ("a batch size that is the probe's", HOOKED, lambda: expecting(6), normal(5), 6, two_layers),
    ("a batch size of one", HOOKED, lambda: expecting(1), normal(5), 6, two_layers),
)  # fmt: skip


def expecting(size: int) -> nn.Module:
    model = hooks(None, "expect")()
    model[2].expected = size
    return model


SMALL = [
    *INDEPENDENT, *DEPENDENT, *COMPLEX, *ONE_FUNCTION, *WRITES, *TRANSFORMS, *ANOTHER_WAY,
    *UNUSED, *NOT_FINITE, *OVERFLOWS, *SHAPES, *COMPILED, *REPLACED, *HOOKS,
]  # fmt: skip
