"""Series of tiny models on a pretend Hub, for the tests that measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.pretend_hub import PretendHub
from torch import Tensor, nn

import conescope as cs
from conescope.runs.reader import Run
from tiny_language import files_of, model, tokenizer

NAME = "lab/tiny"
TEXTS = ["a cat runs", "the dog", "the dog runs, the cat runs", "cat"]


def put(
    hub: PretendHub,
    kind: str = "GPTNeoXForCausalLM",
    revisions: tuple[str, ...] = ("step0", "step10", "step20"),
    *,
    name: str = NAME,
    as_bin: bool = False,
    **settings: Any,
) -> dict[str, nn.Module]:
    """Put a series on a Hub, with a branch main that has no weights; return the models."""
    words = files_of(tokenizer(has_padding=False, has_ends=kind.startswith("Bert")))
    models = {revision: model(kind, seed, **settings) for seed, revision in enumerate(revisions)}
    for revision, made in models.items():
        hub.add(name, revision, {**files_of(made, as_bin=as_bin), **words})
    hub.add(name, "main", {"README.md": b"A tiny model."})
    return {**models}


def measured(texts: Any = TEXTS, *, name: str = NAME, **options: Any) -> Run:
    """Measure the revisions step* of a series into the folder run."""
    return cs.measure_hub(f"hf://{name}", texts, **{"revisions": "step*", "out": "run", **options})


def commit(hub: PretendHub, revision: str, name: str = NAME) -> str:
    """Return the commit of a revision, by which its files are asked for."""
    return hub.repositories["model", name].commit(revision)


def kernel_of(made: nn.Module, outputs: Callable[[int], Tensor], count: int) -> Tensor:
    """Return the class trace by nested loops: outputs(i) are those of sample i, [C]."""
    jacobians = []
    for sample in range(count):
        rows = []
        for output in outputs(sample):
            found = torch.autograd.grad(
                output, [*made.parameters()], retain_graph=True, allow_unused=True
            )
            pairs = zip(found, made.parameters(), strict=True)
            rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                                   for g, p in pairs]).double())  # fmt: skip
        jacobians.append(torch.stack(rows))
    return torch.tensor([[float((one * two).sum()) for two in jacobians] for one in jacobians],
                        dtype=torch.float64)  # fmt: skip
