"""Models of twenty kinds whose kernels are measured within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class _Tokens(nn.Module):
    """A transformer that says what follows the last token."""

    def __init__(self, width: int, layers: int, words: int, *, is_tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        if is_tied:
            self.head.weight = self.embedding.weight
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(ids))[:, -1])


class _Last(nn.Module):
    """Recurrent cells, of which a linear layer reads the last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.cells, self.head = kind(32, 96, batch_first=True, **options), nn.LazyLinear(10)
        self.head(self.cells(torch.zeros(1, 1, 32))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class _Residual(nn.Module):
    """What a part gives is added to what it takes."""

    def __init__(self, *part: nn.Module) -> None:
        super().__init__()
        self.part = nn.Sequential(*part)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)


class _Turned(_Residual):
    """The same between the tokens of a sample instead of between its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x.mT).mT


class _Patches(nn.Module):
    """A vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 64, 4, 4), nn.Parameter(torch.randn(16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.layers(tokens).mean(1))


class _Pairs(nn.Module):
    """A bilinear form of two halves of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.head = nn.Bilinear(40, 40, 60), nn.Linear(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pairs(x[:, :40], x[:, 40:]).tanh())


class _Own(nn.Module):
    """Weights that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(200, 400) / 14)
        self.scale = nn.Parameter(torch.ones(400))
        self.last = nn.Parameter(torch.randn(400, 10) / 20)

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.first).tanh() * self.scale) @ self.last


def _block(width: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]


def _convolutions() -> nn.Module:
    first, last = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24 * 16, 10)
    return nn.Sequential(first, *_block(24), *_block(24), nn.MaxPool2d(4), nn.Flatten(), last)


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _normalised() -> nn.Module:
    blocks = (_Residual(nn.LayerNorm(200), nn.Linear(200, 200), nn.GELU()) for _ in range(12))
    return nn.Sequential(*blocks, nn.Linear(200, 10))


def _residual() -> nn.Module:
    part = (nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU())
    blocks = (_Residual(*part) for _ in range(3))
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, *pooled)


def _separable() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 3, padding=1)]
    for _ in range(3):
        layers += [nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 48, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 10))


def _waves() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 32, 9, stride=2), nn.ReLU(), nn.Conv1d(32, 64, 9, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(256, 10)),
    )


def _decoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(20, 32 * 16), nn.Unflatten(1, (32, 4, 4)), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 3), nn.Flatten()),
    )


def _mixer() -> nn.Module:
    def part(width: int) -> list[nn.Module]:
        return [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                nn.Linear(2 * width, width)]  # fmt: skip

    layers = [mixed for _ in range(3) for mixed in (_Turned(*part(16)), _Residual(*part(64)))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


def _bag() -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(2000, 64), nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 5)
    )


def _words(count: int, samples: int, length: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (samples, length))


def _values(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "wide": (lambda: _perceptron(200, 1500, 1500, 10), _values(100, 200)),
    "deep": (lambda: _perceptron(200, *[150] * 20, 10), _values(200, 200)),
    "many outputs": (lambda: _perceptron(100, 300, 400), _values(60, 100)),
    "layer norm": (_normalised, _values(100, 200)),
    "own weights": (_Own, _values(100, 200)),
    "bilinear": (_Pairs, _values(60, 80)),
    "bag of words": (_bag, _words(2000, 100, 30)),
    "lenet": (_lenet, _values(100, 1, 28, 28)),
    "convolutions": (_convolutions, _values(64, 3, 16, 16)),
    "residual": (_residual, _values(64, 3, 16, 16)),
    "separable": (_separable, _values(64, 3, 16, 16)),
    "waves": (_waves, _values(100, 2, 200)),
    "decoder": (_decoder, _values(60, 20)),
    "mixer": (_mixer, _values(64, 16, 64)),
    "vision transformer": (_Patches, _values(48, 3, 16, 16)),
    "transformer": (lambda: _Tokens(64, 3, 50), _words(50, 48, 32)),
    "language model": (lambda: _Tokens(96, 6, 200), _words(200, 32, 48)),
    "tied": (lambda: _Tokens(64, 2, 300, is_tied=True), _words(300, 48, 24)),
    "lstm": (lambda: _Last(nn.LSTM), _values(48, 24, 32)),
    "gru": (lambda: _Last(nn.GRU, bidirectional=True), _values(48, 24, 32)),
}
"""Name → what builds a model, and what draws its samples."""
