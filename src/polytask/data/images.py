"""What is done to images, a batch at a time and on the device they are on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
"""Of the pixels of CIFAR-10's 50,000 training images, in [0, 1], for red, green and blue."""

MNIST_MEAN = 0.1307
MNIST_STD = 0.3081
"""Of the pixels of MNIST's 60,000 training images, in [0, 1]."""

UNIT_GREY = {"channels": ["grey"], "divided_by": 255}
NORMALISED_GREY = UNIT_GREY | {"mean": [MNIST_MEAN], "std": [MNIST_STD]}
CIFAR_COLOURS = {
    "channels": ["red", "green", "blue"], "divided_by": 255, "mean": list(CIFAR_MEAN), "std": list(CIFAR_STD),
}  # fmt: skip
"""`DataSet.preprocessing` of grey images in [0, 1], of normalised ones, and of normalised colour images."""


@final
class Normalise(nn.Module):
    """(x - mean) / std, channel by channel, for images (B, C, H, W): a layer without parameters.

    As the first layer of a trunk it makes normalisation part of the network, on its device and in its exported file.

    Args:
        mean: one number per channel.
        std: one number per channel, above 0.

    Raises:
        ValueError: lengths differ or are 0, or a standard deviation is not above 0.

    >>> Normalise([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = CIFAR_MEAN, std: Sequence[float] = CIFAR_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"`mean` and `std` must have one number per channel, found {len(mean)} and {len(std)}")
        for value in std:
            if not value > 0:
                raise ValueError(f"`std` must be above 0, found {value}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


@final
@dataclass(frozen=True)
class Rotation:
    """Turns each image of a batch about its centre by an angle of its own, bilinearly: for `Arrays(augment=...)`.

    Args:
        degrees: angles are uniform in [-degrees, degrees], at least 0 and at most 180.
        fill: colour of the corners that come in, one number per channel or one for all; black is 0 for images in
            [0, 1] and -mean / std for normalised ones.

    Raises:
        ValueError: `degrees` is out of range, or (when called) `fill` does not fit the channels.

    >>> Rotation(20.0)(torch.ones(4, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 8, 8])
    """

    degrees: float = 20.0
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"`degrees` must be in 0..180, found {self.degrees}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, C, H, W), of a floating dtype, turned by angles drawn from `generator` on their device."""
        fill = images.new_tensor(self.fill).view(-1, 1, 1)
        if images.dim() != 4 or len(fill) not in (1, images.shape[1]):
            raise ValueError(
                f"images must have the shape (B, C, H, W) with C = {len(fill)} channels, as many as `fill` has, found "
                f"{tuple(images.shape)}"
            )
        draws = torch.rand(len(images), generator=generator, device=images.device, dtype=images.dtype)
        return rotate(images - fill, (2 * draws - 1) * math.radians(self.degrees)) + fill


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Images turned anticlockwise about their centres, zeros coming in at the corners.

    Args:
        images: (B, C, H, W).
        angles: (B,) in radians.

    >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([math.pi / 2])).round().flatten().tolist()
    [2.0, 4.0, 1.0, 3.0]
    """
    height, width = images.shape[-2:]
    cos, sin = angles.cos(), angles.sin()
    nothing = torch.zeros_like(cos)
    # rows of the inverse map in coordinates from -1 to 1, y downwards; the ratios keep pixels square
    rows = (cos, -sin * height / width, nothing, sin * width / height, cos, nothing)
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
