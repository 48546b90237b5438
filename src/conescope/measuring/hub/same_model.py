"""Make sure that all revisions are weights of one model: their config.json has to say the same.

A later stage of a training may change what the weights do not show, such as the base of rotary
position embeddings for a longer context. A kernel of the model of the first stage, at the weights
of a later one, would be that of no network.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.weight_files import some_of
from conescope.measuring.hub.pretrained import CONFIG
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
    """Compares the config.json of revisions with that by which the model was built.

    Args:
        config: the configuration that was built, of transformers.
        built_from: the folder that holds its config.json.
        repositories: where the revisions are.
        folder: where to put their config.json.

    Attributes:
        digest: what tells the config.json by which the model was built, 16 hexadecimal digits.
    """

    def __init__(
        self, config: Any, built_from: Path, repositories: Repositories, folder: Path
    ) -> None:
        self._kind, self._repositories, self._folder = type(config), repositories, folder
        self._values = self._read(built_from / CONFIG)
        self.digest = hashlib.sha256((built_from / CONFIG).read_bytes()).hexdigest()[:16]
        self._same: set[Listed] = set()

    def check(self, ref: Ref) -> None:
        """Compare the config.json of a revision, if it has one.

        Raises:
            CheckpointError: if it describes another model, or cannot be fetched or read.
        """
        listed = self._repositories.files(ref).get(CONFIG)
        if listed is None or listed in self._same:
            return
        file = self._repositories.fetch(ref, [CONFIG], self._folder) / CONFIG
        try:
            values = self._read(file)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise CheckpointError(f"{ref}: its {CONFIG} cannot be read: {error}") from None
        changed = [
            f"{name} was {self._values.get(name)!r} and is {values.get(name)!r}"
            for name in sorted({*values, *self._values})
            if values.get(name) != self._values.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{ref} is another model than the first revision, by its {CONFIG}: "
                f"{some_of(changed)}; measure it in a run of its own, or build a model for all by "
                f"--model package.module:build"
            )
        if listed.git_sha1 is not None:
            self._same.add(listed)

    def _read(self, file: Path) -> dict[str, Any]:
        values = self._kind.from_dict(read_json(file, CheckpointError)).to_dict()
        return {name: value for name, value in values.items() if not _HARMLESS.fullmatch(name)}
