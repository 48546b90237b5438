"""Make sure that all revisions are weights of one model: their configuration has to say the same.

A later stage of a training may change what the weights do not show, such as the base of rotary
position embeddings for a longer context. A kernel of the model of the first stage, at the weights
of a later one, would be that of no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.weight_files import some_of
from conescope.measuring.hub.pretrained import UNREADABLE, first_line
from conescope.measuring.hub.repositories import Listed, Ref, Repositories
from conescope.runs.foreign import read_json

_HARMLESS = re.compile(
    r"_?(transformers_version|(name_or|commit)_?\w*|architectures|auto_map|(torch_)?dtype|use_cache"
    r"|\w+_token_id|\w*drop(out)?\w*|\w*_pdrop|initializer_range|gradient_checkpointing"
    r"|(attn|experts)_implementation\w*|output_\w+|return_dict|problem_type|id2label|label2id"
    r"|task_specific_params|finetuning_task|tokenizer_class|summary_\w+|unsloth_\w+|model_version)"
)
"""Keys that do not change what a model computes in evaluation mode, without a loss."""


class SameModel:
    """Compares the configurations of revisions with that by which the model was built.

    Args:
        file: the name of the file that holds a configuration.
        built_from: the folder that holds the one by which the model was built.
        read: what returns, of such a file, the values that make a difference.
        repositories: where the revisions are.
        folder: where to put their configurations.

    Attributes:
        digest: what tells the configuration by which the model was built, 16 hexadecimal digits.
    """

    def __init__(
        self,
        file: str,
        built_from: Path,
        read: Callable[[Path], dict[str, Any]],
        repositories: Repositories,
        folder: Path,
    ) -> None:
        self._file, self._read = file, read
        self._repositories, self._folder = repositories, folder
        self._values = self._read(built_from / file)
        self.digest = hashlib.sha256((built_from / file).read_bytes()).hexdigest()[:16]
        self._same: set[Listed] = set()

    def check(self, ref: Ref) -> None:
        """Compare the configuration of a revision, if it has one.

        Raises:
            CheckpointError: if it describes another model, or cannot be fetched or read.
        """
        listed = self._repositories.files(ref).get(self._file)
        if listed is None or listed in self._same:
            return
        file = self._repositories.fetch(ref, [self._file], self._folder) / self._file
        try:
            values = self._read(file)
        except UNREADABLE as error:
            raise CheckpointError(
                f"{ref}: its {self._file} cannot be read: {first_line(error)}; leave it out"
            ) from None
        changed = [
            f"{name} was {self._values.get(name)!r} and is {values.get(name)!r}"
            for name in sorted({*values, *self._values})
            if values.get(name) != self._values.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{ref} is another model than the first revision, by its {self._file}: "
                f"{some_of(changed)}; measure it in a run of its own, or build a model for all by "
                f"--model package.module:build"
            )
        if listed.git_sha1 is not None:
            self._same.add(listed)


def computed(config: Any) -> Callable[[Path], dict[str, Any]]:
    """Return what reads, of a config.json, the values that change what the model computes.

    Args:
        config: a configuration of the same class, of transformers.
    """

    def read(file: Path) -> dict[str, Any]:
        read_json(file, CheckpointError)  # bounds what transformers then reads in its own way
        held, _ = type(config).get_config_dict(str(file.parent))
        values = type(config).from_dict(held).to_dict()
        return {name: value for name, value in values.items() if not _HARMLESS.fullmatch(name)}

    return read
