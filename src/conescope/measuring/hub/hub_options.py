"""Name what may be wanted of a series that says of which model it is, beside the kernel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.choice import Choice
from conescope.measuring.probe import Probe


class HubOptions(TypedDict, total=False):
    r"""Options of `conescope.measure_hub`; the command line has the same names.

    Attributes:
        revisions: what names of branches or tags have to match, such as `step*`: one pattern, or
            one for each stage of the training, in the order of the stages.
        column: the column of the texts, see `read_texts`.
        labels: the column of their classes, see `read_texts`.
        length: the number of tokens to which each text is cut or padded, see `tokenise`.
        samples: how many texts to take, from the first on; all without it.
        tokenizer: a folder, or `org/name`; by default that of the first revision, or of main.
        base: the model on which adapters of peft are put: a folder, or `org/name`; by default the
            one that they name.
        step_pattern: a regular expression whose one group is the step in a name: `ckpt_(\d+)`.
        steps: the steps, where names give none, see `measure_checkpoints`.
        device: where to compute; the CPU by default.
        keep_cache: whether revisions are fetched into the Hub's cache, to stay there.
        skip_failed: whether a revision that cannot be measured is left out with a warning.
        trust_remote_code: whether Python code of the repository may run, if transformers does not
            know the architecture: it can do whatever you can do.
    """

    revisions: str | Sequence[str]
    column: str | None
    labels: str | None
    length: int | None
    samples: int | None
    tokenizer: str | None
    base: str | None
    step_pattern: str | None
    steps: Steps | None
    device: str | torch.device
    keep_cache: bool
    skip_failed: bool
    trust_remote_code: bool


@dataclass(frozen=True)
class Wanted:
    """A series on the Hub or of saved folders, and what is wanted of it.

    Attributes:
        source: see `measure_hub`.
        texts: see `measure_hub`; None where there is a probe.
        choice: which kernel.
        options: the rest of the options.
        model: the model, if config.json is not to choose it.
        probe: its inputs, in place of texts.
        labels: the classes of that probe's samples.
    """

    source: str | Path | Collection[str | Path]
    texts: str | Path | Sequence[str] | None
    choice: Choice = field(default_factory=Choice)
    options: HubOptions = field(default_factory=lambda: HubOptions())
    model: nn.Module | None = None
    probe: Probe | None = None
    labels: Tensor | Sequence[int] | None = None
