"""Do the tasks pull the shared block the same way?"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import Tensor

from polytask.training.callbacks.pairwise import MEET, Pairwise, never_meet
from polytask.training.probe import Probe

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class GradientCosines(Pairwise):
    """The cosines of the tasks' gradients on the shared block, averaged over each epoch.

    Adds the columns ``cosine/<a>/<b>`` to the history, in [-1, 1], a before b in the order of the tasks: 1 where both
    tasks pull the shared block the same way, 0 where neither cares what the other does, below 0 where they are in
    conflict (Yu et al., *Gradient Surgery for Multi-Task Learning*, `arXiv:2001.06782
    <https://arxiv.org/abs/2001.06782>`_). Schedules see them in `Schedule.observe`.

    Gradients are those of the losses at the start of a step, over all of its batches and ranks, whatever its updates
    then touch; objectives beside the tasks are left out. A step without one of the two tasks, or in which one's
    gradient is zero, does not enter their mean, which is NaN where this leaves no step of those with both; an epoch in
    which the shared block rests has no such columns. Training is not changed by a bit. A look costs one forward pass
    and K backward passes through the shared block, for K tasks, keeps K shared gradients, and counts as training time.

    Args:
        every: steps between looks, at least 1, counted from the first of every epoch, for each set of sources that
            steps draw from on its own.

    Raises:
        ValueError: `every` is below 1, or (at the start of a fit) fewer than two tasks, no shared parameter that is
            trained, or a schedule that needs the cosine of two tasks that are known never to be in one step.

    >>> GradientCosines(every=5).every
    5
    """

    kind = "cosine"
    symmetric = True

    def __init__(self, every: int = 10) -> None:
        super().__init__(every)

    def on_fit_start(self, run: Run) -> None:
        super().on_fit_start(run)
        trainer, schedule = run.trainer, run.trainer.schedule
        needed = schedule.compares()
        if not needed or not any(schedule.moves_shared(epoch) for epoch in range(run.epochs)):
            return
        for one, other in never_meet(run.train, list(trainer.tasks), trainer.accumulate, run.epochs):
            if (one, other) in needed:
                raise ValueError(
                    f"`{type(schedule).__name__}` needs steps with targets of both `{one}` and `{other}`, and no step "
                    f"would hold them: {MEET}"
                )

    def measure(self, run: Run, probe: Probe) -> Tensor:
        rows, _ = probe.gradients()
        directions = rows / rows.norm(dim=1, keepdim=True)  # not a number for a gradient of zero
        return (directions @ directions.T).clamp(-1, 1)
