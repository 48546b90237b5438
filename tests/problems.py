"""The table of problems that every route of the engine has to get right: (model, inputs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Problem:
    """A model in evaluation mode, inputs, and the routes that its parameters may take."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    ruled: bool | None = True
    """Whether rules take all parameters (True), none (False), or some (None)."""

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Build the model, the same each time, with statistics and parameters away from 0 and 1."""
        torch.manual_seed(5)
        model = self.model().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return model.to(dtype)

    def samples(self, n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
        """Make n inputs, the same each time."""
        torch.manual_seed(6)
        x = self.inputs(n)
        return x.to(dtype) if x.is_floating_point() else x


class Apply(nn.Module):
    """A module of named members, whose forward pass is a function of itself and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **members: object) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Cube(torch.autograd.Function):
    """x ↦ x³ W, differentiated by hand."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x**3 @ weight

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return 3 * x**2 * (g @ weight.T), (x**3).T @ g


def _tied_convolution() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, nn.Tanh(), nn.AvgPool2d(2), conv, nn.Flatten(), nn.Linear(27, 3))


def _tied_embedding() -> nn.Module:
    embedding = nn.Embedding(7, 5)
    model = Apply(
        lambda m, x: m.head(torch.tanh(m.embedding(x)).mean(1)),
        embedding=embedding,
        head=nn.Linear(5, 7),
    )
    model.head.weight = embedding.weight
    return model


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def _partly_read() -> nn.Module:
    return Apply(
        lambda m, x: m.b(torch.tanh(m.a(x))) + (m.a.weight**2).sum() * x[:, :3],
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 3),
    )


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x) for layer in (m.q, m.k, m.v))
    return m.out(F.scaled_dot_product_attention(q, k, v)).mean(1)


def _doubled(image: Tensor) -> Tensor:
    if image.requires_grad:
        image.register_hook(lambda g: 2 * g)
    return image


def _filled(copies: Tensor, x: Tensor) -> Tensor:
    copies[:, :1] = x[:, :1]
    return copies


def _pool(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def _lazy(model: nn.Module, *shape: int) -> nn.Module:
    model(torch.zeros(1, *shape))
    return model


def _normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _tokens(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, vocabulary, (n, length))


def _image(name: str, *layers: Callable[[], nn.Module], ruled: bool | None = True) -> Problem:
    return Problem(
        name,
        lambda: _lazy(_pool(*(layer() for layer in layers)).eval(), 4, 6, 6),
        _normal(4, 6, 6),
        ruled,
    )


PROBLEMS = [
    Problem(
        "mlp",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        _normal(6),
    ),
    Problem(
        "one output", lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), _normal(6)
    ),
    Problem(
        "outputs without an axis",
        lambda: Apply(lambda m, x: m.a(x).squeeze(1), a=nn.Linear(6, 1)),
        _normal(6),
    ),
    Problem(
        "sequence outputs",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
        _normal(3, 4),
    ),
    _image("convolution", lambda: nn.Conv2d(4, 5, 3)),
    _image("strided", lambda: nn.Conv2d(4, 5, 3, stride=2, padding=(1, 2), dilation=2, bias=False)),
    _image("same padding", lambda: nn.Conv2d(4, 5, (1, 3), padding="same")),
    _image("reflecting", lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")),
    _image("circular", lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular")),
    _image("grouped", lambda: nn.Conv2d(4, 6, 3, groups=2)),
    _image("depthwise", lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4)),
    _image(
        "transposed", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
    ),
    _image(
        "grouped transposed", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2)
    ),
    _image("batch norm", lambda: nn.Conv2d(4, 5, 3, bias=False), lambda: nn.BatchNorm2d(5)),
    _image(
        "batch norm of groups",
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=2, groups=2),
        lambda: nn.BatchNorm2d(6),
    ),
    _image("two batch norms", lambda: nn.Conv2d(4, 5, 3), *[lambda: nn.BatchNorm2d(5)] * 2),
    Problem(
        "batch norm of one reader of two",
        lambda: Apply(
            lambda m, x: m.b(((y := m.a(x)) + m.norm(y)).flatten(1)),
            a=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            b=nn.Linear(64, 3),
        ),
        _normal(3, 6, 6),
    ),
    Problem(
        "batch norm of a changed image",
        lambda: Apply(
            lambda m, x: m.b(m.norm(m.a(x).mul_(3)).flatten(1)),
            a=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            b=nn.Linear(64, 3),
        ),
        _normal(3, 6, 6),
    ),
    Problem(
        "batch norm of a changed gradient",
        lambda: Apply(
            lambda m, x: m.b(m.norm(_doubled(m.a(x))).flatten(1)),
            a=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            b=nn.Linear(64, 3),
        ),
        _normal(3, 6, 6),
    ),
    Problem(
        "batch norm of frames",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.norm(x.flatten(0, 1))).flatten(1)).unflatten(0, (-1, 3)),
            norm=nn.BatchNorm2d(2),
            b=nn.Linear(8, 2),
        ),
        _normal(3, 2, 2, 2),
    ),
    Problem(
        "batch norm without offset",
        lambda: Apply(
            lambda m, x: m.b(
                F.batch_norm(m.a(x), m.norm.running_mean, m.norm.running_var, m.norm.weight).tanh()
            ),
            a=nn.Linear(4, 5),
            norm=nn.BatchNorm1d(5),
            b=nn.Linear(5, 3),
        ),
        _normal(4),
    ),
    Problem(
        "batch norm of a computed gain",
        lambda: Apply(
            lambda m, x: m.b(
                F.batch_norm(
                    m.a(x), m.norm.running_mean, m.norm.running_var, m.c(m.seed)[0], m.norm.bias
                ).tanh()
            ),
            a=nn.Linear(4, 5),
            norm=nn.BatchNorm1d(5),
            c=nn.Linear(2, 5),
            seed=nn.Parameter(torch.tensor([[0.3, -1.2]])),
            b=nn.Linear(5, 3),
        ),
        _normal(4),
    ),
    Problem(
        "batch norm of a parameter",
        lambda: Apply(
            lambda m, x: m.b(
                x + F.batch_norm(m.table, m.norm.running_mean, m.norm.running_var).mean(dim=0)
            ),
            table=nn.Parameter(torch.linspace(-1, 2, 20).view(5, 4)),
            norm=nn.BatchNorm1d(4, affine=False),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
    ),
    _image("group norm", lambda: nn.Conv2d(4, 6, 3), lambda: nn.GroupNorm(3, 6)),
    _image("layer norm", lambda: nn.Conv2d(4, 5, 3), lambda: nn.LayerNorm([4, 4])),
    _image(
        "instance norm",
        lambda: nn.Conv2d(4, 5, 3),
        lambda: nn.InstanceNorm2d(5, affine=True),
    ),
    _image(
        "max pool",
        lambda: nn.Conv2d(4, 5, 3),
        lambda: nn.ReLU(inplace=True),
        lambda: nn.MaxPool2d(2),
    ),
    Problem(
        "viewed image",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.a(x)).view(len(x), -1)),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Linear(64, 3),
        ),
        _normal(3, 6, 6),
    ),
    Problem("1-d", lambda: _lazy(_pool(nn.Conv1d(3, 4, 3, stride=2)), 3, 9), _normal(3, 9)),
    Problem(
        "3-d", lambda: _lazy(_pool(nn.Conv3d(2, 3, 2, padding=1)), 2, 3, 4, 3), _normal(2, 3, 4, 3)
    ),
    Problem(
        "1-d transposed",
        lambda: _lazy(_pool(nn.ConvTranspose1d(3, 4, 3, stride=2)), 3, 5),
        _normal(3, 5),
    ),
    Problem(
        "batch norm of vectors",
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
        _normal(6),
    ),
    Problem(
        "rms norm",
        lambda: nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3)),
        _normal(2, 6),
    ),
    Problem("tied convolution", _tied_convolution, _normal(3, 6, 6)),
    Problem(
        "recurrence by hand",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.a(torch.tanh(m.a(torch.tanh(m.a(x))))))),
            a=nn.Linear(5, 5),
            b=nn.Linear(5, 3),
        ),
        _normal(5),
    ),
    Problem("embedding", lambda: _lazy_tokens(nn.Embedding(7, 4)), _tokens(7, 5)),
    Problem(
        "padded embedding", lambda: _lazy_tokens(nn.Embedding(7, 4, padding_idx=-2)), _tokens(7, 5)
    ),
    Problem("tied embedding", _tied_embedding, _tokens(7, 5)),
    Problem(
        "attention",
        lambda: Apply(
            _attention, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), out=nn.Linear(4, 3)
        ),
        _normal(5, 4),
    ),
    Problem(
        "multi-head attention",
        lambda: Apply(
            lambda m, x: m.attention(x, x, x)[0].mean(1),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        _normal(5, 4),
    ),
    Problem(
        "transformer layer",
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2)
        ),
        _normal(3, 4),
    ),
    Problem(
        "sequence first",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.norm(m.a(x.transpose(0, 1))))).sum(0),
            a=nn.Linear(4, 5),
            norm=nn.LayerNorm(5),
            b=nn.Linear(5, 3),
        ),
        _normal(6, 4),
    ),
    Problem(
        "samples unrolled",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.a(x.reshape(-1, 4)))).reshape(len(x), -1),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 2),
        ),
        _normal(3, 4),
    ),
    Problem(
        "samples in reverse",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.a(x.flip(0)))).flip(0),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 2),
        ),
        _normal(4),
        False,
    ),
    Problem(
        "raw parameter",
        lambda: Apply(
            lambda m, x: m.a(x * m.scale) + m.shift.sin(),
            a=nn.Linear(4, 3),
            scale=nn.Parameter(torch.ones(4)),
            shift=nn.Parameter(torch.ones(3)),
        ),
        _normal(4),
    ),
    Problem(
        "scalar parameter",
        lambda: Apply(
            lambda m, x: m.a(x) * m.scale.exp(),
            a=nn.Linear(4, 3),
            scale=nn.Parameter(torch.tensor(0.3)),
        ),
        _normal(4),
    ),
    Problem("frozen parameter", _frozen, _normal(6)),
    Problem("weight read elsewhere", _partly_read, _normal(6)),
    Problem(
        "weight norm",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
        ),
        _normal(6),
    ),
    Problem(
        "functional call",
        lambda: Apply(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.w)), m.w.T) + F.linear(x, m.v),
            w=nn.Parameter(torch.ones(5, 4)),
            v=nn.Parameter(torch.ones(4, 4)),
        ),
        _normal(4),
    ),
    Problem(
        "products of matrices",
        lambda: Apply(
            lambda m, x: torch.mm(torch.tanh(torch.matmul(torch.tanh(x @ m.u), m.v)), mat2=m.w),
            u=nn.Parameter(torch.ones(4, 5)),
            v=nn.Parameter(torch.ones(5, 3)),
            w=nn.Parameter(torch.ones(3, 2)),
        ),
        _normal(4),
    ),
    Problem(
        "a product of matrices with an offset, at every position",
        lambda: Apply(
            lambda m, x: torch.addmm(m.b, x.view(-1, 4), m.w).view(*x.shape[:-1], 3).sin(),
            w=nn.Parameter(torch.ones(4, 3)),
            b=nn.Parameter(torch.ones(3)),
        ),
        _normal(5, 4),
    ),
    Problem(
        "a square weight from both sides",
        lambda: Apply(
            lambda m, x: torch.addmm(F.linear(x, m.w, m.b), torch.tanh(x @ m.w), m.w),
            w=nn.Parameter(torch.ones(4, 4)),
            b=nn.Parameter(torch.ones(4)),
        ),
        _normal(4),
    ),
    Problem(
        "a scaled product of matrices",
        lambda: Apply(
            lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0) + x @ m.w @ m.v,
            w=nn.Parameter(torch.ones(4, 3)),
            b=nn.Parameter(torch.ones(3)),
            v=nn.Parameter(torch.ones(3, 3)),
        ),
        _normal(4),
    ),
    Problem(
        "a product with a computed offset",
        lambda: Apply(
            lambda m, x: torch.addmm(m.b * x[:, :3], x, m.w),
            w=nn.Parameter(torch.ones(4, 3)),
            b=nn.Parameter(torch.ones(3)),
        ),
        _normal(4),
    ),
    Problem(
        "functional, by rule",
        lambda: Apply(lambda m, x: F.linear(x, m.w), w=nn.Parameter(torch.ones(2, 4))),
        _normal(4),
    ),
    Problem(
        "lstm",
        lambda: Apply(
            lambda m, x: m.head(m.cell(x)[0][:, -1]),
            cell=nn.LSTM(3, 4, batch_first=True),
            head=nn.Linear(4, 2),
        ),
        _normal(4, 3),
    ),
    Problem(
        "gru cell",
        lambda: Apply(
            lambda m, x: m.cell(x[:, 0], torch.tanh(m.cell(x[:, 1]))), cell=nn.GRUCell(3, 3)
        ),
        _normal(2, 3),
    ),
    *(
        Problem(
            f"{kind}, {what}",
            lambda kind=kind, options=options: Apply(
                lambda m, x: m.a(x)[0].sin().flatten(1),
                a=getattr(nn, kind)(3, 3, batch_first=True, **options),
            ),
            _normal(4, 3),
        )
        for kind, what, options in (
            ("LSTM", "two layers, both ways", {"num_layers": 2, "bidirectional": True}),
            ("LSTM", "without biases", {"bias": False, "num_layers": 2}),
            ("GRU", "both ways", {"bidirectional": True}),
            ("GRU", "without biases", {"bias": False}),
            ("RNN", "two layers", {"num_layers": 2}),
            ("RNN", "rectified", {"nonlinearity": "relu", "bidirectional": True}),
        )
    ),
    Problem(
        "lstm, sequence first",
        lambda: Apply(
            lambda m, x: torch.cat([part[-1] for part in m.a(x.transpose(0, 1))[1]], 1),
            a=nn.LSTM(3, 4),
        ),
        _normal(4, 3),
    ),
    Problem(
        "cells",
        lambda: Apply(
            lambda m, x: m.b(x[:, 0], m.b(x[:, 1])) + m.a(x[:, 0], m.a(x[:, 1]))[0],
            a=nn.LSTMCell(3, 3),
            b=nn.RNNCell(3, 3),
        ),
        _normal(2, 3),
    ),
    Problem(
        "packed sequence",
        lambda: Apply(
            lambda m, x: m.a(nn.utils.rnn.pack_padded_sequence(x, [3] * len(x), batch_first=True))[
                1
            ][0],
            a=nn.GRU(3, 2),
        ),
        _normal(4, 3),
        False,
    ),
    Problem(
        "re-entrant checkpoint",
        lambda: Apply(
            lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=True)),
            a=nn.Sequential(nn.Linear(4, 5), nn.Tanh()),
            b=nn.Linear(5, 3),
        ),
        _normal(4),
        False,
    ),
    Problem(
        "checkpoint",
        lambda: Apply(
            lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False)),
            a=nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh()),
            b=nn.Linear(5, 3),
        ),
        _normal(4),
    ),
    Problem(
        "custom function",
        lambda: Apply(
            lambda m, x: m.b(Cube.apply(x, m.w)),
            w=nn.Parameter(torch.ones(4, 3)),
            b=nn.Linear(3, 2),
        ),
        _normal(4),
        None,
    ),
    Problem(
        "way by value",
        lambda: Apply(
            lambda m, x: torch.cat([m.a(r) if r.sum().item() > 0 else m.b(r) for r in x.split(1)]),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
        False,
    ),
    Problem(
        "experts",
        lambda: Apply(
            lambda m, x: torch.bmm(x.expand(3, *x.shape), m.w).tanh().bmm(m.v).sum(0),
            w=nn.Parameter(torch.ones(3, 4, 5)),
            v=nn.Parameter(torch.ones(3, 5, 2)),
        ),
        _normal(4),
    ),
    Problem(
        "experts of tokens",
        lambda: Apply(
            lambda m, x: ((x[:, None] @ m.w).tanh() @ m.v).mean(1),
            w=nn.Parameter(torch.ones(3, 4, 5)),
            v=nn.Parameter(torch.ones(1, 5, 2)),
        ),
        _normal(3, 4),
    ),
    Problem(
        "more experts than data",
        lambda: Apply(
            lambda m, x: torch.matmul(x, m.w).transpose(0, 1).flatten(1),
            w=nn.Parameter(torch.ones(3, 4, 5)),
        ),
        _normal(4),
    ),
    Problem(
        "weights on the left",
        lambda: Apply(
            lambda m, x: m.u @ (m.v @ (m.w @ x.mT).tanh()).tanh().sum(1),
            w=nn.Parameter(torch.ones(5, 4)),
            v=nn.Parameter(torch.ones(1, 3, 5)),
            u=nn.Parameter(torch.ones(3)),
        ),
        _normal(2, 3, 4),
    ),
    Problem(
        "products with vectors",
        lambda: Apply(
            lambda m, x: (x @ m.w).tanh() + F.linear(x, m.v).sin(),
            w=nn.Parameter(torch.ones(4)),
            v=nn.Parameter(torch.ones(4)),
        ),
        _normal(3, 4),
    ),
    Problem(
        "a batched product with an offset",
        lambda: Apply(
            lambda m, x: torch.baddbmm(x.transpose(0, 1), x.transpose(0, 1), m.w).transpose(0, 1),
            w=nn.Parameter(torch.ones(3, 4, 4)),
        ),
        _normal(3, 4),
    ),
    Problem(
        "heads by einsum",
        lambda: Apply(
            lambda m, x: torch.einsum(
                "b t h k, hkd -> b t d", torch.einsum("btd,dhk->bthk", x, m.w).tanh(), m.v
            ),
            w=nn.Parameter(torch.ones(4, 2, 3)),
            v=nn.Parameter(torch.ones(2, 3, 2)),
        ),
        _normal(3, 4),
    ),
    Problem(
        "experts by einsum",
        lambda: Apply(
            lambda m, x: torch.einsum(
                "efo,...ef->...o", m.v, torch.einsum("bd,edf->bef", x, m.w).tanh()
            ),
            w=nn.Parameter(torch.ones(3, 4, 5)),
            v=nn.Parameter(torch.ones(3, 5, 2)),
        ),
        _normal(4),
    ),
    Problem(
        "a weight in two orders",
        lambda: Apply(
            lambda m, x: torch.einsum("ba,oa->bo", x, m.w).tanh() @ m.w + F.linear(x, m.w),
            w=nn.Parameter(torch.ones(4, 4)),
        ),
        _normal(4),
    ),
    Problem(
        "sums that have no rule",
        lambda: Apply(
            lambda m, x: (
                torch.einsum("bi,ij,bj->b", x, m.w, x)[:, None]
                + torch.einsum("bi,ii->bi", x, m.v)
                + m.a(x)
            ),
            w=nn.Parameter(torch.ones(3, 3)),
            v=nn.Parameter(torch.ones(3, 3)),
            a=nn.Linear(3, 3),
        ),
        _normal(3),
        None,
    ),
    Problem(
        "cross attention",
        lambda: Apply(
            lambda m, x: m.b(x[:, :2], x, x, need_weights=False)[0] + m.a(x[:, :2], x, x + 1)[0],
            a=nn.MultiheadAttention(4, 2, batch_first=True, bias=False, add_bias_kv=True),
            b=nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        _normal(5, 4),
    ),
    Problem(
        "attention between spaces",
        lambda: Apply(
            lambda m, x: m.a(x[..., :4], x, x[..., 3:])[0],
            a=nn.MultiheadAttention(4, 2, kdim=6, vdim=3, batch_first=True),
        ),
        _normal(5, 6),
    ),
    Problem(
        "transformer, sequence first",
        lambda: Apply(
            lambda m, x: m.a(x.transpose(0, 1), x.transpose(0, 1)).mean(0),
            a=nn.TransformerDecoderLayer(4, 2, 6),
        ),
        _normal(6, 4),
    ),
    Problem(
        "attention with a bias of its scores",
        lambda: Apply(
            lambda m, x: (
                F.scaled_dot_product_attention(
                    (y := m.a(x).unflatten(2, (2, 2)).transpose(1, 2)),
                    y,
                    y,
                    m.bias(m.far)[None].movedim(3, 1),
                )
                .transpose(1, 2)
                .flatten(1)
            ),
            a=nn.Linear(4, 4),
            bias=nn.Embedding(5, 2),
            far=torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 4], [3, 2, 4, 0]]),
        ),
        _normal(4, 4),
    ),
    Problem(
        "scales and offsets",
        lambda: Apply(
            lambda m, x: (1 + m.a) * (m.b.exp() * x - m.c) / (2 + x**2 * m.d.to(x.dtype)) + m.e,
            a=nn.Parameter(torch.ones(4)),
            b=nn.Parameter(torch.tensor(0.3)),
            c=nn.Parameter(torch.ones(3, 1)),
            d=nn.Parameter(torch.ones(1, 3, 4)),
            e=nn.Parameter(torch.ones(1, 1, 1)),
        ),
        _normal(3, 4),
    ),
    Problem(
        "a parameter larger than the data",
        lambda: Apply(
            lambda m, x: m.b((x[:, None] * m.a).sin()),
            a=nn.Parameter(torch.ones(4, 3)),
            b=nn.Linear(3, 2),
        ),
        _normal(3),
    ),
    Problem(
        "scales in place",
        lambda: Apply(
            lambda m, x: torch.addcmul(m.a(x).mul_(m.b).add_(m.c).tanh(), x[:, :3], m.c, value=2),
            a=nn.Linear(4, 3),
            b=nn.Parameter(torch.ones(3)),
            c=nn.Parameter(torch.ones(1)),
        ),
        _normal(4),
    ),
    Problem(
        "scales, sequence first",
        lambda: Apply(
            lambda m, x: (m.a(x.transpose(0, 1)).tanh() * m.b + m.c[:, None]).sum(0),
            a=nn.Linear(4, 3),
            b=nn.Parameter(torch.ones(3)),
            c=nn.Parameter(torch.ones(6, 3)),
        ),
        _normal(6, 4),
    ),
    Problem(
        "scales of unrolled positions",
        lambda: Apply(
            lambda m, x: (
                m.d(m.n(m.a(x.transpose(0, 1).reshape(-1, 4)) * m.b))
                .unflatten(0, (5, -1))
                .transpose(0, 1)
                .flatten(1)
            ),
            a=nn.Linear(4, 3),
            b=nn.Parameter(torch.ones(3)),
            n=nn.LayerNorm(3),
            d=nn.Linear(3, 2),
        ),
        _normal(5, 4),
    ),
    Problem(
        "positions",
        lambda: Apply(
            lambda m, x: m.b(
                m.norm(m.a(x) + m.p(torch.arange(4, device=x.device)[None]) + m.q[:, :4]).flatten(1)
            ),
            a=nn.Embedding(7, 3),
            p=nn.Embedding(9, 3, padding_idx=1),
            q=nn.Parameter(torch.ones(1, 6, 3)),
            norm=nn.LayerNorm(3),
            b=nn.Linear(12, 2),
        ),
        _tokens(7, 4),
    ),
    Problem(
        "positions without an axis",
        lambda: Apply(
            lambda m, x: m.a(x).tanh() * m.p(torch.arange(4, device=x.device)) + m.p.weight[1],
            a=nn.Embedding(7, 3),
            p=nn.Embedding(5, 3),
        ),
        _tokens(7, 4),
    ),
    Problem(
        "tokens for classes",
        lambda: Apply(
            lambda m, x: (
                m.b(torch.cat([m.c.expand(len(x), -1, -1), x, (2 * m.d).repeat(len(x), 1, 1)], 1))
                .tanh()
                .sum(1)
            ),
            c=nn.Parameter(torch.ones(1, 1, 4)),
            d=nn.Parameter(torch.ones(2, 4)),
            b=nn.Linear(4, 3),
        ),
        _normal(3, 4),
    ),
    Problem(
        "a token in a batch of its own",
        lambda: Apply(
            lambda m, x: m.b(torch.cat([m.c, x]))[1:],
            c=nn.Parameter(torch.ones(1, 4)),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
        False,
    ),
    Problem(
        "copies that are written to",
        lambda: Apply(
            lambda m, x: m.b(_filled(m.c.expand(len(x), -1).clone(), x)),
            c=nn.Parameter(torch.ones(4)),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
    ),
    Problem(
        "slices that are written to",
        lambda: Apply(
            lambda m, x: m.b(x) * _filled((2 * m.c).expand(1, -1).clone(), m.d) * (m.c + 1).mul_(2),
            c=nn.Parameter(torch.ones(3)),
            d=nn.Parameter(torch.ones(1, 1)),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
    ),
    Problem(
        "a weight in parts",
        lambda: Apply(
            lambda m, x: (
                F.linear(F.linear(x, *(p[:3] for p in (m.w, m.v))).tanh(), m.w[3:, 1:])
                + F.linear(x, m.w.view(4, 5).double().to(x.dtype).T.reshape(5, 4))[:, :2]
            ),
            w=nn.Parameter(torch.ones(5, 4)),
            v=nn.Parameter(torch.ones(5)),
        ),
        _normal(4),
    ),
    Problem(
        "tied by a transpose",
        lambda: Apply(
            lambda m, x: m.a(x).tanh().sum(1) @ m.a.weight.T,
            a=nn.Embedding(7, 3),
        ),
        _tokens(7, 4),
    ),
    Problem(
        "a cast parameter",
        lambda: Apply(
            lambda m, x: F.linear(x.double(), m.w.double()).to(x.dtype) * m.v.float().to(x.dtype),
            w=nn.Parameter(torch.ones(3, 4)),
            v=nn.Parameter(torch.ones(3)),
        ),
        _normal(4),
    ),
    Problem(
        "parameters of each other",
        lambda: Apply(
            lambda m, x: x * (m.a * m.b.exp()) + torch.cat([m.a, m.b])[1:],
            a=nn.Parameter(torch.ones(3)),
            b=nn.Parameter(torch.ones(1)),
        ),
        _normal(3),
    ),
    Problem(
        "covered and not",
        lambda: Apply(
            lambda m, x: Cube.apply(x * m.s, m.w) + m.w.sum(0) * m.t,
            w=nn.Parameter(torch.ones(4, 3)),
            s=nn.Parameter(torch.ones(4)),
            t=nn.Parameter(torch.ones(3)),
        ),
        _normal(4),
        None,
    ),
    Problem(
        "frozen tokens",
        lambda: Apply(
            lambda m, x: m.b(m.frozen[x] * m.s + m.t).tanh().sum(1),
            frozen=nn.Buffer(torch.linspace(-1, 2, 28).view(7, 4)),
            s=nn.Parameter(torch.ones(4)),
            t=nn.Parameter(torch.ones(5, 4)),
            b=nn.Linear(4, 3),
        ),
        _tokens(7, 5),
    ),
    Problem(
        "constants before samples",
        lambda: Apply(
            lambda m, x: m.b(x) * (m.mask * m.s).sum(0),
            mask=torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]),
            s=nn.Parameter(torch.ones(3)),
            b=nn.Linear(4, 3),
        ),
        _normal(4),
    ),
    Problem(
        "a choice between a parameter and the data",
        lambda: Apply(
            lambda m, x: torch.where(x > 0, m.s, x).masked_fill(x < -1, 0.5) * m.t.abs().sqrt(),
            s=nn.Parameter(torch.ones(4)),
            t=nn.Parameter(torch.ones(4)),
        ),
        _normal(4),
    ),
    Problem(
        "picked rows",
        lambda: Apply(
            lambda m, x: m.w[x].tanh().sum(1),
            w=nn.Parameter(torch.ones(7, 4)),
        ),
        _tokens(7, 5),
    ),
    *(
        Problem(
            f"bag of tokens, {mode}",
            lambda mode=mode, padding=padding: Apply(
                lambda m, x: m.b(m.a(x).tanh()),
                a=nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding),
                b=nn.Linear(4, 3),
            ),
            _tokens(7, 5),
            True if mode != "max" else None,
        )
        for mode, padding in (("sum", None), ("mean", -2), ("max", None))
    ),
    Problem(
        "weighted bag",
        lambda: Apply(
            lambda m, x: m.a(x.long().abs(), per_sample_weights=x).tanh(),
            a=nn.EmbeddingBag(9, 4, mode="sum"),
        ),
        _normal(5),
    ),
    Problem(
        "unused parameter",
        lambda: Apply(lambda m, x: m.a(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3)),
        _normal(4),
    ),
    Problem(
        "detached",
        lambda: Apply(
            lambda m, x: m.b(torch.tanh(m.a(x)).detach() + x), a=nn.Linear(4, 4), b=nn.Linear(4, 3)
        ),
        _normal(4),
    ),
]


def problem_named(name: str) -> Problem:
    """Return the problem of the table with this name."""
    return next(p for p in PROBLEMS if p.name == name)


def _lazy_tokens(embedding: nn.Embedding) -> nn.Module:
    return nn.Sequential(embedding, nn.Conv1d(5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
