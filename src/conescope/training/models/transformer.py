"""A decoder-only transformer, which predicts the next token at every position."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.errors import RecipeError
from conescope.training.models import check_classes, widened

_FACTOR = 4
"""The hidden units of a block's perceptron, as a multiple of its width."""

Norm = Literal["layer", "none"]
"""What is put before each attention, perceptron and the logits: LayerNorm, or nothing."""


class Transformer(nn.Module):
    """Blocks of causal attention and a perceptron on a residual stream, with learned positions.

    Maps token ids [n, T] to logits [n, T, classes]: those of a position depend on the tokens up to
    it. Matrices start from N(0, 1 / fan-in), embeddings from N(0, 1 / units), biases from 0.

    Args:
        shape: (T,), the number of tokens of one sample.
        classes: number of logits of each position.
        vocabulary: number of different tokens that there may be; None if samples are no tokens.
        width: multiplies the number of units.
        layers: number of blocks.
        units: width of the residual stream at width 1, a multiple of `heads`.
        heads: number of attention heads in each block.
        norm: `layer` for LayerNorm before every part and before the logits, or `none`.

    Raises:
        RecipeError: if the samples are no sequences of tokens, or a number is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        vocabulary: int | None,
        width: float = 1.0,
        layers: int = 1,
        units: int = 128,
        heads: int = 4,
        norm: Norm = "layer",
    ):
        super().__init__()
        check_classes(classes)
        if vocabulary is None or len(shape) != 1:
            raise RecipeError(
                f"model transformer takes token ids [n, T], and these samples have shape "
                f"{tuple(shape)} and {vocabulary or 'no'} tokens; choose data modular-addition, "
                f"text, or your own"
            )
        for name, number in {"layers": layers, "units": units, "heads": heads}.items():
            if number < 1:
                raise RecipeError(f"model.{name} must be at least 1, not {number}")
        if norm not in ("layer", "none"):
            raise RecipeError(f'model.norm is {norm!r}; choose "layer" or "none"')
        wide = widened(units, width)
        if wide % heads:
            raise RecipeError(
                f"model.units (times model.width) is {wide}, which {heads} heads cannot share "
                f"equally; choose a multiple of {heads}"
            )
        self.tokens = nn.Embedding(vocabulary, wide)
        self.positions = nn.Embedding(shape[0], wide)
        self.blocks = nn.ModuleList(_Block(wide, heads, norm) for _ in range(layers))
        self.norm = _norm(norm, wide)
        self.logits = nn.Linear(wide, classes, bias=False)
        self.apply(_start)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token that follows each position, [n, T, classes]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x))


class _Block(nn.Module):
    """Attention, then a perceptron, each added to the residual stream [n, T, units]."""

    def __init__(self, units: int, heads: int, norm: Norm):
        super().__init__()
        self.norm1, self.attention = _norm(norm, units), _Attention(units, heads)
        self.norm2 = _norm(norm, units)
        self.expand = nn.Linear(units, _FACTOR * units)
        self.shrink = nn.Linear(_FACTOR * units, units)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.shrink(F.relu(self.expand(self.norm2(x))))


class _Attention(nn.Module):
    """Causal attention of several heads, [n, T, units] → [n, T, units]."""

    def __init__(self, units: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(units, units, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        split = (self.heads, x.shape[2] // self.heads)
        q, k, v = (
            part(x).unflatten(2, split).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


def _norm(norm: Norm, units: int) -> nn.Module:
    return nn.LayerNorm(units) if norm == "layer" else nn.Identity()


def _start(module: nn.Module) -> None:
    """Draw the first weights of a module of its own."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
