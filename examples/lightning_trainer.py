"""Watch the kernel of a module that Lightning trains, with the scalars in TensorBoard.

pip install 'conescope[lightning]' tensorboard
python examples/lightning_trainer.py     # a few seconds; writes runs/lightning
"""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from conescope.measuring.integrations.lightning import WatchCallback
from conescope.measuring.integrations.trackers import to_tracker


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


seed_everything(0, verbose=False)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)

writer = SummaryWriter("runs/lightning/tensorboard")
callback = WatchCallback(
    images[:50], when="0, every 20, end", out="runs/lightning", on_kernel=to_tracker(writer)
)
trainer = Trainer(
    accelerator="cpu",
    max_epochs=4,
    callbacks=[callback],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Classifier(), loader)
writer.close()

series = callback.watch.series
for step, distance in zip(series.steps, series.distances_from(0), strict=True):
    print(f"S({step:3d}, 0) = {distance:.4f}")
