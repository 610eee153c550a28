"""Data parallelism in a bare PyTorch loop: each process computes the losses of its own part of the batch.

On one machine with two devices, and on two machines with eight each::

    torchrun --nproc-per-node 2 distributed_loop.py
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 distributed_loop.py

The model is not wrapped in DDP, which would average the gradients of one backward pass; `pt.balance` sums the
gradients of every task over the processes, balances those of the whole batch, and leaves the same `.grad` on all.
So the result is that of one process on the whole batch, which is what running this without torchrun does.
"""

from __future__ import annotations

import os

import torch
from torch import distributed, nn
from torch.nn import functional as F

import polytask as pt


def train(steps: int = 50) -> list[float]:
    """The sum of losses over the whole batch at every step."""
    ranks = pt.Ranks()
    torch.manual_seed(0)  # the same parameters everywhere; or broadcast them: ranks.broadcast(model.parameters())
    model = nn.ModuleDict(
        {"trunk": nn.Sequential(nn.Linear(4, 32), nn.Tanh()), "sign": nn.Linear(32, 1), "total": nn.Linear(32, 1)}
    )
    whole = torch.randn(255, 4)
    x = whole.tensor_split(ranks.count)[ranks.index]  # a DistributedSampler's work, with a DataLoader
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    balancer = pt.aggregation.MGDA()
    seen = []
    for _ in range(steps):
        z = model["trunk"](x)
        losses = {
            "sign": F.binary_cross_entropy_with_logits(model["sign"](z)[:, 0], (x[:, 0] > 0).float()),
            "total": F.mse_loss(model["total"](z)[:, 0], x.sum(1)),
        }
        optimizer.zero_grad()
        pt.balance(
            losses, shared=model["trunk"], balancer=balancer,
            ranks=ranks, specific=model, counts=dict.fromkeys(losses, len(x)),  # parts differ by one example
        )  # fmt: skip
        optimizer.step()
        part = torch.stack([loss.detach() for loss in losses.values()]).sum() * (len(x) / len(whole))
        seen.append(ranks.sum(part).item())
    return seen


if __name__ == "__main__":
    if "RANK" in os.environ:  # started by torchrun; "nccl" and a device of its own each on GPUs
        distributed.init_process_group("gloo")
    found = train()
    if pt.Ranks().first:
        print(f"sum of losses: {found[0]:.4f} at the first step, {found[-1]:.4f} at the last")
    if distributed.is_initialized():
        distributed.destroy_process_group()
