"""Gradient accumulation, in the style of Hugging Face loops: the model returns its losses in a dictionary.

`pt.Accumulator` keeps one gradient per task over the micro-batches and balances once per optimizer step, the
same as on the concatenated batch. (`pt.balance` on each micro-batch would add up balanced gradients instead.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(8 * 16, 32), nn.ReLU())
        self.topic = nn.Linear(32, 3)
        self.length = nn.Linear(32, 1)

    def forward(self, input_ids: Tensor, topic: Tensor, length: Tensor) -> dict[str, dict[str, Tensor]]:
        z = self.encoder(input_ids)
        losses = {"topic": F.cross_entropy(self.topic(z), topic), "length": F.mse_loss(self.length(z)[:, 0], length)}
        return {"losses": losses}


def batches(number: int, size: int = 8) -> list[dict[str, Tensor]]:
    ids = torch.randint(50, (number, size, 8))
    return [{"input_ids": i, "topic": i[:, 0] % 3, "length": (i < 25).float().mean(1)} for i in ids]


def train(epochs: int = 4, accumulation_steps: int = 4) -> list[float]:
    """The sum of losses at every optimizer step."""
    torch.manual_seed(0)
    model, loader = Model(), batches(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * len(loader) // accumulation_steps
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    accumulator = pt.Accumulator(shared=model.encoder, balancer=pt.aggregation.MGDA())
    seen, running = [], 0.0
    for step, batch in enumerate(loader * epochs, 1):
        losses = {name: loss / accumulation_steps for name, loss in model(**batch)["losses"].items()}
        accumulator.add(losses)  # was: sum(losses.values()).backward()
        running += sum(loss.item() for loss in losses.values())
        if step % accumulation_steps == 0:
            accumulator.finish()  # .grad is filled here
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            seen.append(running)
            running = 0.0
    return seen


if __name__ == "__main__":
    found = train()
    print(f"sum of losses: {found[0]:.3f} at the first step, {found[-1]:.3f} at the last")
