"""Which layers are in play: found by watching one forward pass, so that any model will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from polytask.batch import map_inputs, tensors_of
from polytask.errors import nearest, one_of
from polytask.models.base import Model
from polytask.sparsity.rows import GRANULARITIES, SUPPORTED, Layer, check_one_encoder, inputs_of, parts_of

INPUT = ""
"""Stands for the raw inputs among a layer's sources."""

_LOST = 0
"""The spread of a tensor in which the entries of a unit are not known to be neighbours."""

Select = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: the last layers before it, and how many neighbouring entries a unit takes in it."""

    sources: frozenset[str] = frozenset()
    spread: int = 1


@dataclass
class _Seen:
    """What the forward pass showed of one layer."""

    sources: set[str] = field(default_factory=set)
    spreads: set[int] = field(default_factory=set)


def layers_in_play(
    model: Model,
    inputs: Any,
    granularity: str = "unit",
    select: Sequence[str] | Select | None = None,
) -> list[Layer]:
    """The layers whose rows may be removed, in the order of the model's modules.

    By default every `Linear` and every ungrouped convolution except those that read the raw inputs, which are not ours
    to remove, and those that make a head's outputs. Grouped and depthwise convolutions are left out, as
    what feeds them cannot be removed freely; named in `select`, their rows are penalised and zeroed like any other's.

    Args:
        model: run once on `inputs` in eval mode, without gradients; nothing in it changes.
        inputs: what a batch holds, one example or a few.
        granularity: ``unit``: all rows fed by one upstream unit are one group (H·W rows of a linear layer after a
            `Flatten`), so that its death frees the unit. ``row``: every row is its own.
        select: names of layers, or prefixes of them (``trunk``), to have only these; or a function from name and
            module to True. It replaces the default filter: what it takes is in play.

    Raises:
        ValueError: nothing is in play, a name that fits no layer, a layer that the forward pass never reached, or a
            network with an encoder for each source.
        TypeError: a selected layer has no rows.

    >>> trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 8))
    >>> from polytask.models import HardSharing
    >>> model = HardSharing(trunk, heads={"digit": nn.Linear(8, 10)})
    >>> [(layer.name, layer.rows, layer.size) for layer in layers_in_play(model, torch.zeros(1, 1, 6, 6))]
    [('trunk.2', 4, 1), ('trunk.4', 24, 4)]
    """
    one_of("granularity", granularity, GRANULARITIES)
    check_one_encoder(model)
    seen, ends = _watch(model, inputs)
    named = dict(model.named_modules())
    wanted = _wanted(named, seen, ends, select)
    if not wanted:
        raise ValueError(
            "at least one layer must be in play (not the first, not a head's output), found none among "
            f"{[name for name, module in named.items() if isinstance(module, SUPPORTED)]}"
        )
    layers = []
    for name in wanted:
        if name not in seen:
            raise ValueError(f"a layer in play must take part in the model's forward pass, found `{name}` unused")
        spread = seen[name].spreads.pop() if len(seen[name].spreads) == 1 else 1
        size = spread if granularity == "unit" else 1
        layers.append(Layer(name, named[name], spread, size, frozenset(seen[name].sources)))
    return layers


def _wanted(
    named: Mapping[str, nn.Module],
    seen: Mapping[str, _Seen],
    ends: frozenset[str],
    select: Sequence[str] | Select | None,
) -> list[str]:
    candidates = [name for name, module in named.items() if isinstance(module, SUPPORTED)]
    if select is None:
        inner = [name for name in candidates if name in seen and name not in ends and INPUT not in seen[name].sources]
        return [name for name in inner if parts_of(named[name]) == 1]
    if callable(select):
        return [name for name in candidates if select(name, named[name])]
    names = [select] if isinstance(select, str) else list(select)
    for prefix in names:
        if not any(_below(name, prefix) for name in candidates):
            if prefix in named and not any(named[prefix].children()):
                Layer(prefix, named[prefix])  # says which kinds have rows
            raise ValueError(f"a layer in play must exist, found `{prefix}`: {nearest(prefix, candidates)}")
    return [name for name in candidates if any(_below(name, prefix) for prefix in names)]


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _watch(model: Model, inputs: Any) -> tuple[dict[str, _Seen], frozenset[str]]:
    """What each layer was fed, by name, and the layers that make predictions."""
    origins = _Origins()
    seen: dict[str, _Seen] = {}
    inputs = map_inputs(lambda tensor: tensor.detach().clone(), inputs)  # tensors that nobody else holds
    with torch.no_grad(), _eval(model), _hooks(model, origins, seen):
        for tensor in tensors_of(inputs):
            origins.put(tensor, _Origin(frozenset([INPUT])))
        with origins:
            outputs = model(inputs)
    ends = [origins.get([tensor]).sources for tensor in tensors_of(outputs)]
    return seen, frozenset().union(*ends)


class _Origins(TorchDispatchMode):
    """Follows every tensor from operation to operation."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        given = _flat([args, kwargs or {}])
        for result in _flat(results):
            self.put(result, _after(func, given, self._known, result))
        return results

    def put(self, tensor: Tensor, origin: _Origin) -> None:
        self._known[tensor] = origin

    def get(self, tensors: Sequence[Tensor]) -> _Origin:
        """The sources of all; the spread of the first."""
        known = [self._known[tensor] for tensor in tensors if tensor in self._known]
        sources = frozenset[str]().union(*(origin.sources for origin in known))
        return _Origin(sources, known[0].spread if known else 1)


def _after(func: Any, given: Sequence[Tensor], known: Any, result: Tensor) -> _Origin:
    """Where the result of an operation comes from."""
    tensors = [tensor for tensor in given if tensor in known]
    sources = frozenset[str]().union(*(known[tensor].sources for tensor in tensors))
    turned = any(word in str(func) for word in ("permute", "transpose"))
    if not tensors or (turned and result.dim() > 2):
        return _Origin(sources, _LOST)
    spreads = [_spread(known[tensor].spread, tensor, result) for tensor in tensors]
    if ".cat." in str(func):  # parts side by side: units stay whole only where each part has one entry per unit
        return _Origin(sources, 1 if {known[tensor].spread for tensor in tensors} == {1} else _LOST)
    return _Origin(sources, max(spreads))


def _spread(spread: int, tensor: Tensor, result: Tensor) -> int:
    """Neighbouring entries per unit along dimension 1 after an operation that permutes nothing."""
    if result.shape == tensor.shape or (tensor.dim() > 2 and result.shape[:2] == tensor.shape[:2]):
        return spread
    flat = tensor.dim() > 2 and tuple(result.shape) == (tensor.shape[0], tensor.shape[1:].numel())
    return tensor.shape[2:].numel() if flat and spread == 1 else _LOST


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _flat(part)]


@contextmanager
def _hooks(model: nn.Module, origins: _Origins, seen: dict[str, _Seen]) -> Iterator[None]:
    """Notes what each layer is fed, and signs its outputs; everything between two layers is followed by operations."""

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, args: Any) -> None:
            origin = origins.get(_flat(args))
            seen.setdefault(name, _Seen()).sources.update(origin.sources)
            if isinstance(module, SUPPORTED):  # the others have no rows to group
                spread = max(origin.spread, 1) if isinstance(module, nn.Linear) else 1
                seen[name].spreads.add(spread if inputs_of(module) % spread == 0 else 1)

        return note

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def sign(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in _flat(output):
                origins.put(tensor, _Origin(frozenset([name])))

        return sign

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, SUPPORTED) or _mixes(module):
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mixes(module: nn.Module) -> bool:
    """Whether a module is a layer of a kind that has no rows (a transposed convolution, a recurrent cell)."""
    return not any(module.children()) and any(p.dim() > 1 for p in module.parameters(recurse=False))


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
