"""Two processes that save one checkpoint by torch.distributed.checkpoint, each its own part."""

import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def save(rank: int, folder: str, meeting: str) -> None:
    """Save two matrices, by rows and by columns, and a vector that both processes hold."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    matrix = torch.arange(35.0).view(7, 5)
    content = {
        "weight": distribute_tensor(matrix, mesh, [Shard(0)]),
        "columns": distribute_tensor(matrix, mesh, [Shard(1)]),
        "bias": torch.arange(3),
    }
    dcp.save({"model": content}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.spawn(save, (sys.argv[1], f"{place}/meeting"), nprocs=2)
