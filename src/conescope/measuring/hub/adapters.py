"""Build the model of a series of adapters: their base, with the first of them put on it by peft.

A checkpoint of peft holds a few weights, and its adapter_config.json names the base that they are
for. The base is a folder or a repository on the Hub, and its weights are read like those of any
checkpoint; transformers and peft build the modules.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conescope.errors import CheckpointError, MissingPackageError, ModelError
from conescope.measuring.checkpoints.loading import load_weights
from conescope.measuring.checkpoints.sources import files_in
from conescope.measuring.checkpoints.translation import ADAPTER_FILES, PEFT_PREFIX
from conescope.measuring.checkpoints.trial import quiet_transformers
from conescope.measuring.checkpoints.weight_files import StateDict, read_weights, some_of
from conescope.measuring.hub import SCHEME
from conescope.measuring.hub.pretrained import (
    ADAPTER_CONFIG,
    CONFIG,
    UNREADABLE,
    Description,
    build,
    code_files,
    described,
    first_line,
)
from conescope.measuring.hub.repositories import Ref, Repositories
from conescope.measuring.hub.revisions import Series, weight_names
from conescope.measuring.hub.same_model import SameModel
from conescope.measuring.hub.saved_folders import SavedFolders, saved_ref

_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ARCHITECTURES = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_CLS": "ForSequenceClassification",
    "FEATURE_EXTRACTION": "Model",
}
_SOFT_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT",
                 "CARTRIDGE", "ADAPTION_PROMPT")  # fmt: skip
_HARMLESS = {"inference_mode", "peft_version", "auto_mapping", "runtime_config"}
_NAME, _REVISION = "base_model_name_or_path", "revision"


@dataclass(frozen=True)
class Base:
    """The base of a series of adapters.

    Attributes:
        name: the folder, or the id of the repository.
        ref: its revision.
        where: what holds that.
    """

    name: str
    ref: Ref
    where: Repositories


def holds_adapters(series: Series) -> bool:
    """Return whether the first revision of a series is an adapter, and no whole model."""
    ref = series.revisions[0].ref
    listed = series.repositories.files(ref)
    return ADAPTER_CONFIG in listed and weight_names(ref, listed)[0] in ADAPTER_FILES


def build_adapted(
    series: Series, given: str | None, folder: Path, *, trusts_code: bool
) -> tuple[Description, nn.Module, SameModel]:
    """Build the base of a series of adapters, and put the first adapter on it.

    Args:
        series: the adapters.
        given: the base, as a folder or `org/name`; None for the one that the adapters name.
        folder: where to put what is fetched.
        trusts_code: see `described`.

    Returns:
        What the model is; the model, of which the adapter is what trains; and what compares the
        adapters' configurations.

    Raises:
        CheckpointError: if the base or the adapter cannot be had or read, or do not fit.
        ModelError: if the model cannot be built, or is of a kind that is not measured.
        MissingPackageError: if peft or transformers is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError.of("peft", "lora") from error
    ref, where = series.revisions[0].ref, series.repositories
    names = [ADAPTER_CONFIG, *weight_names(ref, where.files(ref))]
    here = where.fetch(ref, names, folder / "adapter")
    held = _read(here, str(ref))
    base = _base(held, given, where, str(ref))
    weights = read_weights(files_in(here))
    about = _described(base, held, weights, folder / "base", trusts_code=trusts_code)
    model = _loaded(about, base, weights, folder / "base")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that hold no numbers in this model
            config: Any = peft.PeftConfig.from_pretrained(str(here))
            config.inference_mode, config.base_model_name_or_path = False, model.name_or_path
            if hasattr(config, "megatron_config"):
                config.megatron_config = None  # with it peft imports the module that the file names
            adapted = peft.get_peft_model(model, config).eval()
    except UNREADABLE as error:
        raise ModelError(
            f"{ref}: peft {peft.__version__} cannot put it on {base.name}: {first_line(error)}; "
            f"name the right base by --base, or install the peft that wrote it"
        ) from None
    load_weights(adapted, weights, Path(str(ref)))
    about = replace(about, adapters=f"{held['peft_type']} adapters on {base.name}", base=base.name)
    ignored = _HARMLESS if given is None else {*_HARMLESS, _NAME, _REVISION}
    same = SameModel(
        ADAPTER_CONFIG, here, partial(_compared, ignored=ignored), where, folder / "other"
    )
    return about, adapted, same


def _read(folder: Path, what: str) -> dict[str, Any]:
    """Read an adapter_config.json."""
    try:
        held = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        kind = held["peft_type"]
        for key in ("peft_type", "task_type", _NAME, _REVISION):
            if not isinstance(held.get(key), str | None):
                raise TypeError
        if not isinstance((held.get("auto_mapping") or {}).get("base_model_class"), str | None):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(
            f"{what}: its {ADAPTER_CONFIG} is none of peft's: it names no peft_type, or a base "
            f"that is no text; save the adapter again by save_pretrained, or leave it out"
        ) from None
    if kind in _SOFT_PROMPTS:
        raise ModelError(
            f"{what} is a soft prompt ({kind}), which puts tokens of its own before each text; "
            f"build the model by --model package.module:build, and give its inputs by --probe"
        )
    return held


def _base(held: Mapping[str, Any], given: str | None, where: Repositories, what: str) -> Base:
    """Find the base that an adapter names, or that is given."""
    name = (given or held.get(_NAME) or "").removeprefix(SCHEME)
    revision = (held.get(_REVISION) if given is None else None) or _MAIN
    if not name:
        raise CheckpointError(
            f"{what}: its {ADAPTER_CONFIG} does not name the base of the adapter; name it by "
            f"--base, a folder or ORGANISATION/NAME"
        )
    if Path(name).is_dir():
        return Base(name, saved_ref(Path(name), Path(name)), SavedFolders(Path(name), where))
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"the base of {what}, {name}, is no folder on this machine; name the one that is by "
            f"--base, a folder or ORGANISATION/NAME"
        )
    try:
        refs = where.refs(name)
    except CheckpointError as error:
        raise CheckpointError(f"the base of {what}: {error}; or name it by --base") from error
    if revision in refs:
        return Base(name, refs[revision], where)
    if _COMMIT.fullmatch(revision):
        return Base(name, Ref(name, revision, revision), where)
    raise CheckpointError(
        f"the base of {what}, {name}, has no revision {revision}; it has {some_of([*refs], 6)}; "
        f"name another base by --base"
    )


def _described(
    base: Base, held: Mapping[str, Any], weights: StateDict, folder: Path, *, trusts_code: bool
) -> Description:
    """Describe the base, as a model of the adapter's task."""
    listed = base.where.files(base.ref)
    if CONFIG not in listed:
        raise CheckpointError(
            f"{base.name} has no {CONFIG}, and is no base of an adapter; name the right one by "
            f"--base"
        )
    code = code_files(listed) if trusts_code else []
    here = base.where.fetch(base.ref, [CONFIG, *code], folder)
    task, mapping = held.get("task_type"), held.get("auto_mapping") or {}
    asked = _ARCHITECTURES.get(str(task)) or task or mapping.get("base_model_class")
    about = described(here, base.name, trusts_code=trusts_code, architecture=asked)
    if getattr(about.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{base.name} is quantised, and kernels are measured in float32; name the model that "
            f"it was made of by --base"
        )
    if about.head.pool is not None:
        return about
    return _with_classes(about, base, weights)


def _with_classes(about: Description, base: Base, weights: StateDict) -> Description:
    """Return what a classifier is, with as many classes as the head in the adapter has."""
    shapes = {name.removeprefix(PEFT_PREFIX): value.shape for name, value in weights.items()}
    for count in sorted({shape[0] for shape in shapes.values() if len(shape) == 2}):
        about.config.num_labels = count
        places = build(about, base.name, has_values=False).state_dict()
        own = [name for name in shapes if name in places]
        if own and all(places[name].shape == shapes[name] for name in own):
            return replace(about, outputs=count)
    raise CheckpointError(
        f"the adapter holds no layer that classifies, as {base.name} needs; save that layer, too: "
        f"by task_type='SEQ_CLS', or modules_to_save in peft's configuration"
    )


def _loaded(about: Description, base: Base, adapter: StateDict, folder: Path) -> Any:
    """Build the base with its weights; those that the adapter brings may be missing."""
    empty = build(about, base.name, has_values=False)  # is it too large for this machine?
    names = weight_names(base.ref, base.where.files(base.ref))
    weights = read_weights(files_in(base.where.fetch(base.ref, names, folder)))
    kind: Any = type(empty)
    try:
        with quiet_transformers():
            model, found = kind.from_pretrained(
                None, config=about.config, state_dict=dict(weights), dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except UNREADABLE as error:
        raise CheckpointError(
            f"transformers cannot load the weights of {base.name}: {first_line(error)}; name the "
            f"right base by --base"
        ) from None
    brought = {name.removeprefix(PEFT_PREFIX) for name in adapter}
    if lacking := sorted({*found["missing_keys"]} - brought):
        raise CheckpointError(
            f"{base.name} lacks weights of a {kind.__name__}, which the adapter does not bring, so "
            f"that the model that was trained is not known: {some_of(lacking)}; name the right "
            f"base by --base"
        )
    return model.eval()


def _compared(file: Path, ignored: set[str]) -> dict[str, Any]:
    """Return what has to be equal in the adapter_config.json of all adapters of a series."""
    held = json.loads(file.read_bytes())
    return {
        name: sorted(value) if isinstance(value, list) and _are_texts(value) else value
        for name, value in held.items()
        if name not in ignored
    }


def _are_texts(values: list[Any]) -> bool:
    """Return whether these are all texts, whose order peft does not keep."""
    return all(isinstance(value, str) for value in values)
