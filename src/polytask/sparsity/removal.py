"""Rows that die during training and stay dead: a rising quota under rising caps, smallest groups first."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from polytask.batch import map_inputs
from polytask.callback import Callback, UpdateInfo
from polytask.errors import nearest, whole
from polytask.sparsity.layers import Select, layers_in_play
from polytask.sparsity.rows import Layer

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


class Dead:
    """Which groups of which layers are dead, and what keeps them so.

    A group that is to die while its layer is frozen does so when the layer next moves.

    Args:
        layers: the layers in play.
        dead: (groups,) per layer; those that are zero now if None, except in a layer that is zero altogether.
    """

    def __init__(self, layers: Sequence[Layer], dead: Sequence[Tensor] | None = None) -> None:
        for layer in layers:
            if parametrize.is_parametrized(layer.module, "weight"):
                raise ValueError(
                    f"rows can only be zeroed in a layer that holds its own weights, found `{layer.name}` parametrised"
                )
        self.layers = list(layers)
        self.masks = [_dead_now(layer) for layer in layers] if dead is None else [mask.clone() for mask in dead]

    @property
    def rows(self) -> int:
        """Rows of all layers."""
        return sum(layer.rows for layer in self.layers)

    @property
    def doomed(self) -> int:
        """Rows that are dead, or die as soon as their layer moves."""
        return sum(int(mask.sum()) * layer.size for layer, mask in zip(self.layers, self.masks, strict=True))

    def measured(self) -> float:
        """The share of rows that are zero in the weights as they are."""
        return sum(int((~layer.alive()).sum()) * layer.size for layer in self.layers) / self.rows

    def keep(self) -> None:
        """Zeroes the dead groups of every layer that is not frozen."""
        for layer, mask in zip(self.layers, self.masks, strict=True):
            if layer.weight.requires_grad and bool(mask.any()):
                layer.scale_(~mask)

    def kill(self, quota: int, caps: Sequence[int]) -> None:
        """Dooms the smallest groups until `quota` rows are dead or every layer is at its cap.

        Layers are compared by each group's norm over the root mean square of all groups of its layer, the dead
        included: the more of a layer has died, the larger the rest counts.

        Args:
            quota: rows that shall be dead, over all layers.
            caps: the largest number of dead groups of each layer.
        """
        missing = quota - self.doomed
        room = [cap - int(mask.sum()) for cap, mask in zip(caps, self.masks, strict=True)]
        if missing <= 0:
            return
        scores = [_relative(layer, mask) for layer, mask in zip(self.layers, self.masks, strict=True)]
        owners = [index for index, score in enumerate(scores) for _ in range(len(score))]
        places = [place for score in scores for place in range(len(score))]
        for choice in torch.cat([score.cpu() for score in scores]).argsort(stable=True).tolist():
            owner, place = owners[choice], places[choice]
            if missing <= 0:
                return
            if room[owner] > 0 and not self.masks[owner][place]:
                self.masks[owner][place] = True
                room[owner] -= 1
                missing -= self.layers[owner].size


def _dead_now(layer: Layer) -> Tensor:
    alive = layer.alive()
    return ~alive if bool(alive.any()) else torch.zeros_like(alive)


@torch.no_grad()
def _relative(layer: Layer, dead: Tensor) -> Tensor:
    """(groups,) norms over their root mean square, infinite for the dead."""
    norms = layer.norms().masked_fill(dead, 0)
    return (norms / norms.square().mean().sqrt().clamp(min=1e-30)).masked_fill(dead, math.inf)


def example_inputs(run: Run) -> Any:
    """One example of the training data; the source is left as it was."""
    state = run.train.state_dict()
    with closing(run.train.in_order(1)) as batches:  # pyright: ignore[reportArgumentType] (a generator)
        inputs = next(iter(batches)).inputs
    run.train.load_state_dict(state)
    return map_inputs(lambda tensor: tensor[:1], inputs)


class Removal(Callback, ABC):
    """What `Magnitude` and `Proximal` share: the dead, the quota and the caps.

    With `sparsity` set, the share of dead rows follows a straight line from 0 to `sparsity`, raised in `rises` steps
    over the first part `until` of the fit, and whatever the optimizer and the penalty do, the smallest groups die
    until the share is reached. The caps rise along with it. Epochs after `until` all have the wanted sparsity, so
    that one of them can be chosen on validation data.
    """

    def __init__(
        self,
        sparsity: float | None,
        cap: float | Mapping[str, float],
        until: float,
        rises: int,
    ) -> None:
        for name, value in (cap if isinstance(cap, Mapping) else {"": cap}).items():
            if not 0 < value <= 1:
                where = f" for `{name}`" * bool(name)
                raise ValueError(f"`cap` must be above 0 and at most 1, found {value}{where}")
        if sparsity is not None and not 0 < sparsity < 1:
            raise ValueError(f"`sparsity` must be between 0 and 1, found {sparsity}")
        if not 0 < until <= 1:
            raise ValueError(f"`until` must be above 0 and at most 1, found {until}")
        whole("rises", rises, 1)
        self.sparsity = sparsity
        self.cap = cap
        self.until = until
        self.rises = rises
        self._trace: list[float] = []

    @property
    def layers(self) -> list[Layer]:
        """The layers in play of the last fit."""
        return self._dead.layers

    @property
    def trace(self) -> list[float]:
        """The share of dead rows in the weights after each epoch of the last fit."""
        return list(self._trace)

    @abstractmethod
    def find(self, run: Run) -> list[Layer]:
        """The layers in play."""

    def shrink(self, run: Run, info: UpdateInfo) -> None:
        """What a method does to living groups after an update."""

    def on_fit_start(self, run: Run) -> None:
        layers = self.find(run)
        self._dead = Dead(layers)
        self._most = _most(layers, self.cap)
        self._stage = 0
        self._trace = []
        ceiling = self.check(layers)
        logger.info("in play: %d rows; at most %.4g of them may die", self._dead.rows, ceiling)

    def check(self, layers: Sequence[Layer]) -> float:
        """The largest share of the rows of these layers that the caps let die.

        Raises:
            ValueError: more is asked for than the caps allow (the message gives the ceiling), or a cap for no layer.
        """
        rows, limits = sum(layer.rows for layer in layers), _most(layers, self.cap)
        ceiling = sum(most * layer.size for most, layer in zip(limits, layers, strict=True)) / rows
        listed = ", ".join(f"{layer.name} {most} of {layer.groups}" for layer, most in zip(layers, limits, strict=True))
        if self.sparsity is not None and self.sparsity > ceiling + 1e-9:
            raise ValueError(
                f"`sparsity` must be at most {ceiling:.4g}, what the caps allow (groups that may die: {listed}), "
                f"found {self.sparsity}"
            )
        return ceiling

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        before, self._stage = self._stage, max(self._stage, self._stage_now(run))
        self.shrink(run, info)
        if self._stage > before and self.sparsity is not None:
            self._dead.kill(self.quota(), self.caps())
        self._dead.keep()

    def _stage_now(self, run: Run) -> int:
        steps = run.steps_per_epoch
        done = run.epoch + (1 if steps is None else (run.step_in_epoch + 1) / steps)
        return min(self.rises, math.floor(self.rises * done / (self.until * run.epochs) + 1e-9))

    def quota(self) -> int:
        """Rows that shall be dead by now."""
        share = 1.0 if self.sparsity is None else self.sparsity
        return math.ceil(share * self._dead.rows * self._stage / self.rises - 1e-9)

    def caps(self) -> list[int]:
        """Groups of each layer that may be dead by now."""
        return [most * self._stage // self.rises for most in self._most]

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        self._trace.append(self._dead.measured())

    def on_fit_end(self, run: Run) -> None:
        found = self._dead.measured()
        if self.sparsity is not None and found < self.sparsity - 1e-9:
            logger.warning("%.4g of the rows were to be dead by the end, found %.4g", self.sparsity, found)

    def describe(self) -> dict[str, Any]:
        cap = dict(self.cap) if isinstance(self.cap, Mapping) else self.cap
        return super().describe() | {"cap": cap, "sparsity": self.sparsity}

    def state_dict(self) -> dict[str, Any]:
        masks = {layer.name: mask.clone() for layer, mask in zip(self.layers, self._dead.masks, strict=True)}
        return {"dead": masks, "stage": self._stage, "trace": list(self._trace)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        layers = self.layers
        self._dead = Dead(layers, [state["dead"][layer.name].to(layer.weight.device) for layer in layers])
        self._stage, self._trace = state["stage"], list(state["trace"])


def _most(layers: Sequence[Layer], cap: float | Mapping[str, float]) -> list[int]:
    """Groups of each layer that may ever die; one always lives, or nothing would pass the layer."""
    if isinstance(cap, Mapping):
        names = [layer.name for layer in layers]
        for name in cap:
            if name not in names:
                raise ValueError(f"`cap` names a layer that is not in play, `{name}`: {nearest(name, names)}")
        for name in names:
            if name not in cap:
                raise ValueError(f"`cap` must name every layer in play, found none for `{name}`")
    shares = [cap[layer.name] if isinstance(cap, Mapping) else cap for layer in layers]
    return [
        min(math.floor(share * layer.groups + 1e-9), layer.groups - 1)
        for share, layer in zip(shares, layers, strict=True)
    ]


@final
class Magnitude(Removal):
    """Removes the smallest groups of rows under a rising cap, with no penalty at all: the baseline.

    Zhu and Gupta 2017, `arXiv:1710.01878 <https://arxiv.org/abs/1710.01878>`_, prune weights so, along a cubic; here
    whole groups die, along a line, and for good.

    Args:
        sparsity: the share of dead rows, over all layers in play, to be reached; between 0 and 1.
        cap: the largest share of dead groups of a layer, in (0, 1]: one number, or {layer: cap}. One group always
            lives.
        until: the part of the fit by which `sparsity` is reached, in (0, 1].
        rises: steps in which quota and caps rise, at least 1.
        granularity: ``unit`` or ``row``; see `polytask.sparsity.layers_in_play`.
        select: which layers are in play, likewise.

    Raises:
        ValueError: a number out of range; at the start of a fit: more than the caps allow (the message gives the
            ceiling), nothing in play, a cap for no layer, or a layer with parametrised weights.

    >>> Magnitude(sparsity=0.5).cap
    0.8
    """

    def __init__(
        self,
        sparsity: float,
        cap: float | Mapping[str, float] = 0.8,
        until: float = 0.75,
        rises: int = 20,
        granularity: str = "unit",
        select: Sequence[str] | Select | None = None,
    ) -> None:
        super().__init__(sparsity, cap, until, rises)
        self.granularity = granularity
        self._select = select

    def find(self, run: Run) -> list[Layer]:
        return layers_in_play(run.model, example_inputs(run), self.granularity, self._select)


@final
class KeepDead(Callback):
    """Rows that are zero when a fit starts stay zero: for training a sparse network on, whatever the optimizer.

    Args:
        select: which layers are looked at, as in `polytask.sparsity.layers_in_play`.

    Raises:
        ValueError: nothing is in play, or a layer with parametrised weights (at the start of a fit).

    >>> KeepDead().describe()
    {'callback': 'KeepDead'}
    """

    def __init__(self, select: Sequence[str] | Select | None = None) -> None:
        self._select = select

    def on_fit_start(self, run: Run) -> None:
        self._dead = Dead(layers_in_play(run.model, example_inputs(run), "row", self._select))

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        self._dead.keep()

    def state_dict(self) -> dict[str, Any]:
        return {layer.name: mask.clone() for layer, mask in zip(self._dead.layers, self._dead.masks, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        layers = self._dead.layers
        self._dead = Dead(layers, [state[layer.name].to(layer.weight.device) for layer in layers])
