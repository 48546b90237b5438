"""Callbacks of the real trainers on small models, and trackers."""

import csv
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

import conescope as cs
from conescope.errors import MissingPackageError, RecipeError
from conescope.experiments.stored import read_status
from conescope.measuring.adapt import adapt
from conescope.measuring.integrations import lightning as for_lightning
from conescope.measuring.integrations import trackers
from conescope.measuring.integrations import transformers as for_transformers
from conescope.measuring.integrations.trackers import TRACKERS, to_tracker
from foreign import small_bert

TOKENS = torch.randint(2, 12, (64, 6), generator=torch.Generator().manual_seed(0))
PROBE = {"input_ids": TOKENS[:4], "attention_mask": torch.ones_like(TOKENS[:4])}


def fine_tune(model, folder, callbacks=(), steps=6, **changes):
    data = [{"input_ids": row, "labels": row[0] % 2} for row in TOKENS]
    options = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(**(options | changes))
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=changes.get("resume_from_checkpoint"))
    return model


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(callbacks=(), **changes):
    seed_everything(0, verbose=False)
    module = Classifier()
    x, y = torch.randn(48, 5), torch.randint(0, 3, (48,))
    trainer = LightningTrainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), 8, shuffle=True))
    return module


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_transformers_training_is_the_same_bits_with_and_without(tmp_path):
    without = fine_tune(small_bert(BertForSequenceClassification), tmp_path / "trainer")
    callback = for_transformers.WatchCallback(PROBE, when="0, 3, end", out=tmp_path / "watched")
    watched = fine_tune(small_bert(BertForSequenceClassification), tmp_path / "trainer", [callback])
    assert_same_weights(without, watched)
    run = cs.load_run(tmp_path / "watched")
    assert run.series.steps == (0, 3, 6)
    assert run.finished
    assert run.total_steps == 6
    expected = adapt(watched.eval(), PROBE).kernel()
    assert torch.equal(run.series.kernels[-1].values, expected.values)


def test_transformers_training_is_gone_on_with(tmp_path):
    whole = for_transformers.WatchCallback(PROBE, when="0, every 2", out=tmp_path / "whole")
    fine_tune(small_bert(BertForSequenceClassification), tmp_path / "a", [whole])
    parts = for_transformers.WatchCallback(PROBE, when="0, every 2", out=tmp_path / "parts")
    saving = {"save_strategy": "steps", "save_steps": 4}

    class Stop(for_transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            small_bert(BertForSequenceClassification), tmp_path / "b", [parts, Stop()], **saving
        )
    checkpoint = str(tmp_path / "b/checkpoint-4")
    fine_tune(
        small_bert(BertForSequenceClassification),
        tmp_path / "b",
        [parts],
        resume_from_checkpoint=checkpoint,
    )
    one, other = cs.load_run(tmp_path / "whole").series, cs.load_run(tmp_path / "parts").series
    assert one.steps == other.steps == (0, 2, 4, 6)
    assert one.distances().tolist() == other.distances().tolist()


def test_lightning_training_is_the_same_bits_with_and_without(tmp_path):
    without = fit(accumulate_grad_batches=2)
    probe = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    callback = for_lightning.WatchCallback(
        probe, when="0, every 2, end", out=tmp_path, module="network"
    )
    watched = fit([callback], accumulate_grad_batches=2)
    assert_same_weights(without, watched)
    run = cs.load_run(tmp_path)
    assert run.series.steps == (0, 2, 4, 6)
    assert run.finished
    expected = cs.entk(watched.eval(), probe)
    assert torch.equal(run.series.kernels[-1].values, expected.values)


def test_lightning_gives_the_folder_back_when_training_fails(tmp_path):
    class Failing(for_lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            raise ZeroDivisionError

    callback = for_lightning.WatchCallback(torch.randn(4, 5), when="0", out=tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit([callback, Failing()])
    assert not read_status(tmp_path).running
    assert not cs.load_run(tmp_path).finished


@pytest.mark.parametrize("package", ["transformers", "lightning"])
def test_a_missing_package_is_named_with_the_cure(monkeypatch, package):
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"conescope.measuring.integrations.{package}")
    with pytest.raises(MissingPackageError, match=rf"pip install 'conescope\[{package}\]'"):
        import_module(f"conescope.measuring.integrations.{package}")


def watched_scalars(tracker, out):
    model = nn.Linear(3, 2)
    with cs.Watch(
        model, torch.randn(4, 3), when="0, 5", out=out, on_kernel=to_tracker(tracker)
    ) as watch:
        watch.step(0)
        with torch.no_grad():
            model.weight += 1
        watch.step(5)
    return watch.series


def test_tensorboard_is_told(tmp_path):
    with SummaryWriter(str(tmp_path / "events")) as writer:
        series = watched_scalars(writer, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    trace = events.Scalars("conescope/trace")
    assert [event.step for event in trace] == [0, 5]
    assert trace[0].value == pytest.approx(float(series.kernels[0].values.trace()))
    (distance,) = events.Scalars("conescope/distance_from_first")
    assert distance.value == pytest.approx(series.distances()[1, 0], abs=1e-9)
    (velocity,) = events.Scalars("conescope/velocity")
    assert velocity.value == pytest.approx(series.distances()[1, 0] / 5, abs=1e-9)


class Recorder:
    """A stand-in for every tracker: it keeps the scalars of each step, whatever takes them."""

    def __init__(self, method):
        self.told = {}
        setattr(self, method, getattr(self, f"_{method}"))

    def _add_scalar(self, tag, scalar_value, global_step):
        self.told.setdefault(global_step, {})[tag] = scalar_value

    def _log(self, data, *, step):
        self.told[step] = data

    def _log_metrics(self, metrics, step=None):
        self.told[step] = metrics


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_is_told_the_same(tmp_path, name):
    recorder = Recorder(import_module(f"{trackers.__name__}.{name}").METHOD)
    series = watched_scalars(recorder, tmp_path)
    distance = series.distances()[1, 0]
    traces = [pytest.approx(float(kernel.values.trace()), rel=1e-5) for kernel in series.kernels]
    assert recorder.told[0] == {"conescope/trace": traces[0]}
    assert recorder.told[5] == {
        "conescope/trace": traces[1],
        "conescope/distance_from_first": pytest.approx(distance, abs=1e-12),
        "conescope/distance_from_previous": pytest.approx(distance, abs=1e-12),
        "conescope/velocity": pytest.approx(distance / 5, abs=1e-12),
    }


def test_a_logger_of_lightning_is_told(tmp_path):
    logger = CSVLogger(str(tmp_path / "logs"))
    series = watched_scalars(logger, tmp_path / "run")
    logger.save()
    (file,) = tmp_path.glob("logs/**/metrics.csv")
    with file.open(encoding="utf-8") as opened:
        rows = {int(row["step"]): row for row in csv.DictReader(opened)}
    assert rows.keys() == {0, 5}
    told = float(rows[5]["conescope/distance_from_first"])
    assert told == pytest.approx(series.distances()[1, 0], abs=1e-9)


def test_the_prefix_of_the_names_can_be_chosen():
    recorder = Recorder("log")
    to_tracker(recorder, prefix="ntk.")(3, {"trace": 1.5})
    assert recorder.told == {3: {"ntk.trace": 1.5}}


@pytest.mark.parametrize("writer", [{}, None, SimpleNamespace(log="a field of this name")])
def test_what_is_no_tracker_is_refused_with_those_that_are_known(writer):
    with pytest.raises(RecipeError, match="is no tracker that conescope knows") as caught:
        to_tracker(writer)
    for name, what in TRACKERS.items():
        method = import_module(f"{trackers.__name__}.{name}").METHOD
        assert f"{what} (has {method})" in str(caught.value)


def test_the_table_of_trackers_lists_the_files():
    files = {path.stem for path in Path(trackers.__file__).parent.glob("*.py")}
    assert files == {*TRACKERS, "__init__"}
