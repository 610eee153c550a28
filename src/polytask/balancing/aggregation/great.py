"""GREAT: adversarial gradient alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.balancing.base import CotangentAggregator, Evidence
from polytask.balancing.keyed import Learned, same_objectives
from polytask.errors import at_least, whole

_LAYER = ("weight", "bias")
_BETAS = (0.0, 0.99)
_SHORTEST = 1e-12
"""Of an aligned gradient whose largest number was 1 before; below it the example is not guessed."""


@final
class GREAT(CotangentAggregator):
    """Makes the tasks' gradients alike: alignment layers learn to hide from a discriminator whose gradient it is.

    c_k (B, F) is the gradient of L_k at the shared features of B examples. Task k's alignment layer scales
    it elementwise, a_k = s_k ⊙ c_k with s_k (F,) at first all 1, and the trunk is given Σ_k a_k. A small
    discriminator (one hidden layer of leaky ReLUs) sees each example's a_k / ‖a_k‖ and guesses k. It goes
    down the cross-entropy of its guesses, s goes up it, one Adam step each, after the sum was taken. In the
    forward pass alignment layers do nothing, so the network that is left in the end is unchanged.

    Paper: Sinha, Chen, Badrinarayanan and Rabinovich 2018, "Gradient Adversarial Training of Neural
    Networks", `arXiv:1806.08028 <https://arxiv.org/abs/1806.08028>`_. No code of its authors was found; these are
    choices of ours. Gradients are normalised per example, so that directions are compared; as lengths are
    then unseen, s_k is kept at least 0 and at a mean of 1, and balances none. Examples without a gradient (a
    missing target) are not guessed. The last layer starts at 0, so that the order of tasks is of no effect.
    Adam's first moment is off: with it the two chased each other in circles. Absent objectives neither learn nor
    are guessed. For one task it is the plain gradient.

    Args:
        lr: the discriminator's learning rate, at least 0.
        alignment_lr: the alignment layers', at least 0; at 0 this is the plain sum.
        hidden: units of the discriminator's hidden layer, at least 1.
        seed: of the discriminator's first weights.

    Raises:
        ValueError: a negative rate, no hidden unit, features whose size per example changes, or a resumed
            state of other objectives.

    >>> balancer = GREAT()
    >>> balancer.setup(["circle", "rhombus"])
    >>> cotangents = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]])  # 2 examples, 2 features
    >>> balancer.combine(Evidence(["circle", "rhombus"], cotangents=cotangents, examples=2))
    tensor([1., 3., 2., 4.])
    """

    keeps = "a learned discriminator, and a learned alignment layer per task"

    def __init__(self, lr: float = 0.01, alignment_lr: float = 0.003, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        at_least("lr", lr, 0)
        at_least("alignment_lr", alignment_lr, 0)
        whole("hidden", hidden, 1)
        at_least("seed", seed, 0)
        self.lr = lr
        self.alignment_lr = alignment_lr
        self.hidden = hidden
        self.seed = seed
        self._objectives: set[str] = set()
        self._fresh()

    def _fresh(self) -> None:
        self._layer = Learned(self.lr, betas=_BETAS)  # the hidden layer
        self._rows = Learned(self.lr, betas=_BETAS)  # the last layer's row of each objective, its bias last
        self._scales = Learned(self.alignment_lr, betas=_BETAS)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self._objectives |= set(names)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, gradients = evidence.names, self._examples(evidence)
        scales, layer, rows = self._learned(names, gradients)
        combined = (scales[:, None] * gradients).sum(0)  # (B, F)
        if len(names) > 1:
            self._learn(names, gradients.float(), scales, *layer, rows)
        return combined.reshape(-1).to(gradients)

    def guesses(self, evidence: Evidence) -> Tensor:
        """(K, B) the position in `evidence.names` that the discriminator guesses for each aligned gradient."""
        gradients = self._examples(evidence)
        scales, layer, rows = self._learned(evidence.names, gradients)
        return _logits(scales, gradients.float(), layer, rows)[0].argmax(-1)

    def _examples(self, evidence: Evidence) -> Tensor:
        cotangents = evidence.cotangents
        if cotangents is None:
            raise ValueError("GREAT must be given `cotangents`, the gradients at the shared features, found none")
        return cotangents.reshape(len(cotangents), evidence.examples, -1)  # (K, B, F)

    def _learned(self, names: Sequence[str], gradients: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        size, device = gradients.shape[2], gradients.device
        if "weight" not in self._layer:
            bound = math.sqrt(6 / ((1 + 0.2**2) * size))  # He's, for inputs of mean square 1
            draw = torch.rand(self.hidden, size, generator=torch.Generator().manual_seed(self.seed))
            self._layer.add("weight", bound * (2 * draw - 1))
            self._layer.add("bias", torch.zeros(self.hidden))
        for name in names:
            self._scales.add(name, torch.ones(size))
            self._rows.add(name, torch.zeros(self.hidden + 1))
        layer = self._layer.get(_LAYER, device)
        if layer[0].shape[1] != size:
            raise ValueError(f"features must be of one size per example, found {layer[0].shape[1]}, then {size}")
        return self._scales.stack(names, device), layer, self._rows.stack(names, device)

    def _learn(self, names: Sequence[str], gradients: Tensor, *learned: Tensor) -> None:
        count = len(names)
        with torch.enable_grad():
            scales, *layer, rows = (part.clone().requires_grad_() for part in learned)
            logits, seen = _logits(scales, gradients, layer, rows)
            truth = torch.arange(count, device=logits.device)[:, None].expand(seen.shape)
            each = F.cross_entropy(logits.reshape(-1, count), truth.reshape(-1), reduction="none")
            loss = (each * seen.reshape(-1)).sum() / seen.sum().clamp(min=1)
        up, *down, down_rows = torch.autograd.grad(loss, (scales, *layer, rows))
        self._layer.step(_LAYER, down)
        self._rows.step(names, down_rows.unbind())
        if self.alignment_lr:
            self._scales.step(names, (-up).unbind())
            moved = self._scales.stack(names, scales.device).clamp(min=0)
            self._scales.put(names, (moved / moved.mean(1, keepdim=True).clamp(min=1e-6)).unbind())

    def get_extra_state(self) -> dict[str, Any]:
        parts = {"layer": self._layer.state(), "rows": self._rows.state(), "scales": self._scales.state()}
        return {"names": sorted(self._objectives), **parts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        same_objectives(state["names"], self._objectives)
        self._objectives = set(state["names"])
        self._fresh()
        for key, part in (("layer", self._layer), ("rows", self._rows), ("scales", self._scales)):
            part.load(state[key])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "lr": self.lr, "alignment_lr": self.alignment_lr, "hidden": self.hidden, "seed": self.seed
        }  # fmt: skip


def _logits(scales: Tensor, gradients: Tensor, layer: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """(K, B, K) the discriminator's logits, and (K, B) 1 where there is a gradient to guess, 0 where not."""
    largest = gradients.abs().amax(2, keepdim=True)  # (K, B, 1)
    # only directions are seen; the squares of a confident example's gradient would vanish in float32
    aligned = scales[:, None] * (gradients / torch.where(largest > 0, largest, 1.0))
    seen = (torch.linalg.vector_norm(aligned.detach(), dim=2, keepdim=True) > _SHORTEST).to(aligned)
    safe = aligned + (1 - seen)  # the length's gradient is NaN at 0
    inputs = aligned * (math.sqrt(aligned.shape[2]) / torch.linalg.vector_norm(safe, dim=2, keepdim=True))
    hidden = F.leaky_relu(F.linear(inputs, *layer), 0.2)
    return F.linear(hidden, rows[:, :-1], rows[:, -1]), seen.squeeze(2)
