"""What our loop costs beside a bare PyTorch loop over indexed tensors (synthetic case, joint training)."""

from __future__ import annotations

import io
import sys
from itertools import pairwise

import torch
from timing import show, side_by_side
from torch import nn
from torch.nn import functional as F

import polytask as pt
from polytask.data.source import permutation

EPOCHS = 10


def network(tasks):
    return pt.models.HardSharing(
        pt.models.MLP(2, [64] * 4, init="glorot"),
        {task.name: pt.models.MLP(64, [64, 64], 1, init="glorot") for task in tasks},
    )


class Bare(nn.Module):
    """The same network as plain modules."""

    def __init__(self):
        super().__init__()

        def stack(*widths):
            layers = []
            for a, b in pairwise(widths):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return layers

        self.trunk = nn.Sequential(*stack(2, 64, 64, 64, 64))
        self.circle = nn.Sequential(*stack(64, 64, 64), nn.Linear(64, 1))
        self.rhombus = nn.Sequential(*stack(64, 64, 64), nn.Linear(64, 1))

    def forward(self, x):
        z = self.trunk(x)
        return self.circle(z).squeeze(-1), self.rhombus(z).squeeze(-1)


def bare_loop(split):
    model = Bare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, circle, rhombus = split.inputs, split.targets["circle"], split.targets["rhombus"]

    def epochs():
        for epoch in range(EPOCHS):
            for rows in permutation(len(x), 0, epoch).split(16):
                a, b = model(x[rows])
                loss = F.binary_cross_entropy_with_logits(a, circle[rows])
                loss = loss + F.binary_cross_entropy_with_logits(b, rhombus[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return epochs


def ours(data, splits, *, metrics: bool, schedule=None):
    trainer = pt.Trainer(
        network(data.tasks), data.tasks, lambda p: torch.optim.SGD(p, lr=0.05), batch_size=16,
        schedule=schedule, train_metrics=metrics, progress=metrics,
    )  # fmt: skip
    validation = splits.validation if metrics else None
    return lambda: trainer.fit(splits.train, validation, epochs=EPOCHS)


class Terminal(io.StringIO):
    """A terminal nobody looks at, so that the progress display is really drawn."""

    def isatty(self):
        return True


def watched(fit):
    def epochs():
        before, sys.stderr = sys.stderr, Terminal()
        try:
            fit()
        finally:
            sys.stderr = before

    return epochs


def main():
    torch.set_num_threads(1)
    data = pt.data.CircleRhombus()
    splits = data.load()
    rows = side_by_side(
        {
            "bare PyTorch loop": bare_loop(splits.train),
            "polytask, joint": ours(data, splits, metrics=False),
            "polytask, with train and validation metrics, history, progress": watched(ours(data, splits, metrics=True)),
        },
        "bare PyTorch loop",
        targets={
            "polytask, joint": 1.15,
            "polytask, with train and validation metrics, history, progress": 1.35,
        },
    )
    show(f"Joint training, synthetic case, batch 16: {EPOCHS} epochs of 47 steps", rows)


if __name__ == "__main__":
    main()
