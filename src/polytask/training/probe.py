"""A look at a step before it is made: the tasks' losses and shared gradients, and what a move would do to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from polytask.balancing.flat import flat_parts, unflatten, widest
from polytask.batch import Batch

if TYPE_CHECKING:
    from polytask.training.run import Run


class Probe:
    """What `probing` gives: passes over the batches of a step, each with the same random draws and buffers.

    A task's loss is that of the whole step, over all batches and ranks, without its fixed weight. Every rank must
    make the same calls and is told the same.

    Args:
        run: the run, before the step.
        batches: those of the step.

    Attributes:
        names: the tasks with targets on any rank, K of them, in the trainer's order.
        shared: the parameters of the shared block that are trained.
    """

    def __init__(self, run: Run, batches: Sequence[Batch]) -> None:
        self._run = run
        self._batches = [batch for batch in batches if batch.size]  # many modules refuse a batch without examples
        for batch in self._batches:
            _ = batch.inputs  # gathers them now, before random states are put back
        self._counts = self._pooled()
        self.names = [name for name, count in self._counts.items() if count]
        self.shared: list[Parameter] = run.freezer.switch(True, frozenset(self.names)).shared
        self._begin = _random_state(run.trainer.device)
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in run.model.buffers()]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The gradients (K, P) of the losses on the shared block, times the tasks' fixed weights; the losses (K,)."""
        self.rewind()
        width = sum(p.numel() for p in self.shared)
        rows = torch.zeros(len(self.names), width, dtype=widest(self.shared), device=self._run.trainer.device)
        losses = rows.new_zeros(len(self.names))
        for batch in self._batches:
            totals = self._totals(batch)
            last = len(totals) - 1
            for index, (name, total) in enumerate(totals.items()):
                row, count = self.names.index(name), self._counts[name]
                losses[row] += total.detach() / count
                if total.requires_grad:
                    start = torch.full_like(total, self._run.trainer.tasks[name].weight / count)
                    found = torch.autograd.grad(total, self.shared, start, retain_graph=index < last, allow_unused=True)
                    rows[row] += torch.cat(flat_parts(found, self.shared))
        return self._run.ranks.sum(rows), self._run.ranks.sum(losses)

    @torch.no_grad()
    def losses(self) -> Tensor:
        """The losses (K,) with the parameters as they are now."""
        self.rewind()
        losses = torch.zeros(len(self.names), dtype=widest(self.shared), device=self._run.trainer.device)
        for batch in self._batches:
            for name, total in self._totals(batch).items():
                losses[self.names.index(name)] += total / self._counts[name]
        return self._run.ranks.sum(losses)

    @contextmanager
    def moved(self, gradient: Tensor, rates: Sequence[float]) -> Iterator[None]:
        """The shared block, for a while, moved down a gradient (P,) by a step of these lengths, one a parameter."""
        before = [p.detach().clone() for p in self.shared]
        try:
            with torch.no_grad():
                for p, part, rate in zip(self.shared, unflatten(gradient, self.shared), rates, strict=True):
                    p.sub_(part, alpha=rate)
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.shared, before, strict=True):
                    p.copy_(value)

    def rewind(self) -> None:
        """Random state and buffers as they were at the start."""
        _set_random_state(self._begin, self._run.trainer.device)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def _totals(self, batch: Batch) -> dict[str, Tensor]:
        """{task with targets here: its summed loss}, in the trainer's order."""
        trainer = self._run.trainer
        here = [name for name in self.names if batch.counts.get(name)]
        if not here:
            return {}
        with trainer.autocast():
            outputs = self._run.model(batch.inputs, here, batch.source)
            totals = {name: batch.totals.get(name, trainer.tasks[name].total) for name in here}
            return {
                name: total(outputs[name], batch.targets[name], batch.counts[name], batch.weights.get(name))
                for name, total in totals.items()
            }

    def _pooled(self) -> dict[str, int]:
        """{task: targets in the whole step, over all ranks}."""
        tasks, ranks = self._run.trainer.tasks, self._run.ranks
        own = [sum(batch.counts.get(name, 0) for batch in self._batches) for name in tasks]
        if not ranks.alone:
            own = ranks.sum(torch.tensor(own, device=self._run.trainer.device)).tolist()
        return dict(zip(tasks, own, strict=True))


@contextmanager
def probing(run: Run, batches: Sequence[Batch]) -> Iterator[Probe]:
    """A `Probe` of a step that is about to be made; training goes on as if it had not been.

    Parameters, buffers, gradients, optimizer states and random states are to the bit what they were, whatever happens
    inside. Which blocks are live is left to the next update, which settles it in any case. What a module of one's own
    keeps elsewhere, such as a counter of its calls, is not put back.

    Args:
        run: the run, before the step.
        batches: those of the step.
    """
    probe = Probe(run, batches)
    try:
        yield probe
    finally:
        probe.rewind()


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
