"""Follow the kernel through the checkpoints that some training left behind.

python examples/checkpoint_series.py     # a few seconds; writes runs/checkpoint-series

The same from a shell, with build() below in a module network.py and the probe in a file:

conescope measure 'ckpts/*.safetensors' --model network:build --probe probe.npy --out runs/x
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import conescope as cs


def build() -> nn.Module:
    """The network that the checkpoints are of."""
    return nn.Sequential(nn.Linear(64, 100), nn.LayerNorm(100), nn.GELU(), nn.Linear(100, 10))


torch.manual_seed(0)
images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
model = build()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
Path("ckpts").mkdir(exist_ok=True)
for step in range(401):
    if step % 50 == 0:
        save_file(model.state_dict(), f"ckpts/step{step}.safetensors")
    chosen = torch.randint(len(images), (64,))
    loss = F.cross_entropy(model(images[chosen]), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

run = cs.measure_checkpoints(
    build, "ckpts/*.safetensors", images[:100], out="runs/checkpoint-series", by_layer=True
)
for step, distance in zip(run.series.steps, run.series.distances_from(0), strict=True):
    print(f"S({step:3d}, 0) = {distance:.4f}")
first, last = run.series.kernels[0], run.series.kernels[-1]
for layer in last.by_layer:
    before, after = cs.Kernel(first.by_layer[layer]), cs.Kernel(last.by_layer[layer])
    print(f"layer {layer}: S(400, 0) = {cs.kernel_distance(before, after):.4f}")
