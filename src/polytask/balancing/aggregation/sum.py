"""The plain sum of gradients."""

from __future__ import annotations

from typing import final

from polytask.balancing.base import Aggregator, Evidence, Needs


@final
class Sum(Aggregator):
    """The sum of the task gradients, Σ_k g_k: what training on the sum of losses does.

    The baseline of every aggregator: Xin et al. 2022, `arXiv:2209.11379 <https://arxiv.org/abs/2209.11379>`_.
    It needs no evidence, so it costs no more than one backward pass where the engine makes use of that. In
    contrast to `polytask.scalarization.Linear` it is an aggregator, so it can stand in for one in comparisons
    of cost. For one task it is the plain gradient.

    >>> Sum().combine(Evidence(["left", "right"]))
    [1.0, 1.0]
    """

    needs = Needs.NOTHING

    def combine(self, evidence: Evidence) -> list[float]:
        return [1.0] * len(evidence.names)  # numbers, as a tensor would have to be copied to the device
