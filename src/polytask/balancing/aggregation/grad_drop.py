"""GradDrop: gradient sign dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, JacobianAggregator
from polytask.balancing.keyed import Constants, by_name, in_range
from polytask.errors import at_least


@final
class GradDrop(JacobianAggregator):
    """Picks one sign for each coordinate at random and drops the task gradients of the other sign.

    With the positive sign purity 𝒫 = ½ (1 + Σ_k g_k / Σ_k |g_k|) of a coordinate and u ~ U[0, 1) drawn for it,
    the sign is + if 𝒫 > u, else −; the gradient is Σ_k (ℓ_k + (1 − ℓ_k) m_k) g_k, where m_k is 1 if g_k has the
    sign and 0 if not. Where all signs agree nothing is dropped; without leaks the expectation over u is the
    plain sum.

    Paper: Chen, Ngiam, Huang, Luong, Kretzschmar, Chai and Anguelov 2020, "Just Pick a Sign",
    `arXiv:2010.06808 <https://arxiv.org/abs/2010.06808>`_. The paper applies it to the gradients of a layer's
    activations, multiplied by the activations' signs; here, as in TorchJD, it acts on the shared parameters'
    gradients, and the paper's function f of 𝒫 is the identity, its default. The draws come from a stream of
    their own, which resumes exactly. One objective is left as it is.

    Args:
        leak: ℓ_k from 0 (drop whole) to 1 (the plain sum): one number for all, {objective: ℓ_k}, or in the
            objectives' order.
        seed: of the draws.

    Raises:
        ValueError: a leak outside 0 to 1, or leaks that do not fit the objectives.

    >>> balancer = GradDrop(seed=1)
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> balancer.combine(Evidence(["left", "right"], jacobian=jacobian))
    tensor([-4.,  2.,  2.])
    """

    keeps = "a random stream"

    def __init__(self, leak: float | Mapping[str, float] | Sequence[float] = 0.0, seed: int = 0) -> None:
        super().__init__()
        in_range("leak", [leak] if isinstance(leak, (int, float)) else leak, 0, 1)
        at_least("seed", seed, 0)
        self.leak = leak
        self.seed = seed
        self._leaks = Constants({}, leak if isinstance(leak, (int, float)) else 0.0)
        self._generator = torch.Generator().manual_seed(seed)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        if not isinstance(self.leak, (int, float)):
            self._leaks = Constants(by_name("leak", self.leak, names, 0.0), 0.0)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        jacobian = evidence.rows
        keep = 1 - self._leaks(evidence.names, jacobian) if self.leak else None  # (K,)
        # on a CPU by pieces that stay in its cache
        width = max(2**17 // len(jacobian), 1) if jacobian.device.type == "cpu" else jacobian.shape[1]
        draws = self._draw(jacobian).split(width)
        return torch.cat([_picked(j, u, keep) for j, u in zip(jacobian.split(width, dim=1), draws, strict=True)])

    def _draw(self, jacobian: Tensor) -> Tensor:
        device = jacobian.device
        if self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return torch.rand(jacobian.shape[1], generator=self._generator, device=device, dtype=jacobian.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        return {"device": str(self._generator.device), "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._generator = torch.Generator(state["device"])
        self._generator.set_state(state["generator"])

    def describe(self) -> dict[str, Any]:
        leak = self.leak
        plain = dict(leak) if isinstance(leak, Mapping) else leak if isinstance(leak, (int, float)) else list(leak)
        return super().describe() | {"leak": plain, "seed": self.seed}


def _picked(jacobian: Tensor, draws: Tensor, keep: Tensor | None) -> Tensor:
    """(P,) what is left; `keep` (K,) is 1 − ℓ_k, None for no leaks."""
    positive, negative = jacobian.clamp(min=0), jacobian.clamp(max=0)  # (K, P)
    above, below = positive.sum(0), negative.sum(0)  # (P,)
    plus = above > draws * (above - below)  # 𝒫 > u, without the division
    if keep is None:
        return torch.where(plus, above, below)
    return (1 - keep) @ jacobian + torch.where(plus, keep @ positive, keep @ negative)
