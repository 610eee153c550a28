"""GrOWL: the group ordered weighted ℓ1 penalty as an objective, and its proximal step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.optim import Optimizer

from polytask.balancing.base import Scalarizer
from polytask.batch import map_inputs
from polytask.callback import UpdateInfo
from polytask.errors import one_of
from polytask.models.base import Model
from polytask.objective import Context, Objective
from polytask.sparsity import owl
from polytask.sparsity.layers import Select, layers_in_play
from polytask.sparsity.removal import Removal, example_inputs
from polytask.sparsity.rows import GRANULARITIES, Layer

if TYPE_CHECKING:
    from polytask.task import Task
    from polytask.training.run import Run


@final
class GrOWL(Objective):
    """Σ over layers in play of Σ_i θ_i ‖w_[i]‖₂, with the norms of groups of rows sorted in descending order.

    The largest group meets the largest weight, so the penalty both kills rows and pulls rows of like size
    together. Groups of `size` rows count √size, which makes ``unit`` and ``row`` comparable.

    Papers: Zhang, Wang, Figueiredo and Balzano 2018,
    `openreview.net/forum?id=rypT3fb0b <https://openreview.net/forum?id=rypT3fb0b>`_; as an objective among tasks:
    Hotegni, Berkemeier and Peitz 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    The penalty acts once. By itself it acts by its gradient (at a dead row: 0), which kills nothing exactly. Where a
    fit has the callback `Proximal` of this penalty, it acts by the proximal step alone: balancers still see its value
    and weigh it, and that weight is the step's strength, but no gradient flows. A raw value is of the order of 100:
    under `Chebyshev` normalise it by its first value.

    Args:
        name: unique among tasks and objectives.
        weight: fixed weight, above 0.
        pattern: ``spike``, ``linear`` or ``pld``; see `polytask.sparsity.owl.pattern`.
        beta1: β1 at least 0.
        beta2: β2 at least 0; not both 0.
        tau: τ from 0 to 1, for ``pld``.
        granularity: ``unit`` or ``row``; see `polytask.sparsity.layers_in_play`.
        select: which layers are in play, likewise.

    Raises:
        ValueError: a number out of range, an unknown pattern or granularity; at the first step: nothing in play.

    >>> import polytask as pt
    >>> model = pt.models.HardSharing(pt.models.MLP(2, [4, 4]), heads={"circle": torch.nn.Linear(4, 1)})
    >>> penalty = GrOWL(pattern="spike", beta1=0.0, beta2=1.0)
    >>> [layer.name for layer in penalty.layers(model, torch.zeros(1, 2))]
    ['trunk.2']
    """

    def __init__(
        self,
        name: str = "sparsity",
        weight: float = 1.0,
        pattern: str = "spike",
        beta1: float = 0.8,
        beta2: float = 0.2,
        tau: float = 0.5,
        granularity: str = "unit",
        select: Sequence[str] | Select | None = None,
    ) -> None:
        super().__init__(name, weight)
        one_of("pattern", pattern, owl.PATTERNS)
        owl.check_pattern(beta1, beta2, tau)
        one_of("granularity", granularity, GRANULARITIES)
        self.pattern = pattern
        self.beta1 = beta1
        self.beta2 = beta2
        self.tau = tau
        self.granularity = granularity
        self.proximal = False
        self._select = select
        self._found = _Found()

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        """Forgets the layers found before: the model may have changed."""
        self._found = _Found()

    def layers(self, model: Model, inputs: Any) -> list[Layer]:
        """The layers in play, looked for once for each model.

        Args:
            model: the network.
            inputs: what a batch holds, one example or more.
        """
        if self._found.model() is not model:
            first = map_inputs(lambda tensor: tensor[:1], inputs)
            found = layers_in_play(model, first, self.granularity, self._select)
            self._found = _Found(model, found, {layer.name: self.weights(layer) for layer in found})
        return self._found.layers

    def weights(self, layer: Layer) -> Tensor:
        """(groups,) √size · θ of one layer, float64."""
        return math.sqrt(layer.size) * owl.pattern(self.pattern, layer.groups, self.beta1, self.beta2, self.tau)

    def forward(self, context: Context) -> Tensor:
        layers = self.layers(context.model, context.batch.inputs)
        thetas = self._found.thetas
        terms = []
        for layer in layers:
            norms = layer.norms()
            theta = thetas[layer.name] = thetas[layer.name].to(norms)
            terms.append(owl.norm(norms, theta))
        value = torch.stack(terms).sum()
        return _ValueOnly.apply(value) if self.proximal else value  # pyright: ignore[reportReturnType] (apply is untyped)

    def describe(self) -> dict[str, Any]:
        names = ("pattern", "beta1", "beta2", "tau", "granularity")
        return super().describe() | {name: getattr(self, name) for name in names}


class _Found:
    """The layers found in a model; a copy of the penalty looks for its own."""

    def __init__(
        self, model: Model | None = None, layers: Sequence[Layer] = (), thetas: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model = (lambda: None) if model is None else weakref.ref(model)
        self.layers = list(layers)
        self.thetas = dict(thetas or {})

    def __deepcopy__(self, memo: Any) -> _Found:
        return _Found()

    def __reduce__(self) -> Any:
        return _Found, ()


class _ValueOnly(Function):
    """A value that takes part in the backward pass and passes nothing on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


@final
class Proximal(Removal):
    """The proximal step of a `GrOWL` penalty after the optimizer's, and rows that die for good.

    Each layer's group norms v go to prox(v, s · θ), s = learning rate × c, where c = (the penalty's weight in the
    balancer) × (its fixed weight) is its coefficient in this very update. With `preconditioned`, s is divided by what
    the optimizer divides gradients by (Adam and its kin: the root of its second moments' mean over the layer, plus ε;
    SGD: 1 − momentum), so that the step solves the problem that the coefficient states. Without it, Adam outweighs
    the penalty a thousandfold. For plain SGD both are the same.

    A group that would die beyond what quota and caps allow keeps its weights: the largest are kept.
    Without `sparsity` groups die as the prox has it, up to the caps; with it, the smallest die along the line described
    in `Magnitude`, after the prox has made them small.

    Args:
        penalty: one of the trainer's objectives; it acts by its gradient no longer.
        sparsity: the share of dead rows, over all layers in play, to be reached, between 0 and 1; None to leave it to
            the strength of the penalty.
        cap: the largest share of dead groups of a layer, in (0, 1]: one number, or {layer: cap}. One group always
            lives.
        until: the part of the fit by which `sparsity` and the caps are reached, in (0, 1].
        rises: steps in which quota and caps rise, at least 1.
        every: ``step``, or ``epoch`` to make one step of the epoch's summed strength after its last update.
        preconditioned: see above.

    Raises:
        ValueError: a number out of range; at the start of a fit: more than the caps allow (the message gives the
            ceiling), nothing in play, a cap for no layer, a penalty that is not among the objectives, a balancer that
            is no scalarizer and so gives no coefficient, or ``epoch`` with data of unknown length.

    >>> Proximal(GrOWL(), sparsity=0.5).every
    'step'
    """

    def __init__(
        self,
        penalty: GrOWL,
        sparsity: float | None = None,
        cap: float | Mapping[str, float] = 0.8,
        until: float = 0.75,
        rises: int = 20,
        every: str = "step",
        preconditioned: bool = True,
    ) -> None:
        super().__init__(sparsity, cap, until, rises)
        one_of("every", every, ("step", "epoch"))
        self.penalty = penalty
        self.every = every
        self.preconditioned = preconditioned
        self._due: list[float] = []
        self._claimed = False

    def find(self, run: Run) -> list[Layer]:
        name = self.penalty.name
        if run.trainer.objectives.get(name) is not self.penalty:
            raise ValueError(f"Proximal needs its penalty among the trainer's objectives, found no such `{name}`")
        if not isinstance(run.trainer.balancer, Scalarizer):
            kind = type(run.trainer.balancer).__name__
            raise ValueError(f"Proximal needs a scalarizer, whose weights are coefficients, found {kind}")
        if self.every == "epoch" and run.steps_per_epoch is None:
            raise ValueError("every='epoch' needs data of known length, found a source that cannot tell")
        if self.penalty.proximal:
            raise ValueError(f"a penalty must have one Proximal, found several for `{name}`")
        return self.penalty.layers(run.model, example_inputs(run))

    def on_fit_start(self, run: Run) -> None:
        super().on_fit_start(run)
        self.penalty.proximal = self._claimed = True
        self._due = [0.0] * len(self.layers)
        homes = {
            id(parameter): (optimizer, group)
            for optimizer in run.optimizers.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._homes = [homes.get(id(layer.weight)) for layer in self.layers]

    def on_close(self, run: Run) -> None:
        if self._claimed:
            self.penalty.proximal = self._claimed = False

    def shrink(self, run: Run, info: UpdateInfo) -> None:
        coefficient = float(info.weights.get(self.penalty.name, 0.0)) * self.penalty.weight
        now = self.every == "step" or run.step_in_epoch + 1 == run.steps_per_epoch
        for index, (layer, home) in enumerate(zip(self.layers, self._homes, strict=True)):
            if home is None or not layer.weight.requires_grad:
                continue
            self._due[index] += coefficient * self._rate(index, *home)
            if now and self._due[index] > 0:
                self._step(index, self._due[index])
                self._due[index] = 0.0

    def _rate(self, index: int, optimizer: Optimizer, group: dict[str, Any]) -> float:
        """How far the optimizer goes for a gradient of one."""
        rate = float(group["lr"])
        if not self.preconditioned:
            return rate
        return rate / _divisor(optimizer, group, self.layers[index].weight)

    @torch.no_grad()
    def _step(self, index: int, strength: float) -> None:
        layer, dead = self.layers[index], self._dead.masks[index]
        norms = layer.norms()
        shrunk = owl.prox(norms, strength * self.penalty.weights(layer))
        ends = (shrunk == 0) & ~dead
        if bool(ends.any()):
            ends = self._permitted(index, norms, ends)
            shrunk = torch.where((shrunk == 0) & ~ends, norms, shrunk)
            dead |= ends
        layer.scale_(torch.where(norms > 0, shrunk / norms.clamp(min=1e-30), 0.0))

    def _permitted(self, index: int, norms: Tensor, ends: Tensor) -> Tensor:
        """Of the groups that the prox ends, the smallest ones that quota and cap let die."""
        layer, dead = self.layers[index], self._dead.masks[index]
        room = self.caps()[index] - int(dead.sum())
        if self.sparsity is not None:
            room = min(room, (self.quota() - self._dead.doomed) // layer.size)
        chosen = norms.masked_fill(~ends, math.inf).argsort(stable=True)[: max(room, 0)]
        permitted = torch.zeros_like(ends)
        permitted[chosen] = True
        return permitted & ends

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"due": list(self._due)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._due = list(state["due"])


def _divisor(optimizer: Optimizer, group: Mapping[str, Any], weight: Tensor) -> float:
    """What an optimizer divides a gradient by before the learning rate, as one number for a layer."""
    state = optimizer.state.get(weight, {})
    if "exp_avg_sq" in state and "betas" in group:  # Adam and its kin
        moment = float(state["exp_avg_sq"].mean()) / (1 - group["betas"][1] ** float(state["step"]))
        return math.sqrt(moment) + group["eps"]
    if "square_avg" in state:  # RMSprop
        return math.sqrt(float(state["square_avg"].mean())) + group["eps"]
    return (1 - group.get("momentum", 0.0)) / (1 - group.get("dampening", 0.0))
