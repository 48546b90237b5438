"""Project thousands of sequences: `python -m benchmarks.many_sequences pythia-70m --n 5000`.

Times `conescope.project` in units of plain passes, measures its peak, and compares the Gram matrix
of some of the features with their exact kernel. One thread is timed by the processor's clock.
"""

from __future__ import annotations

import argparse
import statistics

import torch

import conescope
from benchmarks.architectures import ARCHITECTURES
from benchmarks.draws import gram_error, signs
from benchmarks.machine import clock, describe, memory_field, reset_peak
from benchmarks.model_worker import settled

_BLOCK = 16
"""Samples of a plain pass."""


def measure(name: str, n: int, tokens: int, dim: int, memory: str, compared: int) -> dict:
    """Project n sequences of random tokens.

    Args:
        name: of an architecture.
        n: sequences.
        tokens: of each.
        dim: columns of a projection.
        memory: the engine's budget.
        compared: so many sequences, drawn at random, have their exact kernel computed.

    Returns:
        "seconds" of the call; "passes", the same in units of plain forward and backward passes of
        all sequences, of which three blocks of 16 were timed; "peak_bytes" beyond the model;
        "features_bytes"; "error", ‖FFᵀ − K‖ / ‖K‖ over the sequences that are compared.
    """
    model, ids = ARCHITECTURES[name].make(n, tokens)
    with torch.no_grad():
        direction = signs(1, model(ids[:1]).shape[1])[0]
    blocks = ids[: 4 * _BLOCK].split(_BLOCK)
    plain = []
    for block in blocks:
        start = clock()
        outputs = model(block)
        (outputs @ direction.to(outputs)).sum().backward()
        plain.append((clock() - start) / len(block))
        model.zero_grad(set_to_none=True)
    resident = settled()
    reset_peak()
    start = clock()
    features = conescope.project(model, ids, dim=dim, memory=memory)
    seconds = clock() - start
    peak = memory_field("VmHWM") - resident
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:compared]
    exact = conescope.estimate_entk(model, ids[chosen], draws=2, memory=memory).draws[0].double()
    values = features.values
    return {
        "seconds": seconds,
        "passes": seconds / (n * statistics.median(plain[1:])),
        "peak_bytes": peak,
        "features_bytes": values.numel() * values.element_size(),
        "error": gram_error(values[chosen], exact),
    }


def main() -> None:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_sequences", description=__doc__
    )
    parser.add_argument("model", choices=[k for k, a in ARCHITECTURES.items() if a.images is None])
    parser.add_argument("--n", type=int, default=5000, help="sequences (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of each (%(default)s)")
    parser.add_argument("--dim", type=int, default=4096, help="columns (%(default)s)")
    parser.add_argument("--memory", default="3GB", help="the engine's budget (%(default)s)")
    parser.add_argument("--compared", type=int, default=64, help="with exact (%(default)s)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(
        chosen.model, chosen.n, chosen.tokens, chosen.dim, chosen.memory, chosen.compared
    )
    machine = describe(1)
    print(
        f"{machine['processor']}, one thread, torch {machine['torch']}: {chosen.n:,} sequences of "
        f"{chosen.tokens} tokens to {chosen.dim:,} numbers each in {found['seconds']:.0f} s, "
        f"{found['passes']:.2f} plain passes; {found['peak_bytes'] / 1e9:.2f} GB at most beyond "
        f"the model, of which the features are {found['features_bytes'] / 1e9:.2f}; Gram matrix "
        f"of {chosen.compared} of them {found['error']:.1%} from their exact kernel"
    )


if __name__ == "__main__":
    main()
