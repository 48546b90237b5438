"""Watch the kernel in a plain training loop: how far does it move, and does it settle?

python examples/plain_loop.py     # a few seconds; writes runs/plain-loop
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import conescope as cs
from conescope.report import write_report

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(72, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with cs.Watch(model, images[:50], when="0, every 20", out="runs/plain-loop") as watch:
    watch.step(0)
    for step in range(1, 201):
        chosen = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(step)

for step, distance in zip(watch.series.steps, watch.series.distances_from(0), strict=True):
    print(f"S({step:3d}, 0) = {distance:.4f}")
print("report:", write_report(watch.run, watch.path / "report.html"))
