"""What can be watched, and what happens for what cannot: the table of docs/watch.md, row by row."""

from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import conescope as cs
import distributed_watch
from conescope.errors import ModelError


class Sentence(nn.Module):
    """A causal language model of the smallest kind: keyword inputs, logits for every token."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 8)
        self.layers = nn.ModuleList(nn.GRU(8, 8, batch_first=True) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        hidden = self.tokens(input_ids) * attention_mask[..., None]
        for layer in self.layers:
            hidden = layer(hidden)[0]
        return {"logits": hidden @ self.tokens.weight.T}


class Adapter(nn.Module):
    """A frozen layer with a trained low-rank one beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 5).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(3, 1, bias=False), nn.Linear(1, 5, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return self[1](checkpoint(self[0], x, use_reentrant=True))


class Dropping(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


class BatchCentred(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(dim=0)


def sentences():
    ids = torch.randint(0, 30, (4, 5), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def watched(model, probe=None, **options):
    """The kernel of a model, by way of a watch."""
    torch.manual_seed(0)
    probe = torch.randn(4, 3) if probe is None else probe
    return cs.Watch(model, probe, when="0", **options)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()), {}),
        (Adapter, {}),
        (Adapter, {"params": "*lora_*"}),
        (Sentence, {"probe": sentences(), "pool": "last"}),
        (Sentence, {"probe": sentences(), "pool": "mean", "params": "layers.*", "draws": 2}),
        (
            lambda: nn.LSTM(3, 2, batch_first=True),
            {"probe": torch.randn(4, 5, 3), "select": lambda out: out[0]},
        ),
        (lambda: nn.Linear(3, 1), {"select": lambda out: out.squeeze(1)}),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), {}),
        (lambda: Checkpointed(nn.Linear(3, 3), nn.Linear(3, 2)), {}),
        (lambda: nn.Linear(3, 2).bfloat16(), {"probe": torch.randn(4, 3).bfloat16()}),
        (lambda: nn.LazyLinear(2), {"initialise": True}),
    ],
    ids=[
        "batchnorm-dropout",
        "frozen",
        "lora",
        "last-token",
        "vocabulary",
        "lstm",
        "regression",
        "parametrised",
        "checkpointed",
        "bfloat16",
        "lazy-after-a-batch",
    ],
)
def test_what_can_be_watched(tmp_path, make, options):
    torch.manual_seed(0)
    model, options = make().train(), dict(options)
    if options.pop("initialise", False):
        model(torch.randn(2, 3))
    with watched(model, options.pop("probe", None), out=tmp_path, **options) as watch:
        assert watch.step(0)
    kernel = watch.series.kernels[0].values
    assert torch.equal(kernel, kernel.T)
    assert bool((kernel.diagonal() > 0).all())
    assert model.training


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), "keeps no running statistics"),
        (lambda: Dropping(3, 2), "change from call to call"),
        (lambda: BatchCentred(3, 2), "change with the others in its batch"),
        (lambda: nn.LSTM(3, 2), "the model returns a tuple, without 'logits'; say with `select`"),
        (lambda: quantised(nn.Sequential(nn.Linear(3, 2))), "has no parameters"),
    ],
    ids=["batch-statistics", "dropout", "coupled", "no-tensor", "quantised"],
)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_cannot_be_watched_is_refused_with_the_reason(tmp_path, make, message):
    with pytest.raises(ModelError, match=message):
        watched(make(), out=tmp_path).step(0)


def test_processes_that_train_together(tmp_path):
    other = get_context("spawn").Process(target=distributed_watch.run, args=(1, str(tmp_path)))
    other.start()
    distributed_watch.run(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    run = cs.load_run(tmp_path / "run")
    assert run.series.steps == (0, 2, 4)
    assert run.finished


def test_a_hook_that_masks_a_gradient_is_heeded(tmp_path):
    torch.manual_seed(0)
    model, mask = nn.Linear(3, 2), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    x = torch.randn(4, 3)
    model.weight.register_hook(lambda gradient: mask * gradient)
    with watched(model, x, out=tmp_path, params="weight") as watch:
        assert watch.step(0)
    rows = mask[:, None] * x  # of each output, [2, 4, 3]
    expected = (rows @ rows.mT).sum(0)
    torch.testing.assert_close(watch.series.kernels[0].values, expected)
