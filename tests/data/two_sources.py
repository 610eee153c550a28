"""Two little sources of different inputs, for tests of mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

import polytask as pt
from polytask.data import Split, Splits
from polytask.models import BySource, HardSharing

WIDTH = 4


def part(size: int, inputs: int, tasks: str, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs (size, inputs) and targets of the tasks named: a is binary, b has three classes, c is a regression."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, inputs, generator=random)
    y = {"a": (x[:, 0] > 0).float(), "b": (x[:, 1] > 0).long() + (x[:, 0] > 1).long(), "c": x.sum(1)}
    return x, {task: y[task] for task in tasks}


def both(left: int = 40, right: int = 24, seed: int = 0) -> dict[str, Any]:
    """The source `left` brings the tasks a and c, `right`, of other inputs, b."""
    return {"left": part(left, 3, "ac", seed), "right": part(right, 5, "b", seed + 1)}


def tasks() -> list[pt.Task]:
    return [pt.binary("a"), pt.classification("b", 3), pt.regression("c")]


def encoder(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())


def network(form: type = HardSharing, seed: int = 0) -> pt.models.Model:
    """An encoder with batch statistics for each source, a trunk, three heads."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trunk = BySource({"left": encoder(3), "right": encoder(5)}, nn.Linear(WIDTH, WIDTH))
        heads = {"a": nn.Linear(WIDTH, 1), "b": nn.Linear(WIDTH, 3), "c": nn.Linear(WIDTH, 1)}
        return form(trunk, heads)


def trainer(form: type = HardSharing, mixture: Callable[..., Any] | None = None, **options: Any) -> pt.Trainer:
    given = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "batch_size": 8, "progress": False} | options
    return pt.Trainer(network(form), tasks(), mixture=mixture, **given)


@final
class TwoSources(pt.data.DataSet):
    """Two sources of different inputs."""

    tasks = tuple(tasks())

    def load(self) -> Splits:
        made = [{name: Split(*pair) for name, pair in both(seed=seed).items()} for seed in (0, 7, 9)]
        return Splits(*made)


@final
class TwoSparseSources(pt.data.DataSet):
    """The same two, their inputs as sparse matrices."""

    tasks = tuple(tasks())

    def load(self) -> Splits:
        made = [
            {name: Split(csr_array(x.numpy()), y) for name, (x, y) in both(seed=seed).items()} for seed in (0, 7, 9)
        ]
        return Splits(*made)
