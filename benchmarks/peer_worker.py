"""One projector on one language model, in a process of its own that stays warm between its turns.

Run by `benchmarks.peers` as `python -m benchmarks.peer_worker MODEL PROJECTOR THREADS SETTINGS`.
Its first message has the version, the setting and the share of the parameters that are covered;
then it answers {"stage": "run"} with a measurement and {"stage": "error"} with the error of the
last run. Whatever goes wrong ends the process; the last line of its error stream is the reason.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

from torch import Tensor

from benchmarks.architectures import ARCHITECTURES
from benchmarks.channel import Channel
from benchmarks.draws import draw_kernels, gram_error, signs
from benchmarks.machine import clock, memory_field, reset_peak
from benchmarks.model_worker import settled
from benchmarks.projectors import PROJECTORS
from benchmarks.reference import spread

_REFERENCE_BYTES = 2 * 10**9
_CHECKED = 8
"""So many samples, spread over the batch, have their part of the Gram matrix compared."""


class Entry:
    """A projector that is set up, and what is measured on it, one method a stage.

    Args:
        model: name of an architecture.
        projector: name of a projector.
        n, tokens, dim, block: the contest's.
    """

    def __init__(
        self, model: str, projector: str, n: int, tokens: int, dim: int, block: int
    ) -> None:
        self.make = lambda: ARCHITECTURES[model].make(n, tokens)
        network, self.x = self.make()
        self.cotangent = signs(1, network(self.x[:1]).shape[1])
        self.parameters = sum(p.numel() for p in network.parameters())
        self.chosen = PROJECTORS[projector](network, self.cotangent[0].float(), dim, min(block, n))
        self.features: Tensor | None = None
        self._resident = settled()
        self.chosen.setup()
        self.chosen.run(self.x)

    def facts(self) -> dict:
        """Version, setting, and the share of the parameters whose gradients are projected."""
        sizes = {name: p.numel() for name, p in self.make()[0].named_parameters()}
        covered = sum(sizes[name] for name in self.chosen.covered)
        return {
            "version": importlib.metadata.version(self.chosen.package),
            "setting": self.chosen.setting,
            "covered": covered / self.parameters,
        }

    def run(self) -> dict:
        """Seconds and peak of one call on all samples, and the columns that came out."""
        self.features = None
        settled()
        reset_peak()
        start = clock()
        self.features = self.chosen.run(self.x)
        seconds = clock() - start
        columns = 0 if self.features is None else self.features.shape[1]
        peak = memory_field("VmHWM") - self._resident
        return {"seconds": seconds, "peak_bytes": peak, "columns": columns}

    def error(self) -> dict:
        """‖FFᵀ − K‖ / ‖K‖ on the covered parameters, for some of the samples.

        K has float64 products of the gradients of a model that no library has touched.
        """
        if self.features is None:
            return {"error": None}
        model, x = self.make()
        for name, p in model.named_parameters():
            p.requires_grad_(name in self.chosen.covered)
        chosen = spread(len(x), min(_CHECKED, len(x)))
        reference = draw_kernels(model, x[chosen], self.cotangent, _REFERENCE_BYTES)[0]
        return {"error": gram_error(self.features[chosen].detach(), reference)}


STAGES = {"run": Entry.run, "error": Entry.error}


def _load_lazily(projector: str) -> None:
    """Project a tiny model: what a library loads at its first use is no part of a peak."""
    Entry("pythia-tiny", projector, n=2, tokens=5, dim=64, block=2)


def main(model: str, projector: str, threads: str, settings: str) -> None:
    """Set up and answer until the input ends."""
    channel = Channel(int(threads))
    _load_lazily(projector)
    entry = Entry(model, projector, **json.loads(settings))
    channel.send(entry.facts())
    for request in channel.requests():
        channel.send(STAGES[request["stage"]](entry))


if __name__ == "__main__":
    main(*sys.argv[1:])
