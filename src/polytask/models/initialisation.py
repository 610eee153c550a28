"""Initial weights that depend on the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.source import derived_seed
from polytask.errors import whole
from polytask.models.base import Model

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DROPOUT = (nn.modules.dropout._DropoutNd,)


@torch.no_grad()
def lsuv(
    module: nn.Module,
    inputs: Any,
    *,
    std: float = 1.0,
    tolerance: float = 0.1,
    tries: int = 10,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, float]:
    """Layer-sequential unit-variance initialisation: every layer's outputs get the standard deviation `std`.

    Paper: Mishkin and Matas, *All you need is a good init*, `arXiv:1511.06422 <https://arxiv.org/abs/1511.06422>`_.

    Linear and convolutional layers get orthonormal weights and zero biases; then, in the order in which they run,
    each layer's weights are divided by (std of its outputs on `inputs`) / `std` until |std of outputs - `std`| is at
    most `tolerance`, or `tries` divisions were made. A layer without bias in this state is linear in its weights, so
    one division nearly always does. BatchNorm works on the batch, as it will in training, and dropout rests; neither
    modes nor running statistics are changed. Weights that the user froze, weights that are all zero (a start chosen on
    purpose, as of `SharedDecision`'s readouts), and layers that do not run, are left alone; of a weight that several
    layers share, the first to run decides. Layers of towers that start equal, as copies of one trunk do in
    `SoftSharing`, `CrossStitch`, `SingleTask` and `Grouped`, stay equal: they get one draw and one factor, measured on
    the outputs of all of them that run. No random state but `seed` is used.

    Args:
        module: any module, a polytask model included.
        inputs: a batch, on the module's device; a few hundred examples are enough.
        std: wanted standard deviation, above 0.
        tolerance: how far from it is near enough, above 0.
        tries: divisions per layer, at least 1.
        seed: of the orthonormal weights.
        forward: how to run it, (module, inputs) -> anything; ``module(inputs)`` if None.

    Returns:
        {layer's name: standard deviation reached}, in the order of running; those off by more than `tolerance` did
        not converge.

    Raises:
        ValueError: a number is out of range, no layer runs, or a layer's outputs are constant or not finite, so
            that no factor helps.

    >>> from polytask.models import MLP
    >>> reached = lsuv(MLP(2, [64, 64], outputs=3), torch.rand(100, 2, generator=torch.Generator().manual_seed(0)))
    >>> list(reached), all(abs(value - 1) <= 0.1 for value in reached.values())
    (['0', '2', '4'], True)
    """
    run = forward or (lambda module, inputs: module(inputs))
    return lsuv_over(module, [lambda: run(module, inputs)], std=std, tolerance=tolerance, tries=tries, seed=seed)


@torch.no_grad()
def lsuv_over(
    module: nn.Module, runs: Sequence[Callable[[], Any]], *, std: float, tolerance: float, tries: int, seed: int
) -> dict[str, float]:
    """`lsuv` over several calls of the module, such as one for each source.

    The outputs of a layer are those of all calls together, and a layer comes after all that run before it in any.

    Raises:
        ValueError: as `lsuv`, or two layers run in one order in one call and in the other in another.
    """
    check_lsuv(std, tolerance, tries)
    with _as_in_training(module):
        groups = _running(module, runs)
        for index, group in enumerate(groups):
            _orthonormal(group, torch.Generator().manual_seed(derived_seed(seed, index)))
        reached: dict[str, float] = {}
        for group in groups:
            reached |= dict.fromkeys(group.names, _scale(group, runs, std, tolerance, tries))
        return reached


def check_lsuv(std: float, tolerance: float, tries: int) -> None:
    """Raises `ValueError` if a setting of `lsuv` is out of range."""
    for name, value in (("std", std), ("tolerance", tolerance)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be a finite number above 0, found {value}")
    whole("tries", tries, 1)


def not_reached(module: nn.Module, reached: Mapping[str, float]) -> list[str]:
    """Names of the layers that `lsuv`, which returned `reached`, would have initialised had they run."""
    named = dict(module.named_modules())
    done = {id(named[name].weight) for name in reached}
    layers = {name: layer for name, layer in named.items() if isinstance(layer, LAYERS)}
    return [name for name, layer in layers.items() if id(layer.weight) not in done and _is_to_be_drawn(layer.weight)]


def _is_to_be_drawn(weight: Any) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad and bool(weight.detach().any())


@dataclass
class _Group:
    """Layers that get the same weights: one alone, or those beside one another that start equal.

    Attributes:
        layers: each with weights of its own, in the order of running, then those that do not run; and their names.
        ran: for each call, those that run in it.
    """

    layers: list[Any]
    names: list[str]
    ran: list[set[nn.Module]]


def _running(module: nn.Module, runs: Sequence[Callable[[], Any]]) -> list[_Group]:
    """The layers to initialise, in the order in which they run."""
    names: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    leaders = _leaders(module)
    first: dict[int, nn.Module] = {}  # by weight, since two layers may share one
    calls: list[dict[nn.Module, None]] = []

    def note(layer: nn.Module, _: Any) -> None:
        if _is_to_be_drawn(layer.weight):
            calls[-1][first.setdefault(id(layer.weight), layer)] = None

    handles = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        for run in runs:
            calls.append({})
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not first:
        raise ValueError("there must be a linear or convolutional layer to initialise, found none that runs")
    members: dict[nn.Module, dict[nn.Module, None]] = {}
    for layer in (*first.values(), *(layer for layer in leaders if id(layer.weight) not in first)):
        members.setdefault(leaders.get(layer, layer), {})[layer] = None
    order = _ordered([[leaders.get(layer, layer) for layer in call] for call in calls], names)
    groups = [[*members[one]] for one in order]
    return [
        _Group(layers, [names[layer] for layer in layers], [call.keys() & layers for call in calls])
        for layers in groups
    ]


def _leaders(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """{layer that starts equal to another beside it: the first such one}, of `Model.side_by_side`."""
    leaders: dict[nn.Module, nn.Module] = {}
    for model in module.modules():
        firsts: dict[str, list[nn.Module]] = {}
        for part in model.side_by_side() if isinstance(model, Model) else ():
            for name, layer in part.named_modules():
                if isinstance(layer, LAYERS) and _is_to_be_drawn(layer.weight):
                    known = firsts.setdefault(name, [])
                    leaders[layer] = next((one for one in known if _equal(one, layer)), layer)
                    known.append(layer)
    return leaders


def _equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return type(one) is type(other) and all(
        key in theirs and value.shape == theirs[key].shape and torch.equal(value, theirs[key])
        for key, value in ours.items()
    )


def _ordered(calls: Sequence[Sequence[nn.Module]], names: Mapping[nn.Module, str]) -> list[nn.Module]:
    """All layers of all calls, each after those that any call has before it."""
    sorter: TopologicalSorter[nn.Module] = TopologicalSorter()
    for call in calls:
        each = [*dict.fromkeys(call)]
        for before, layer in zip([None, *each], each, strict=False):
            sorter.add(layer, *([] if before is None else [before]))
    try:
        return [*sorter.static_order()]
    except CycleError as error:
        found = ", ".join(f"`{names[layer]}`" for layer in error.args[1][1:])
        raise ValueError(f"layers must run in one order whatever the batch, found several of {found}") from error


def _orthonormal(group: _Group, random: torch.Generator) -> None:
    drawn = torch.empty(group.layers[0].weight.shape)  # on the host: every device starts from the same numbers
    nn.init.orthogonal_(drawn, generator=random)
    for layer in group.layers:
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _scale(group: _Group, runs: Sequence[Callable[[], Any]], std: float, tolerance: float, tries: int) -> float:
    """Divides the weights until the outputs' standard deviation, which is returned, is near enough."""
    found = _spread(group, runs)
    for _ in range(tries):
        if abs(found - std) <= tolerance:
            break
        for layer in group.layers:
            layer.weight.mul_(std / found)
        found = _spread(group, runs)
    return found


class _Seen(Exception):
    """All layers of interest have run; what comes after them need not."""


def _spread(group: _Group, runs: Sequence[Callable[[], Any]]) -> float:
    """Standard deviation of the layers' first outputs in every call."""
    outputs = [output for run, ran in zip(runs, group.ran, strict=True) if ran for output in _outputs(ran, run)]
    together = outputs[0] if len(outputs) == 1 else torch.cat([each.flatten() for each in outputs])
    found = float(together.double().std(correction=len(outputs)))  # so that equal outputs deviate as each alone
    if not found > 0 or not math.isfinite(found):
        raise ValueError(
            f"a layer's outputs must vary and be finite on the given inputs, found a standard deviation of {found} in "
            f"`{group.names[0]}`"
        )
    return found


def _outputs(layers: Set[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """The first outputs of each layer in one call, which ends with the last of them."""
    outputs: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, _: Any, output: Tensor) -> None:
        outputs.setdefault(layer, output)
        if len(outputs) == len(layers):
            raise _Seen

    handles = [layer.register_forward_hook(look) for layer in layers]
    try:
        run()
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [*outputs.values()]


@contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Batch statistics in use, dropout at rest; modes and buffers as they were afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train()
    for part, _ in modes:
        if isinstance(part, _DROPOUT):
            part.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)
