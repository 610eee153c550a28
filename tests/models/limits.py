"""What tests of architectures' limits share."""

from __future__ import annotations

from typing import Any

import torch
from tests.helpers import data, trainer
from torch import Tensor, nn

from polytask.models import Model


class Fixed(nn.Module):
    """A gate that always chooses one expert: logits (B, n) whose softmax is one-hot to the bit."""

    def __init__(self, chosen: int, count: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.full((count,), -1e4).index_fill(0, torch.tensor([chosen]), 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def expert(inputs: int = 3, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.Tanh())


def fitted(*models: Model, names: str = "ab", epochs: int = 3, **options: Any) -> None:
    """Trains each in double precision, in which rounding does not add up to anything near 1e-6."""
    x, y = data(names=names)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in y.items()}
    for model in models:
        trainer(model.double(), names, **options).fit((x.double(), doubled), epochs=epochs)


def fresh() -> Tensor:
    """Inputs that no model was trained on."""
    return data(seed=1)[0].double()


def close(found: Any, wanted: Any) -> None:
    """Equal to 1e-6: outputs {task: tensor}, or parameters in order."""
    if isinstance(found, dict):
        found, wanted = found.values(), wanted.values()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
