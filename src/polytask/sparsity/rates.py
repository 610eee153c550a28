"""How sparse a network is, and what that saves: rates over rows, and parameters, products, bytes and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.batch import map_inputs, tensors_of
from polytask.errors import whole
from polytask.sparsity.compact import baked, predict_sizes
from polytask.sparsity.follow import NORMS
from polytask.sparsity.rows import Layer, to_rows


@dataclass(frozen=True)
class Rates:
    """Counts of rows, one per input unit, whatever the granularity of the groups that died together.

    As in Hotegni, Berkemeier and Peitz, IJCNN 2024 (https://arxiv.org/abs/2308.12243).

    Attributes:
        rows: all.
        dead: those of zeros.
        distinct: different ones among the live.

    >>> rates = Rates(rows=10, dead=4, distinct=3)
    >>> rates.sparsity, rates.sharing, round(rates.compression, 2)
    (0.4, 2.0, 3.33)
    """

    rows: int
    dead: int
    distinct: int

    @property
    def sparsity(self) -> float:
        """Dead rows / rows, in [0, 1]."""
        return self.dead / self.rows

    @property
    def compression(self) -> float:
        """Rows / distinct rows, at least 1; infinite if every row is dead."""
        return self.rows / self.distinct if self.distinct else float("inf")

    @property
    def sharing(self) -> float:
        """Live rows / distinct rows, at least 1; 1 if every row is dead."""
        return (self.rows - self.dead) / self.distinct if self.distinct else 1.0

    def describe(self) -> dict[str, float]:
        """Counts and rates, for reports."""
        return asdict(self) | {
            "sparsity": self.sparsity, "compression": self.compression, "sharing": self.sharing,
        }  # fmt: skip


def rates_of(layers: Iterable[Layer]) -> dict[str, Rates]:
    """Rates of each layer in play; weights are compared to the bit.

    Args:
        layers: see `polytask.sparsity.layers.layers_in_play`.

    >>> layer = Layer("head", nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = layer.module.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
    >>> rates_of([layer])
    {'head': Rates(rows=3, dead=1, distinct=1)}
    """
    return {layer.name: _rates(to_rows(layer.module, layer.weight.detach())) for layer in layers}


def _rates(rows: Tensor) -> Rates:
    live = rows[(rows != 0).any(1)]
    return Rates(len(rows), len(rows) - len(live), len(torch.unique(live, dim=0)) if len(live) else 0)


def overall(rates: Mapping[str, Rates]) -> Rates:
    """Rates of all layers together: counts are added.

    Raises:
        ValueError: there is no layer.
    """
    if not rates:
        raise ValueError("rates need at least one layer in play, found none")
    every = rates.values()
    return Rates(sum(r.rows for r in every), sum(r.dead for r in every), sum(r.distinct for r in every))


@dataclass(frozen=True)
class Cost:
    """What a network costs to keep and to use.

    Attributes:
        parameters: numbers that training would move.
        macs: multiply-accumulates per example, of one forward pass.
        bytes: size of its safetensors file, buffers included.
        latency: median seconds of a forward pass over `batch_size` examples.
        batch_size: examples of that pass.
        threads: of that pass, on a CPU.
    """

    parameters: int
    macs: int
    bytes: int
    latency: float
    batch_size: int
    threads: int

    def describe(self) -> dict[str, float]:
        """As a dictionary, for reports."""
        return asdict(self)


def cost_of(model: nn.Module, example: Any, batch_size: int = 256, repeats: int = 20) -> Cost:
    """Measures a network, in eval mode and without gradients, where it is; nothing in it changes.

    Args:
        model: parametrised weights (shared ones) are made plain first: a pass costs what it would in use.
        example: inputs of at least one example; repeated to fill the batch.
        batch_size: examples of the timed pass, at least 1.
        repeats: timed passes, at least 1; five more, not timed, come before.

    Raises:
        ValueError: a number below its minimum.
    """
    whole("batch_size", batch_size, 1)
    whole("repeats", repeats, 1)
    work = baked(model).eval()
    inputs = map_inputs(lambda tensor: _filled(tensor, batch_size), example)
    with torch.no_grad():
        return Cost(
            _parameters(work), macs_of(work, inputs) // batch_size, _bytes(work),
            _latency(work, inputs, repeats), batch_size, torch.get_num_threads(),
        )  # fmt: skip


def macs_of(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one forward pass: matrix products and convolutions, of the whole batch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


def predicted(model: nn.Module, example: Any, **options: Any) -> tuple[int, int]:
    """Parameters and multiply-accumulates per example of the network that `compact` would make.

    They follow from the rows and filters that are live and distinct, without making the network.

    Args:
        model: with dead and shared rows.
        example: inputs of an example or a few.
        options: those of `polytask.sparsity.compact.compact`.
    """
    work = baked(model).eval()
    sizes = predict_sizes(work, example, **options)
    modules = dict(work.named_modules())
    followed = [modules[name] for name in sizes]
    inputs = map_inputs(lambda tensor: _filled(tensor, 2), example)
    other_parameters = _parameters(work) - sum(_parameters(module) for module in followed)
    other_macs = macs_of(work, inputs) // 2 - sum(_dense_macs(modules[n], s.positions) for n, s in sizes.items())
    return (
        other_parameters + sum(size.parameters for size in sizes.values()),
        other_macs + sum(size.macs for size in sizes.values()),
    )


def _dense_macs(module: Any, positions: int) -> int:
    return 0 if isinstance(module, NORMS) else module.weight.numel() * positions


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: nn.Module) -> int:
    from safetensors.torch import save

    return len(save({name: tensor.contiguous().cpu().clone() for name, tensor in model.state_dict().items()}))


def _filled(tensor: Tensor, size: int) -> Tensor:
    times = -(-size // len(tensor))
    return tensor.detach().repeat(times, *[1] * (tensor.dim() - 1))[:size]


def _latency(model: nn.Module, inputs: Any, repeats: int) -> float:
    device = tensors_of(inputs)[0].device
    seconds = []
    for _ in range(5 + repeats):
        _wait(device)
        start = time.perf_counter()
        model(inputs)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[5:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
