"""The options of `conescope measure` that say what to measure, and at which samples."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from conescope.kernel.matrix import BatchNorm, NamedOutputs, Outputs
from conescope.measuring.pooling import POOLS


def add_for_checkpoints(option: Callable[..., argparse.Action]) -> None:
    """Add the options for checkpoints that any training wrote."""
    option("--model", metavar="MODULE:BUILD", help="function that builds the model; runs its code")
    option("--probe", metavar="FILE",
        help="the samples, as .parquet, .safetensors, .npz, .npy, .pt or .pth")  # fmt: skip
    option("--inputs", metavar="NAME,…", help="the probe's columns to use as inputs (default all)")
    option("--labels", metavar="NAME", help="the probe's column with the samples' classes")
    option("--step-pattern", metavar="REGEX",
        help=r"regular expression whose group is the step: 'ckpt_(\d+)'")  # fmt: skip
    option("--steps", metavar="CSV", type=Path, help="CSV file of lines 'file,step'")
    option("--iterations-per-epoch", metavar="N", type=int,
        help="for names that count in epochs: model_ep3_it20.pth is step 3 N + 20")  # fmt: skip
    option("--select", metavar="FIELD", help="field of the model's output, such as logits or 0")
    option("--pool", choices=tuple(POOLS),
        help="take the outputs of the last token, or their mean over tokens")  # fmt: skip
    option("--device", help="cpu (default), cuda or another device of torch")


def add_for_described(option: Callable[..., argparse.Action]) -> None:
    """Add the options for series that say themselves of which model they are, and for texts."""
    option("--revisions", metavar="PATTERN", action="append",
        help="branches and tags to measure, such as 'step*'; may be given again, once for each "
        "stage of the training, in their order")  # fmt: skip
    option("--texts", metavar="FILE",
        help="the samples, as .jsonl, .txt, .csv or .parquet, or hf://datasets/ORG/NAME; in place "
        "of --probe")  # fmt: skip
    option("--column", metavar="NAME", help="the column of the texts (default text)")
    option("--length", metavar="T", type=int,
        help="tokens to which each text is cut or padded (default: the longest)")  # fmt: skip
    option("--samples", metavar="N", type=int, help="take the first N texts (default all)")
    option("--tokenizer", metavar="ORG/NAME", help="or a folder (default the repository's own); "
        "with --model, for --texts")  # fmt: skip
    option("--base", metavar="ORG/NAME", help="or a folder: the model on which adapters of peft "
        "are put (default the one that they name)")  # fmt: skip
    option("--keep-cache", action="store_true", default=None,
        help="keep what is downloaded in the Hub's cache")  # fmt: skip
    option("--skip-failed", action="store_true", default=None,
        help="leave out a revision that cannot be measured, with a warning")  # fmt: skip
    option("--trust-remote-code", action="store_true", default=None,
        help="run Python code of the repository, if transformers does not know it")  # fmt: skip


def add_for_runs(option: Callable[..., argparse.Action]) -> None:
    """Add the options for a run's snapshots."""
    option("--batchnorm", choices=get_args(BatchNorm),
        help="statistics that BatchNorm uses (default as in the run)")  # fmt: skip
    option("--when", metavar="SCHEDULE", help="snapshots to measure: 'every 500' (default all)")
    option("--preconditioned", action="store_true", default=None,
        help="the kernel J P Jᵀ that drives the outputs under Adam and its kin, with P of the "
        "optimiser's second moments in each snapshot")  # fmt: skip


def outputs_of(text: str) -> Outputs:
    """Return the outputs that a word of the command line names."""
    for name in get_args(NamedOutputs):
        if text == name:
            return name
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"trace, full, sum or an output's number, not {text!r}")
    return int(text)
