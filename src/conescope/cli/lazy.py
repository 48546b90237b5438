"""`conescope lazy`: fine-tune a model and its linearisation, and say whether they differ."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, print_table, say, stopping
from conescope.errors import DataError
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.image_classifier import image_classifier, labelled_images
from conescope.experiments.lazy.job import Job
from conescope.experiments.lazy.lazy_report import compare
from conescope.experiments.lazy.outcome import LazyReport
from conescope.experiments.lazy.pretrained_classifier import Classifier
from conescope.experiments.lazy.samples import samples_of
from conescope.experiments.lazy.text_classifier import text_classifier
from conescope.measuring.hub import SCHEME
from conescope.measuring.texts import Texts, read_texts
from conescope.runs.environment import usable_device

_SETTINGS = (
    "steps", "batch", "lr", "optimizer", "weight_decay", "seeds", "probe", "when", "draws",
    "by_layer", "regression", "memory",
)  # fmt: skip

_ABOUT = About(
    Group.OWN,
    "say whether a fine-tuning on labelled texts or images is lazy",
    (
        "conescope lazy distilbert-base-uncased --data labelled.jsonl --out lazy/mine",
        "conescope lazy folder/of/model --data train/ --test test/ --seeds 5 --out lazy/images",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("lazy", _lazy, _ABOUT)
    add_json(parser)
    option = parser.add_argument
    option("model", metavar="MODEL", help="a folder of transformers, or a model's name on the Hub")
    option("--data", metavar="FILE", type=Path, required=True,
        help="labelled texts to train on, as .jsonl, .csv or .parquet; or a folder of images "
        "with a folder for each class")  # fmt: skip
    option("--test", metavar="FILE", type=Path,
        help="the same for the test (default: a third of the data)")  # fmt: skip
    option("--text", metavar="NAME", help="the column of the texts (default text)")
    option("--labels", metavar="NAME", default="label", help="that of the classes (default label)")
    option("--length", metavar="T", type=int, help="cut or pad texts to so many tokens")
    option("--out", metavar="DIR", type=Path, required=True, help="folder for results and report")
    option("--lora", metavar="R", type=int, help="train LoRA adapters of this rank, by peft")
    option("--device", default="cpu", help="cpu (default), cuda or another device of torch")
    default = Finetuning()
    own = parser.add_argument_group("the fine-tuning").add_argument
    own("--steps", metavar="T", type=int, help="iterations (default three epochs)")
    own("--batch", metavar="B", type=int, default=default.batch,
        help="samples of a batch (default %(default)s)")  # fmt: skip
    own("--lr", type=float, default=default.lr, help="learning rate (default %(default)s)")
    own("--optimizer", metavar="NAME", default=default.optimizer,
        help="an optimiser of torch.optim (default %(default)s)")  # fmt: skip
    own("--weight-decay", type=float, default=default.weight_decay, help="default %(default)s")
    own("--seeds", metavar="R", type=int, default=default.seeds,
        help="fine-tunings with other batches and heads (default %(default)s)")  # fmt: skip
    measured = parser.add_argument_group("what is measured").add_argument
    measured("--probe", metavar="N", type=int, default=default.probe,
        help="samples on which the kernel is followed (default %(default)s)")  # fmt: skip
    measured("--when", metavar="SCHEDULE", help="when it is: 'every 10' (default four times)")
    measured("--draws", metavar="R", type=int, help="estimate the kernel by R random cotangents")
    measured("--by-layer", action="store_true", help="also store the kernel of each layer")
    measured("--regression", metavar="N", type=int, default=default.regression,
        help="the most samples of the kernel regression (default %(default)s)")  # fmt: skip
    measured("--memory", metavar="SIZE", help="memory for a kernel, such as 2GB")


def _lazy(arguments: argparse.Namespace) -> int:
    from conescope.report.lazy_page import write_lazy_page

    device = usable_device(arguments.device)
    arguments.model = arguments.model.removeprefix(SCHEME)
    files = [arguments.data] if arguments.test is None else [arguments.data, arguments.test]
    of = _images if arguments.data.is_dir() else _texts
    model, labels = of(arguments, files, device)
    size = len(labels[0])
    pairs = [
        ({name: values[part] for name, values in model.inputs.items()}, held)
        for part, held in zip((slice(size), slice(size, None)), labels, strict=False)
    ]
    samples = samples_of(pairs[0], pairs[1] if len(pairs) > 1 else None, model.notes)
    settings = Finetuning(**{name: getattr(arguments, name) for name in _SETTINGS})
    command = shlex.join(["conescope", *arguments.words])
    with (
        stopping("ending; seeds that are finished are stored, this one is not") as received,
        ProgressBar(STDERR) as bar,
    ):
        job = Job(
            model.build,
            samples,
            settings,
            progress=bar,
            should_stop=lambda: bool(received),
        )
        report = compare(job, arguments.out, name=arguments.model, command=command)
    if report is None:
        say("stopped", "seeds that are done are stored; the same command goes on")
        return 128 + received[0]
    page = write_lazy_page(report, arguments.out / "report.html")
    if arguments.json:
        print_json(_facts(report, page))
        return 0
    print_table({"model": report.name, **report.numbers()})
    STDOUT.print(f"report: {page}")
    return 0


def _facts(report: LazyReport, page: Path) -> dict[str, Any]:
    signs = {sign.name: {**asdict(sign), "says_lazy": sign.says_lazy} for sign in report.signs}
    return {
        "model": report.name,
        "verdict": report.verdict,
        "sentence": report.sentence,
        "seeds": len(report.seeds),
        "signs": signs,
        "accuracies": report.accuracies,
        "train_losses": report.train_losses,
        "test_losses": report.test_losses,
        "report": page,
    }


def _texts(
    arguments: argparse.Namespace, files: Sequence[Path], device: torch.device
) -> tuple[Classifier, Sequence[list[int] | list[str]]]:
    """Return the model with the texts of the files, and the labels of each file."""
    read = [read_texts(file, arguments.text, arguments.labels) for file in files]
    labels = [_labels(one) for one in read]
    texts = [text for one in read for text in one.texts]
    model = text_classifier(
        arguments.model,
        texts,
        _names(labels),
        length=arguments.length,
        lora=arguments.lora,
        device=device,
    )
    return model, labels


def _images(
    arguments: argparse.Namespace, folders: Sequence[Path], device: torch.device
) -> tuple[Classifier, Sequence[list[str]]]:
    """Return the model with the images of the folders, and the labels of each folder."""
    for name in ("text", "length", "lora"):
        if getattr(arguments, name) is not None:
            raise DataError(
                f"--{name} is for texts, and {arguments.data} is a folder of images; leave it out"
            )
    read = [labelled_images(folder) for folder in folders]
    labels = [one for _, one in read]
    paths = [path for found, _ in read for path in found]
    return image_classifier(arguments.model, paths, _names(labels), device=device), labels


def _labels(read: Texts) -> list[int] | list[str]:
    """Return the names of the texts' classes if they have names, else their numbers."""
    assert read.labels is not None  # the column of labels was asked for
    assert read.classes is not None
    numbers = read.labels.tolist()
    if all(name.isdecimal() for name in read.classes):
        return numbers
    return [read.classes[number] for number in numbers]


def _names(labels: Sequence[Sequence[int] | Sequence[str]]) -> list[str]:
    """Return the names of all classes; of numbers, all from 0 to the highest."""
    found = {label for part in labels for label in part}
    numbers = [label for label in found if isinstance(label, int)]
    if numbers:
        return [str(number) for number in range(max(numbers) + 1)]
    return sorted(map(str, found))
