"""Layers of a compact network: they pick, or sum, what they read of their input before a smaller layer."""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InputPick(nn.Module):
    """What a compact layer reads of its input: picked units, or sums of groups of them.

    Args:
        width: units of the input (dimension 1).
        picked: (k,) which of them are read.
        groups: (k,) 0..g-1, the group in which each picked one is summed; None to read each by itself.

    >>> pick = InputPick(4, torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0]))
    >>> pick(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    tensor([[1001.,  100.]])
    """

    picked: Tensor
    groups: Tensor | None

    def __init__(self, width: int, picked: Tensor, groups: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.outputs = len(picked) if groups is None else int(groups.max()) + 1
        self.register_buffer("picked", picked)
        self.register_buffer("groups", groups)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(self.picked) < self.width:
            inputs = inputs.index_select(1, self.picked)
        if self.groups is None:
            return inputs
        sums = inputs.new_zeros((inputs.shape[0], self.outputs, *inputs.shape[2:]))
        return sums.index_add(1, self.groups, inputs)

    def extra_repr(self) -> str:
        return f"{self.width} -> {len(self.picked)}" + (f" -> {self.outputs} sums" if self.groups is not None else "")


@final
class CompactLinear(nn.Linear):
    """A linear layer (B, F) to (B, O) that reads only some of its inputs, or their sums.

    Its parameters are named as those of the layer it stands for, and `in_features` says how many inputs arrive, F, for
    modules that compare it with what they are given; the weight has as many columns as are left of them.

    Args:
        in_features: columns of the weight: inputs after the pick.
        out_features: outputs O.
        bias: whether there is one.
        pick: what is read.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, pick: InputPick | None) -> None:
        super().__init__(in_features, out_features, bias)
        self.pick = pick
        if pick is not None:
            self.in_features = pick.width

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input if self.pick is None else self.pick(input), self.weight, self.bias)


class _Convolution(Protocol):
    pick: InputPick | None
    bias_map: Tensor | None


def _read(layer: _Convolution, inputs: Tensor) -> Tensor:
    return inputs if layer.pick is None else layer.pick(inputs)


def _add_map(layer: _Convolution, outputs: Tensor) -> Tensor:
    if layer.bias_map is None:
        return outputs
    if outputs.shape[1:] != layer.bias_map.shape:
        raise ValueError(
            "a compact convolution with a bias per position must keep its output size "
            f"{tuple(layer.bias_map.shape)}, found {tuple(outputs.shape[1:])}: compact for that input size"
        )
    return outputs + layer.bias_map


class _Compact(nn.Module):
    """What a smaller convolution adds to torch's own, which stands after it among the bases.

    `in_channels` says how many channels arrive, as `CompactLinear.in_features` does.
    """

    in_channels: int
    bias_map: Tensor | None

    def __init__(self, *args: Any, pick: InputPick | None, bias_map: Tensor | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pick = pick
        if pick is not None:
            self.in_channels = pick.width
        self.register_buffer("bias_map", bias_map)

    def forward(self, input: Tensor) -> Tensor:
        return _add_map(self, super().forward(_read(self, input)))


@final
class CompactConv1d(_Compact, nn.Conv1d):
    """`torch.nn.Conv1d` after a pick of its inputs, plus a bias per position (out, L') where one was folded."""


@final
class CompactConv2d(_Compact, nn.Conv2d):
    """`torch.nn.Conv2d` after a pick of its inputs, plus a bias per position (out, H', W') where one was folded."""


@final
class CompactConv3d(_Compact, nn.Conv3d):
    """`torch.nn.Conv3d` after a pick of its inputs, plus a bias per position (out, D', H', W') where one was folded."""


COMPACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: CompactConv1d,
    nn.Conv2d: CompactConv2d,
    nn.Conv3d: CompactConv3d,
}
"""The compact convolution for each of torch's."""


def blank_pick(width: int, picked: int, groups: int | None) -> InputPick:
    """A pick of the given size whose indices are still to be loaded."""
    filler = None if groups is None else torch.arange(picked).clamp(max=groups - 1)
    return InputPick(width, torch.arange(picked), filler)
