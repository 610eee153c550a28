"""What keeps the ranks of a run alike (weights at the start, steps, running statistics), and lets one of them log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polytask.batch import Batch
from polytask.ranks import Ranks

Steps = Iterator[tuple[Batch, ...]]


def align(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Gives every rank the first one's parameters and buffers."""
    if ranks.alone:
        return
    for module in modules:
        ranks.broadcast((*module.parameters(), *module.buffers()))


def until_all_end(steps: Steps, ranks: Ranks, device: torch.device) -> Steps:
    """The steps of this rank, then steps without batches until every rank's have ended."""
    if ranks.alone:
        yield from steps
        return
    while True:
        batches = next(steps, None)
        more = torch.tensor(batches is not None, dtype=torch.int64, device=device)
        if not ranks.sum(more):
            return
        yield batches or ()


def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the mean of the ranks' running means and variances, and the first one's other buffers.

    Statistics that are equal on all ranks, a frozen block's for one, keep their bits.
    """
    if ranks.alone:
        return
    averaged = {id(t) for module in model.modules() for t in _statistics(module)}
    for buffer in model.buffers():
        first = buffer.detach().clone()
        ranks.broadcast([first])
        if id(buffer) in averaged:  # differences first: the mean of equal numbers is then that number
            first += ranks.sum(buffer.detach() - first) / ranks.count
        buffer.detach().copy_(first)


@contextmanager
def quiet(ranks: Ranks) -> Iterator[None]:
    """Only the first rank logs."""
    if ranks.first:
        yield
        return

    def refuse(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger("polytask")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


def _statistics(module: nn.Module) -> list[Tensor]:
    if not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return []
    return [t for t in (module.running_mean, module.running_var) if t is not None]
