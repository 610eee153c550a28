"""Initial weights that depend on the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.source import derived_seed
from polytask.errors import whole

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
    layers share, the first to run decides. No random state but `seed` is used.

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
    check_lsuv(std, tolerance, tries)
    run = forward or (lambda module, inputs: module(inputs))
    with _as_in_training(module):
        layers = _running(module, lambda: run(module, inputs))
        for index, layer in enumerate(layers.values()):
            _orthonormal(layer, torch.Generator().manual_seed(derived_seed(seed, index)))
        return {
            name: _scale(layer, name, lambda: run(module, inputs), std, tolerance, tries)
            for name, layer in layers.items()
        }


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


def _running(module: nn.Module, run: Callable[[], Any]) -> dict[str, nn.Module]:
    """The layers to initialise, in the order in which they run, by name."""
    names: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    order: dict[int, nn.Module] = {}  # by weight, since two layers may share one

    def note(layer: nn.Module, _: Any) -> None:
        weight = layer.weight
        if _is_to_be_drawn(weight):
            order.setdefault(id(weight), layer)

    handles = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise ValueError("there must be a linear or convolutional layer to initialise, found none that runs")
    return {names[layer]: layer for layer in order.values()}


def _orthonormal(layer: Any, random: torch.Generator) -> None:
    drawn = torch.empty(layer.weight.shape)  # on the host, so that every device starts from the same numbers
    nn.init.orthogonal_(drawn, generator=random)
    layer.weight.copy_(drawn)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _scale(layer: Any, name: str, run: Callable[[], Any], std: float, tolerance: float, tries: int) -> float:
    """Divides the weights until the outputs' standard deviation, which is returned, is near enough."""
    found = _spread(layer, name, run)
    for _ in range(tries):
        if abs(found - std) <= tolerance:
            break
        layer.weight.mul_(std / found)
        found = _spread(layer, name, run)
    return found


class _Seen(Exception):
    """The layer of interest has run; what comes after it need not."""


def _spread(layer: nn.Module, name: str, run: Callable[[], Any]) -> float:
    """Standard deviation of the layer's first outputs."""
    outputs: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Tensor) -> None:
        outputs.append(output)
        raise _Seen

    handle = layer.register_forward_hook(look)
    try:
        run()
    except _Seen:
        pass
    finally:
        handle.remove()
    found = float(outputs[0].double().std())
    if not found > 0 or not math.isfinite(found):
        raise ValueError(
            f"a layer's outputs must vary and be finite on the given inputs, found a standard deviation of {found} in "
            f"`{name}`"
        )
    return found


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
