"""Measure the kernels of a series of revisions on the Hugging Face Hub into a run folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

from torch import nn

from conescope.argument_types import checked
from conescope.errors import CheckpointError, RecipeError
from conescope.kernel.matrix import Outputs
from conescope.measuring.adapt import Pool, Select
from conescope.measuring.checkpoints.measurement import measure
from conescope.measuring.choice import Choice
from conescope.measuring.hub import is_on_hub
from conescope.measuring.hub.adapters import build_adapted, holds_adapters
from conescope.measuring.hub.downloads import claim, clear
from conescope.measuring.hub.hub_checkpoints import HubCheckpoints
from conescope.measuring.hub.hub_options import HubOptions, Wanted
from conescope.measuring.hub.padding import check_padding
from conescope.measuring.hub.pretrained import (
    CONFIG,
    Description,
    build,
    described,
    load_tokenizer,
)
from conescope.measuring.hub.probe_of_texts import (
    DATASETS,
    ProbeOfTexts,
    as_texts,
    dataset_file,
    first,
    probe_of,
)
from conescope.measuring.hub.revisions import Series, find_revisions
from conescope.measuring.hub.same_model import SameModel, computed
from conescope.measuring.hub.saved_folders import saved_series
from conescope.measuring.hub.small_files import model_folder, tokenizer_folder
from conescope.measuring.probe import describe_probe
from conescope.measuring.texts import read_texts
from conescope.runs.contents import has_run
from conescope.runs.environment import notebook_progress
from conescope.runs.progress import Progress
from conescope.runs.reader import Run, read_run
from conescope.runs.store import Folder

DRAWS = 8
"""Number of random cotangents by which many outputs are estimated, if the user names none."""

_MANY = 64  # outputs, above which the class trace is estimated
_DOWNLOADS = "downloads"


@checked
def measure_hub(
    source: str | Path | Collection[str | Path],
    texts: str | Path | Sequence[str],
    *,
    out: str | Path,
    outputs: Outputs = "trace",
    draws: int | None = None,
    projection: int | None = None,
    select: Select | None = None,
    pool: Pool | None = None,
    params: str | Iterable[str] | None = None,
    by_layer: bool = False,
    memory: str | float | None = None,
    **options: Unpack[HubOptions],
) -> Run:
    """Measure the kernel of each of a series that says itself of which model it is.

    It is on the Hugging Face Hub, or in folders that transformers or peft saved.
    What is stored in `out` already is neither fetched nor measured again. See docs/hub.md.

    Args:
        source: `hf://org/name`; `hf://org/name-step_*` for a repository a step; or a folder
            `…/models--org--name` in the layout of the Hub's cache; or folders that transformers
            or peft saved, as `find_checkpoints` takes them.
        texts: a file, see `read_texts`; `hf://datasets/org/name`; or the texts.
        out: the run folder to write.
        outputs: see `measure_checkpoints`.
        draws: see `measure_checkpoints`; 8 for more than 64 outputs, such as a vocabulary, if
            neither this nor `projection` nor `by_layer` is given.
        projection: see `measure_checkpoints`.
        select: see `measure_checkpoints`; by default what fits the kind of model.
        pool: see `measure_checkpoints`; by default what fits the kind of model.
        params: see `measure_checkpoints`.
        by_layer: see `measure_checkpoints`.
        memory: see `measure_checkpoints`.
        options: see `HubOptions`; above all `revisions`, such as "step*", on the Hub.

    Returns:
        The run, as `load_run` gives it.

    Raises:
        CheckpointError: if a repository or revision cannot be had, read, or fits no model.
        DataError: if the texts cannot be read or tokenised.
        ModelError: if the model is of no kind that reads texts, or has no exact kernel.
        KernelError: if the choice of the kernel is wrong, or a kernel is not finite.
        MissingPackageError: if transformers is not installed.
        StoreError: if `out` holds something else, or cannot be written.
    """
    choice = Choice(outputs, draws, select, pool, params, by_layer, memory, projection)
    wanted, out = Wanted(source, texts, choice, options), Path(out)
    with prepared_in(out):
        command = f"conescope.measure_hub({str(source)!r}, …)"
        measure_series(*prepare(wanted, out), out, command, notebook_progress())
    return read_run(out)


def measure_series(
    subject: HubCheckpoints,
    choice: Choice,
    out: Path,
    command: str,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Measure what `prepare` made ready, and delete what was fetched once all is measured.

    Returns:
        Whether all is measured.

    Raises:
        ConescopeError: as `measure_hub`.
    """
    is_complete = measure(
        subject, choice, out, command=command, progress=progress, should_stop=should_stop
    )
    if is_complete:
        clear(out / _DOWNLOADS)
    return is_complete


@contextmanager
def prepared_in(out: Path) -> Iterator[None]:
    """Delete what was fetched if a measurement ends before anything is stored in the folder."""
    try:
        yield
    finally:
        folder = Folder(out)
        if not has_run(folder) and not folder.is_owned():
            clear(out / _DOWNLOADS)
            with suppress(OSError):
                out.rmdir()


def prepare(wanted: Wanted, out: Path) -> tuple[HubCheckpoints, Choice]:
    """Find the revisions, build the model and the probe, and choose what to measure.

    Of the weights only a base and the first adapter are fetched, if the series is of adapters.

    Args:
        wanted: what is wanted.
        out: the run folder.

    Returns:
        The subject, and the choice with what fits the kind of model where the user left it open.

    Raises:
        ConescopeError: as `measure_hub`.
    """
    options = wanted.options
    series = _found(wanted.source, options)
    claim(out / _DOWNLOADS)
    small, what = out / _DOWNLOADS / "files", str(series.revisions[0].ref)
    about, choice, model, same = None, wanted.choice, wanted.model, None
    is_adapted = model is None and holds_adapters(series)
    if options.get("base") is not None and not is_adapted:
        raise RecipeError(
            f"a base is for adapters of peft that are put on it, and {what} is built without one; "
            f"leave --base out"
        )
    if model is None:
        trusts = options.get("trust_remote_code", False)
        if is_adapted:
            about, model, same = build_adapted(
                series, options.get("base"), small, trusts_code=trusts
            )
        else:
            folder = model_folder(series, small, trusts_code=trusts)
            about = described(folder, what, trusts_code=trusts)
            model, read = build(about, what), computed(about.config)
            same = SameModel(CONFIG, folder, read, series.repositories, small / "other")
        choice = _chosen(about, choice)
    made = _probe(wanted, series, model.to(options.get("device", "cpu")), about, small)
    choice = replace(choice, pool=made.pool)
    texts = made.inputs if wanted.probe is None else {}
    check = partial(check_padding, model, texts, choice.select, choice.pool)
    check()  # before anything is downloaded that is large
    subject = HubCheckpoints(
        series, model, made.inputs, out / _DOWNLOADS / "revisions",
        _description(series, about, wanted.choice, choice, made.words), made.labels,
        options.get("skip_failed", False), same, check, made.beginnings,
    )  # fmt: skip
    return subject, choice


def _found(source: str | Path | Collection[str | Path], options: HubOptions) -> Series:
    """Find the revisions on the Hub, or the folders on this machine."""
    patterns = options.get("revisions", ())
    patterns = [patterns] if isinstance(patterns, str) else patterns
    pattern, steps = options.get("step_pattern"), options.get("steps")
    keep = options.get("keep_cache", False)
    if isinstance(source, str | Path) and is_on_hub(source):
        return find_revisions(source, patterns, step_pattern=pattern, steps=steps, keep=keep)
    if patterns:
        raise CheckpointError(
            f"{source} is not on the Hub and has no revisions; leave the pattern out"
        )
    return saved_series(source, step_pattern=pattern, steps=steps, keep=keep)


def _probe(
    wanted: Wanted, series: Series, model: nn.Module, about: Description | None, folder: Path
) -> ProbeOfTexts:
    """Make the probe, and choose the token at which it is measured."""
    options, pool = wanted.options, wanted.choice.pool
    if pool is None and about is not None:
        pool = about.head.pool
    labels = options.get("labels")
    if wanted.probe is not None:
        if isinstance(pool, str) and pool == "mask":
            raise RecipeError(
                "a masked language model is measured at a token that is masked, for which it needs "
                "texts; give --texts, or --pool mean"
            )
        return ProbeOfTexts(wanted.probe, pool, describe_probe(wanted.probe), wanted.labels)
    texts = wanted.texts
    if texts is None:
        raise RecipeError("there is nothing to measure at; give texts, by --texts FILE")
    if not isinstance(texts, str | Path):
        read = as_texts(texts)
    else:
        if str(texts).startswith(DATASETS):
            texts = dataset_file(str(texts), series.repositories, folder / "texts")
        read = read_texts(texts, options.get("column"), labels)
    base = None if about is None else about.base
    given = tokenizer_folder(options.get("tokenizer"), base, series, folder)
    return probe_of(
        first(read, options.get("samples")),
        load_tokenizer(given, str(series.revisions[0].ref)),
        model,
        pool,
        length=options.get("length"),
        context=about and about.context,
    )


def _chosen(about: Description, choice: Choice) -> Choice:
    """Fill in what the user left open: the field of the output, and the number of draws."""
    if choice.select is None:
        choice = replace(choice, select=about.head.field)
    is_open = choice.draws is None and choice.projection is None and not choice.by_layer
    if is_open and choice.outputs == "trace" and about.outputs > _MANY:
        choice = replace(choice, draws=DRAWS)
    return choice


def _description(
    series: Series, about: Description | None, asked: Choice, choice: Choice, words: str
) -> str:
    count = len(series.revisions)
    name = "revision" if series.repositories.commits_last else "checkpoint"
    parts = [f"{count:,} {name}{'' if count == 1 else 's'} of {series.source}"]
    if len(series.stages) > 1:
        parts += [f"{name} from step {begins:,}" for name, begins in series.stages.items()]
    if about is not None:
        chosen = about.head.words
        if asked.select is not None or asked.pool is not None:
            field = getattr(choice.select, "__name__", choice.select)
            pool = about.head.pool if asked.pool is None else asked.pool
            chosen = f"{field} of tokens: {pool if isinstance(pool, str) else 'as given'}"
        kind = type(about.config).__name__.removesuffix("Config")
        on_base = f"{about.adapters}, a " if about.adapters else ""
        parts.append(f"{on_base}{kind} in float32: {chosen}")
        if about.adapters and asked.params is None:
            parts.append("the kernel of what peft trains")
    if choice.draws is not None and asked.draws is None:
        parts.append(f"{choice.draws} random cotangents, the default for many outputs")
    return "; ".join([*parts, words])
