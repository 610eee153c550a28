"""ATE-SG: blocks take turns through the epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from polytask.errors import whole
from polytask.schedules.base import SHARED, SPECIFIC, Schedule, Update


@final
@dataclass(frozen=True)
class AlternateEpochs(Schedule):
    """Alternate training through the epochs (ATE-SG).

    Repeats: `shared` epochs on the shared block with the task-specific ones frozen, then `specific` epochs
    on the task-specific blocks with the shared one frozen. The frozen block does not change by a bit, and a
    specific phase works on features computed once. The run stops at the requested number of epochs, inside
    a phase if need be.

    Paper: Bellavia, Della Santa, Papini, *ATE-SG: Alternate Through the Epochs Stochastic Gradient for
    Multi-Task Neural Networks*, `arXiv:2312.16340 <https://arxiv.org/abs/2312.16340>`_. The convergence
    theory covers plain SGD, without dropout or batch statistics. The paper's public code toggles Keras'
    ``trainable`` flags without recompiling, which Keras ignores: it trains all blocks jointly.

    Args:
        shared: E0, epochs on the shared block per cycle, at least 0.
        specific: Ets, epochs on the task-specific blocks per cycle, at least 0. With one of the two at 0
            only the other block is trained, throughout.

    Raises:
        ValueError: a negative number, or both 0 (no block would be trained).

    >>> [AlternateEpochs(shared=1, specific=2).phase(epoch) for epoch in range(4)]
    ['shared', 'specific', 'specific', 'shared']
    """

    shared: int = 1
    specific: int = 1

    def __post_init__(self) -> None:
        whole("shared", self.shared, 0)
        whole("specific", self.specific, 0)
        if self.shared == self.specific == 0:
            raise ValueError("alternate training must update at least one block, found shared=0 and specific=0")

    @property
    def cycle(self) -> int:
        return self.shared + self.specific if self.shared and self.specific else 1

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"shared": self.shared, "specific": self.specific}

    def phase(self, epoch: int) -> str:
        return "shared" if epoch % (self.shared + self.specific) < self.shared else "specific"

    def moves_shared(self, epoch: int) -> bool:
        return self.phase(epoch) == "shared"

    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        return (SHARED,) if self.phase(epoch) == "shared" else (SPECIFIC,)
