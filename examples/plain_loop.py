"""Balancing in a bare PyTorch loop: `pt.balance` stands where ``loss.backward()`` stood.

In bfloat16 put the forward pass and the losses under ``torch.autocast``; nothing else changes. In float16 do
the same and give `pt.balance` the scaler and the plain losses: ``pt.balance(losses, ..., scaler=scaler)``, then
``scaler.unscale_(optimizer)`` before clipping, ``scaler.step(optimizer)`` and ``scaler.update()`` as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt


class Net(nn.Module):
    """Any module will do; polytask asks for nothing but the shared parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.Tanh())
        self.sign = nn.Linear(32, 1)
        self.total = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        return self.sign(z).squeeze(1), self.total(z).squeeze(1)


def train(steps: int = 50) -> list[dict[str, float]]:
    """The losses of every step."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    balancer = pt.aggregation.MGDA()  # made once: some balancers learn
    seen = []
    for _ in range(steps):
        sign, total = model(x)
        losses = {
            "sign": F.binary_cross_entropy_with_logits(sign, (x[:, 0] > 0).float()),
            "total": F.mse_loss(total, x.sum(1)),
        }
        optimizer.zero_grad()
        pt.balance(losses, shared=model.trunk, balancer=balancer)  # was: sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # after balancing
        optimizer.step()
        seen.append({name: loss.item() for name, loss in losses.items()})
    return seen


if __name__ == "__main__":
    history = train()
    print("first", history[0], "last", history[-1], sep="\n")
