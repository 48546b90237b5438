"""How much of a series on the Hub is kernels: `python -m benchmarks.hub`.

A small Hub on this machine, in a process of its own, has 20 revisions of a GPT-NeoX of 10 million
parameters in safetensors. `conescope measure hf://…` measures them from end to end in another
process, whose wall time counts from its start to its end, with what it imports, lists, waits for,
checks, stores and draws.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_NAME = "lab/neox-10m"
_WORDS = 10_000
_PARTS = (
    "check of the model", "kernels", "loading", "waiting for downloads", "checksums", "storing",
    "figures and report",
)  # fmt: skip


def write_series(folder: Path, revisions: int) -> int:
    """Write a random network that moves on a line, a folder a revision; return its parameters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(_WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", unk_token="w0")
    config = GPTNeoXConfig(
        vocab_size=_WORDS, hidden_size=256, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=1024, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = GPTNeoXForCausalLM(config)
    motion = [torch.randn_like(weight) * 0.02 / revisions for weight in network.parameters()]
    for number in range(revisions):
        network.save_pretrained(folder / f"step{1000 * number}")
        tokenizer.save_pretrained(folder / f"step{1000 * number}")
        with torch.no_grad():
            for weight, change in zip(network.parameters(), motion, strict=True):
                weight += change
    return sum(weight.numel() for weight in network.parameters())


def write_texts(file: Path, texts: int, length: int) -> None:
    """Write texts of random words."""
    ids = torch.randint(1, _WORDS, (texts, length), generator=torch.Generator().manual_seed(1))
    lines = [" ".join(f"w{number}" for number in row) for row in ids.tolist()]
    file.write_text("\n".join(lines), encoding="utf-8")


def serve(folder: Path, sent: Connection) -> None:
    """Be the Hub of the revisions in a folder until the process is ended."""
    from benchmarks.pretend_hub import PretendHub

    hub = PretendHub()
    for revision in folder.iterdir():
        hub.add(_NAME, revision.name, {file.name: file for file in revision.iterdir()})
    hub.start()
    sent.send(hub.url)
    while True:
        time.sleep(60)


def work(words: list[str], begun: float) -> None:
    """Measure the series by the command line, and print the seconds of each part as JSON."""
    from conescope.cli import main as conescope
    from conescope.cli import measure
    from conescope.measuring.adapt import Adapted
    from conescope.measuring.checkpoints import measurement
    from conescope.measuring.choice import Choice
    from conescope.measuring.hub import hub_checkpoints
    from conescope.measuring.hub.revisions import Fetcher
    from conescope.runs.writer import RunWriter

    seconds = dict.fromkeys(("before the first", *_PARTS), 0.0)

    def timed(part: str, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def call(*values: Any, **named: Any) -> Any:
            start = time.time()
            if not any(seconds.values()):
                seconds["before the first"] = start - begun
            try:
                return function(*values, **named)
            finally:
                seconds[part] += time.time() - start

        setattr(owner, name, call)

    timed("kernels", Choice, "of")
    timed("loading", hub_checkpoints, "load_weights")
    timed("loading", hub_checkpoints, "read_weights")
    timed("waiting for downloads", Fetcher, "fetch")
    timed("check of the model", Adapted, "check")
    timed("checksums", measurement, "fingerprint")
    timed("storing", RunWriter, "write_kernel")
    timed("figures and report", measure, "show")
    status = conescope(words)
    print(json.dumps({"status": status, **seconds}))


@contextmanager
def pretend_hub(folder: Path) -> Iterator[str]:
    """Run the Hub in a process of its own, and give its address."""
    context = multiprocessing.get_context("spawn")
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(folder, sends), daemon=True)
    process.start()
    try:
        yield receives.recv()
    finally:
        process.terminate()
        process.join()


def measured(folder: Path, draws: int) -> dict[str, float]:
    """Run the command in a process of its own; return the seconds of its parts, and all."""
    words = ["measure", f"hf://{_NAME}", "--revisions", "step*", "--texts", "texts.txt",
             "--draws", str(draws), "--out", "run"]  # fmt: skip
    with pretend_hub(folder / "series") as url:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(folder / "home")}
        paths = [str(Path.cwd()), *sys.path]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        begun = time.time()
        command = [sys.executable, "-m", "benchmarks.hub", "--work", json.dumps(words),
                   "--begun", str(begun)]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        total = time.time() - begun
    return {**json.loads(done.stdout.splitlines()[-1]), "all": total}


def main() -> None:
    """Make the series, measure it, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hub", description=__doc__)
    parser.add_argument("--revisions", type=int, default=20)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(json.loads(arguments.work), arguments.begun)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = write_series(folder / "series", arguments.revisions)
        write_texts(folder / "texts.txt", arguments.texts, arguments.length)
        seconds = measured(folder, arguments.draws)
    total = seconds.pop("all")
    if seconds.pop("status"):
        raise SystemExit("the command failed")
    print(
        f"{arguments.revisions} revisions of {parameters:,} parameters, {arguments.texts} texts of "
        f"{arguments.length} tokens, {arguments.draws} draws; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("| part | s | share |\n|---|---|---|")
    seconds["the rest"] = total - sum(seconds.values())
    for part, taken in seconds.items():
        print(f"| {part} | {taken:.1f} | {taken / total:.1%} |")
    outside = 1 - (seconds["kernels"] + seconds["loading"]) / total
    print(f"| **all** | {total:.1f} | |")
    print(f"\noutside kernels and loading: {outside:.1%}")


if __name__ == "__main__":
    main()
