"""Does a step for one task help the others?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from polytask.training.callbacks.pairwise import Pairwise
from polytask.training.probe import Probe

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class Affinity(Pairwise):
    """The inter-task affinity: by what part a step for one task alone lowers the loss of another.

    Paper: Fifty et al., *Efficiently Identifying Task Groupings for Multi-Task Learning*, `arXiv:2109.04617
    <https://arxiv.org/abs/2109.04617>`_.

    Adds the columns ``affinity/<i>/<j>`` to the history, the mean over each epoch of

        Z_ij = 1 - L_j(X, θ - η ∇L_i(X, θ), θ_j) / L_j(X, θ, θ_j),

    where θ is the shared block, θ_j what is task j's own, and X the step's batches: above 0 where a step for i helps j,
    below 0 where it harms it. It is not symmetric. `polytask.studies.suggest` makes groups of tasks from it.

    The step looked at is a plain one, η times the gradient of i's loss (times its fixed weight), where η is the
    learning rate that the next update has, or `lr`. Momentum, Adam's scaling, weight decay, clipping and the balancer
    are left out: they carry what other tasks and earlier steps did, which would be counted as i's doing. With an
    optimizer such as Adam, whose rate is no length of a plain step, figures come out small; their signs and proportions
    are what counts, and an `lr` of one's own makes them larger. Losses before and after see the same dropout.

    A step without one of the two tasks does not enter their mean, nor does one in which j's loss is zero; the figure is
    NaN where this leaves no step. An epoch in which the shared block rests has no such columns. Training is not changed
    by a bit. A look costs K + 1 forward passes and K backward passes through the shared block, for K tasks, keeps K
    shared gradients, and counts as training time.

    Args:
        every: steps between looks, at least 1, counted from the first of every epoch, for each set of sources that
            steps draw from on its own.
        lr: the length of the step in place of the optimizer's learning rate, above 0 and finite.

    Raises:
        ValueError: a number out of range, or (at the start of a fit) fewer than two tasks, or no shared parameter that
            is trained.

    >>> Affinity(every=5).every
    5
    """

    kind = "affinity"

    def __init__(self, every: int = 10, lr: float | None = None) -> None:
        super().__init__(every)
        if lr is not None and not 0 < lr < math.inf:
            raise ValueError(f"`lr` must be above 0 and finite, found {lr}")
        self.lr = lr

    def measure(self, run: Run, probe: Probe) -> Tensor:
        rates = [run.optimizers.rate_of(p) if self.lr is None else self.lr for p in probe.shared]
        gradients, before = probe.gradients()
        after = []
        for gradient in gradients:
            with probe.moved(gradient, rates):
                after.append(probe.losses())
        return 1 - torch.stack(after) / before
