"""What other people's trainings leave behind, for tests: models, state dicts, files, attacks."""

from pathlib import Path

import torch

from conescope.measuring.checkpoints import find_checkpoints


class Malicious:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def state_of(model):
    """Copy the tensors of a model's state dict."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    """Return whether two state dicts hold the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def touch(folder, *names):
    """Make empty files in a folder, and return their paths."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def found(source, step_pattern=None, **words):
    """Find checkpoints, and return the step, name and number of files of each."""
    checkpoints = find_checkpoints(source, step_pattern, **words)
    return [(c.step, c.path.name, len(c.files)) for c in checkpoints]


def small_bert(kind):
    """Build a BERT of 12 tokens and one layer, from seed 0."""
    from transformers import BertConfig

    torch.manual_seed(0)
    return kind(
        BertConfig(
            vocab_size=12,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=6,
        )
    )
