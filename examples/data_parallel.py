"""One network trained by several processes, each on its part of every batch.

    python examples/data_parallel.py                              # one process
    python examples/data_parallel.py --devices 2                  # starts the second one itself
    torchrun --nproc-per-node 2 examples/data_parallel.py         # torchrun starts both
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-endpoint host:29500 --rdzv-backend c10d examples/data_parallel.py

All print the same losses, to rounding. `batch_size` is that of all processes together, so nothing else changes
with their number. On GPUs add ``--accelerator cuda``.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import polytask as pt


def trained(epochs: int = 20, **where: object) -> pt.Trainer:
    """A trainer that has trained; every process runs this, from the same data."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=random)
    y = {"sign": (x[:, 0] * x[:, 1] > 0).float(), "total": x.sum(1)}
    torch.manual_seed(0)
    model = pt.models.HardSharing(
        pt.models.MLP(8, [64, 64]), {"sign": nn.Linear(64, 1), "total": nn.Linear(64, 1)}
    )  # fmt: skip
    trainer = pt.Trainer(
        model, [pt.binary("sign"), pt.regression("total")], lambda p: torch.optim.SGD(p, lr=0.05),
        balancer=pt.aggregation.UPGrad(), batch_size=64, progress=False, **where,
    )  # fmt: skip
    trainer.fit((x[:1600], {k: v[:1600] for k, v in y.items()}), (x[1600:], {k: v[1600:] for k, v in y.items()}),
                epochs=epochs)  # fmt: skip
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--devices", type=int, help="processes on this machine, if not launched by torchrun")
    parser.add_argument("--accelerator", default="cpu")
    trainer = trained(**vars(parser.parse_args()))
    if trainer.ranks.first:  # every process has the same figures
        count, rows = trainer.ranks.count, trainer.history
        print(f"{count} process{'es' * (count > 1)}: ", end="")
        print(*(f"{part} loss {rows[-1][f'{part}/loss']:.8f}" for part in ("train", "validation")), sep=", ")
