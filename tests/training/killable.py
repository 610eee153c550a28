"""A run that may be killed at any moment and started again; used by test_kills.py."""

from pathlib import Path

import torch
from torch import nn

import polytask as pt


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(600, 2) * 2 - 1
    y = {"circle": (x.norm(dim=1) < 0.5).float(), "rhombus": (x.abs().sum(1) < 1).float()}
    trunk = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 32))
    heads = {task: pt.models.MLP(32, [16], 1, dropout=0.1) for task in y}
    trainer = pt.Trainer(
        pt.models.HardSharing(trunk, heads), [pt.binary("circle"), pt.binary("rhombus")],
        lambda p: torch.optim.Adam(p, lr=1e-3), schedule=pt.schedules.AlternateEpochs(shared=2, specific=2),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200), warmup=20,
        callbacks=[
            pt.callbacks.EarlyStopping(patience=100), pt.callbacks.ReduceLROnPlateau(patience=5),
            pt.callbacks.Checkpoint(folder, monitor="validation/loss"),
        ],
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(
        (x[:500], {k: v[:500] for k, v in y.items()}), (x[500:], {k: v[500:] for k, v in y.items()}),
        epochs=120, resume=last if last.exists() else None,
    )  # fmt: skip
    trainer.save(folder / "done")
