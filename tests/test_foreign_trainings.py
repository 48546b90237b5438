"""Checkpoints as the real trainers write them."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertForMaskedLM, Trainer, TrainingArguments

import conescope as cs
from conescope.errors import CheckpointError, SameWeightsWarning
from conescope.measuring.adapt import adapt
from foreign import small_bert

TOKENS = torch.randint(2, 12, (48, 6), generator=torch.Generator().manual_seed(0))
PROBE = {"input_ids": TOKENS[:4], "attention_mask": torch.ones_like(TOKENS[:4])}


def language_model():
    """A transformer whose last layer is tied to its embedding."""
    return small_bert(BertForMaskedLM)


def test_a_transformers_series_with_shards_and_tied_weights(tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=6,
        save_steps=2,
        save_strategy="steps",
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    trainer = Trainer(model := language_model(), arguments, train_dataset=rows)
    trainer.train()
    model.save_pretrained(tmp_path / "out/checkpoint-8", max_shard_size="2KB")
    assert len(list((tmp_path / "out/checkpoint-8").glob("*.safetensors"))) > 1

    with pytest.warns(SameWeightsWarning, match="checkpoint-6 and .*checkpoint-8 hold the same"):
        run = cs.measure_checkpoints(
            language_model, tmp_path / "out", PROBE, out=tmp_path / "run", pool="mean"
        )
    assert run.series.steps == (2, 4, 6, 8)
    truth = adapt(model.eval(), PROBE, pool="mean").kernel()
    assert torch.equal(run.series.kernels[2].values, truth.values)
    assert torch.equal(run.series.kernels[3].values, truth.values)
    assert run.series.distances_from(2)[1] > 1e-6


def network():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


class Module(LightningModule):
    def __init__(self, note=None):
        super().__init__()
        self.save_hyperparameters()
        self.model = network()

    def training_step(self, batch, _):
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train_with_lightning(module, folder):
    data = TensorDataset(torch.randn(32, 5), torch.randint(0, 2, (32,)))
    trainer = LightningTrainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1)],
    )
    trainer.fit(module, DataLoader(data, batch_size=4))


@pytest.mark.filterwarnings("ignore")
def test_lightnings_checkpoints(tmp_path):
    module = Module(note=3)
    train_with_lightning(module, tmp_path / "out")
    probe = torch.randn(4, 5)
    run = cs.measure_checkpoints(network, tmp_path / "out", probe, out=tmp_path / "run")
    assert run.series.steps == (2, 4, 6)
    assert torch.equal(run.series.kernels[2].values, cs.entk(module.model.eval(), probe).values)


class Settings:
    """A hyperparameter that is no plain value."""


@pytest.mark.filterwarnings("ignore")
def test_lightnings_checkpoints_with_objects_in_them_are_refused(tmp_path):
    train_with_lightning(Module(note=Settings()), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"was refused.*it asks for [\w.]*Settings"):
        cs.measure_checkpoints(network, tmp_path / "out", torch.ones(4, 5), out=tmp_path / "run")
