"""A worker's side of its conversation with `benchmarks.process`: lines of JSON, in and out."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator

import torch

Message = dict[str, object]


class Channel:
    """The original standard input and output of a worker that holds itself to some threads.

    What libraries print meanwhile goes to the error stream, and warnings go nowhere.
    """

    def __init__(self, threads: int) -> None:
        warnings.simplefilter("ignore")
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        torch.set_num_threads(threads)

    def send(self, message: Message) -> None:
        """Write a message to the parent."""
        print(json.dumps(message), file=self._answers)

    def requests(self) -> Iterator[dict]:
        """Yield the parent's requests until the input ends."""
        for line in sys.stdin:
            yield json.loads(line)
