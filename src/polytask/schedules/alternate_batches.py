"""SAT-SG: blocks take turns batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from polytask.schedules.base import SHARED, SPECIFIC, Schedule, Update

_SAME = (SHARED, SPECIFIC)
_FRESH = ((SHARED,), (SPECIFIC,))


@final
@dataclass(frozen=True)
class AlternateBatches(Schedule):
    r"""Simple alternate training (SAT-SG): first the shared block moves, then the task-specific ones.

    θ0 ← θ0 − α ∇_θ0 L(θ0, θ_ts; B), then θ_ts ← θ_ts − α ∇_θts L(θ0 new, θ_ts; B').

    Paper: Bellavia, Della Santa, Papini, *ATE-SG: Alternate Through the Epochs Stochastic Gradient for
    Multi-Task Neural Networks*, `arXiv:2312.16340 <https://arxiv.org/abs/2312.16340>`_. Its convergence
    theory covers plain SGD, without dropout or batch statistics; other optimizers work without that
    guarantee.

    Args:
        fresh: False (default): B' = B. Each batch makes two updates, at about 1.4 times the cost of a joint
            step; given B, the second gradient is conditionally biased, because θ0 new has already seen B.
            True: B' is the next batch, whose gradient is unbiased; batches are then used in turns, each for
            one block, and the turns go on across epochs, so over two epochs with an odd number of batches
            both blocks see all data.

    >>> [len(AlternateBatches().updates(0, step)) for step in (0, 1)]
    [2, 2]
    >>> [AlternateBatches(fresh=True).updates(0, step)[0].shared for step in (0, 1, 2)]
    [True, False, True]
    """

    fresh: bool = False

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"fresh": self.fresh}

    def phase(self, epoch: int) -> str:
        return "alternate"

    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        return _FRESH[step % 2] if self.fresh else _SAME
