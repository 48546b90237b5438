"""lazy_report(): fine-tune a model and its linearisation with several seeds, and compare."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from conescope.argument_types import checked
from conescope.errors import ModelError, StoreError
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.experiments.lazy.job import Job
from conescope.experiments.lazy.one_seed import SeedResult, carry_out
from conescope.experiments.lazy.outcome import LazyReport
from conescope.experiments.lazy.samples import Labelled, samples_of, tokenised
from conescope.measuring.adapt import Pool, Select
from conescope.runs.chain import read_regular
from conescope.runs.environment import describe, notebook_progress
from conescope.runs.journal import Kind
from conescope.runs.progress import Progress
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter

_RESULT = "result.safetensors"


@checked
def lazy_report(
    model: nn.Module | Callable[[int], nn.Module],
    data: Labelled | Any,  # samples_of says what is wrong with either
    *,
    test: Labelled | Any = None,
    tokenizer: Any = None,
    select: Select | None = None,
    pool: Pool | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> LazyReport:
    """Say whether a fine-tuning is lazy: train a model and its linearisation, and compare.

    For each seed the model and `conescope.linearize` of it are trained on the same batches by
    cross-entropy, both in evaluation mode (no dropout; BatchNorm with its running statistics).
    Measured are the kernel distance S(T, 0) on some training samples, the distance of the functions
    on the test samples, D = d(f_T, f_lin,T) / d(f_T, f_0) (see `signs.relative_distance`), the
    test accuracies, and the kernel's condition number and kernel regression at the start.

    Args:
        model: any module that returns logits [n, c]; it is copied, stays as it is, and what is
            frozen in it stays frozen. Or a function from a seed to such a module, for a head that
            differs with the seed; torch's generator then has this seed.
        data: inputs of the training samples, and their labels. Inputs are a tensor, several as
            `Watch` takes them, or texts; labels are numbers from 0 on, or names.
        test: the same for the test; None to split off a third of `data`.
        tokenizer: of transformers; for texts.
        select: from what the model returns to its logits, see `Watch`.
        pool: for logits of each token, "last" or "mean", see `Watch`.
        out: a folder for the results: a seed that is done there is not computed again, and a seed
            that was interrupted begins again. None to store nothing.
        progress: what is told how far it is; None for a bar in notebooks, and for none elsewhere.
        **settings: see `conescope.experiments.lazy.finetuning.Finetuning`: steps, batch, lr,
            optimizer, weight_decay, seeds, probe, when, draws, regression, memory.

    Raises:
        RecipeError: if a setting is unknown or out of range.
        DataError: if the labels do not fit.
        ModelError: if the model cannot be trained, measured or linearised.
        TrainingError: if a loss is not finite.
        StoreError: if the folder holds something else, or cannot be written.
    """
    build = _copies_of(model)
    samples = samples_of(*tokenised(data, test, tokenizer))
    progress = progress or notebook_progress()
    report = compare(Job(build, samples, Finetuning.of(settings), select, pool, progress), out)
    assert report is not None  # nobody can ask to stop
    return report


def _copies_of(model: nn.Module | Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Return a function from a seed to a copy, which is trained while its owner's stays as it is.

    A function may return one model for all seeds.
    """
    if not isinstance(model, nn.Module):
        try:
            inspect.signature(model).bind(0)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"the function that builds the model cannot be called with a seed alone ({error}); "
                f"let it take one number, such as lambda seed: Network()"
            ) from error

    def build(seed: int) -> nn.Module:
        found = model if isinstance(model, nn.Module) else model(seed)
        try:
            return copy.deepcopy(found)
        except RuntimeError as error:
            raise ModelError(
                f"the model cannot be copied ({str(error).splitlines()[0]}); give one that has "
                f"made no forward pass, or parametrise it by torch.nn.utils.parametrizations"
            ) from error

    return build


def compare(
    job: Job, out: str | Path | None, *, name: str | None = None, command: str = ""
) -> LazyReport | None:
    """Carry out all seeds, see `lazy_report`; None if `job.should_stop` stopped it.

    Args:
        job: what to train and how.
        out: the folder, or None.
        name: the name of the model; by default that of its class.
        command: the shell command that asks for it, for the record.

    Raises:
        ConescopeError: as `lazy_report`.
    """
    source, device = _source(job, name)
    with TemporaryDirectory() if out is None else nullcontext(out) as folder:
        results = _seeds(job, Path(folder), source, command, device)
    if results is None:
        return None
    return LazyReport(
        source["name"], job.samples, job.settings, results, source, describe(device), command
    )


def _source(job: Job, name: str | None) -> tuple[dict[str, Any], str]:
    """Return what is compared, as plain values, and on which device."""
    first = job.start(0)
    adapted = job.adapted(first)
    described = adapted.description()
    source = {
        "name": name or type(first).__name__,
        "description": "A fine-tuning and its linearisation, on the same batches",
        "weights": adapted.weights(),
        **{key: described[key] for key in ("model", "parameters", "select", "pool")},
        **job.samples.description(),
        **job.settings.description(job.samples),
    }
    return source, str(adapted.device)


def _seeds(
    job: Job, path: Path, source: Mapping[str, Any], command: str, device: str
) -> tuple[SeedResult, ...] | None:
    """Carry out every seed that is not done; None if stopped."""
    results = []
    with RunWriter(path) as writer:
        writer.begin_source(source, command)
        writer.begin_session(device)
        for seed in range(job.settings.seeds):
            name = f"seed-{seed}/{_RESULT}"
            result = _stored(writer.folder, name)
            if result is None:
                result = carry_out(job, seed, path / f"seed-{seed}")
                if result is None:
                    return None
                writer.write_result(name, save(result.tensors()))
            results.append(result)
        writer.finish()
    return tuple(results)


def _stored(folder: Folder, name: str) -> SeedResult | None:
    """Read the result of a seed; None if it is not done.

    Results of earlier versions, of which the journal holds no checksum, are read as they are.
    """
    file = folder.path / name
    checksums = {e.values["file"]: e.values["sha256"] for e in folder.files(Kind.RESULT)}
    try:
        data = read_regular(file)
        if checksums.get(name, found := hashlib.sha256(data).hexdigest()) != found:
            raise _damaged(file, "its checksum does not match")
        return SeedResult(**load(data))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, TypeError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, reason: object) -> StoreError:
    return StoreError(f"{file} is damaged ({reason}); delete it, and run the same command again")
