"""Small networks, and ways of killing parts of them, for the tests of compaction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import polytask as pt
from polytask.models import MTAN, HardSharing, LeNet, Monitored, Partitioned


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, and BatchNorm statistics and scales that are far from the identity."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.copy_(torch.randn(module.num_features, generator=random))
                module.running_var.copy_(torch.rand(module.num_features, generator=random) + 0.5)
                if module.affine:
                    module.weight.copy_(torch.rand(module.num_features, generator=random) + 0.5)
                    module.bias.copy_(torch.randn(module.num_features, generator=random))
    return model.eval()


def layers(model: nn.Module) -> dict[str, Any]:
    """All Linear and convolution layers by name."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def kill(model: nn.Module, share: float, seed: int = 0, spreads: dict[str, int] | None = None) -> None:
    """Zeroes a share of the rows of each layer but the first; of groups of `spreads` neighbouring rows where given."""
    random = torch.Generator().manual_seed(seed)
    for name, module in list(layers(model).items())[1:]:
        size = (spreads or {}).get(name, 1)
        groups = module.weight.shape[1] // size
        dead = torch.rand(groups, generator=random) < share
        module.weight[:, dead.repeat_interleave(size)] = 0


@torch.no_grad()
def kill_filters(model: nn.Module, share: float, seed: int = 0) -> None:
    """Zeroes a share of the filters of each layer; their biases stay, so they give constants."""
    random = torch.Generator().manual_seed(seed)
    for module in layers(model).values():
        module.weight[torch.rand(len(module.weight), generator=random) < share] = 0


def lenet() -> pt.models.Model:
    return HardSharing(LeNet(), {"left": nn.Linear(50, 10), "right": nn.Linear(50, 10)})


def normed() -> pt.models.Model:
    trunk = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(8 * 5 * 5, 12), nn.BatchNorm1d(12), nn.ReLU(),
    )  # fmt: skip
    deep = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 1))
    return HardSharing(trunk, {"a": nn.Linear(12, 10), "b": nn.Linear(12, 4), "c": deep})


def monitored(alpha: Any = (0.75, 0.25)) -> pt.models.Model:
    def monitor() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 50),
            nn.ReLU(),
        )  # fmt: skip

    tops: dict[str, nn.Module] = {"left": nn.Linear(50, 10), "right": nn.Linear(50, 10)}
    return Monitored(LeNet(), {task: monitor() for task in tops}, tops, alpha)


def attentive() -> pt.models.Model:
    stages = [
        nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Linear(128, 20), nn.ReLU()),
    ]

    def attention() -> list[nn.Module]:
        first = [nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 5), nn.MaxPool2d(2), nn.Sigmoid()]
        second = [nn.Linear(128, 30), nn.ReLU(), nn.Linear(30, 20), nn.Sigmoid()]
        return [nn.Sequential(*first, nn.Flatten()), nn.Sequential(*second)]

    return MTAN(stages, {task: attention() for task in "ab"}, {task: nn.Linear(20, 3) for task in "ab"})


class Block(nn.Module):
    """x + f(x), and beside it g(x), concatenated."""

    def __init__(self, width: int, beside: int, padded: bool) -> None:
        super().__init__()
        padding = 1 if padded else 0
        self.first = nn.Conv2d(width, width + 1, 3, padding=padding)
        self.norm = nn.BatchNorm2d(width + 1)
        self.second = nn.Conv2d(width + 1, width, 3, padding=padding)
        self.beside = nn.Conv2d(width, beside, 1)
        self.crop = 0 if padded else 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(self.norm(self.first(x)).relu())
        skipped = nn.functional.pad(x, [-self.crop] * 4) if self.crop else x
        return torch.cat([(inner + skipped).relu(), self.beside(skipped).sigmoid()], 1)


class Residual(nn.Module):
    def __init__(self, padded: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3)
        self.block = Block(5, 3, padded)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1 if padded else 0)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.tops = nn.ModuleDict(
            {"a": nn.Linear(72, 4), "b": nn.Sequential(nn.Linear(72, 6), nn.ELU(), nn.Linear(6, 2))}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.pool(self.depthwise(self.block(self.stem(x)))).flatten(1)
        return {task: top(z) for task, top in self.tops.items()}


def residual(padded: bool = True) -> pt.models.Model:
    return Partitioned(Residual(padded), shared=["stem", "block", "depthwise"], specific={"a": "tops.a", "b": "tops.b"})


SPREADS = {
    "lenet": {"trunk.7": 16},
    "normed": {"trunk.10": 25},
    "monitored": {"trunk.7": 16, "monitors.left.5": 144, "monitors.right.5": 144},
    "attentive": {"stages.2.0": 16, "attention.a.1.0": 16, "attention.b.1.0": 16},
    "residual": {"module.tops.a": 9, "module.tops.b.0": 9},
    "unpadded": {"module.tops.a": 9, "module.tops.b.0": 9},
}
"""{architecture: {layer after a Flatten: rows that one unit feeds}}."""

BUILDERS = {
    "lenet": lenet, "normed": normed, "monitored": monitored, "attentive": attentive, "residual": residual,
    "unpadded": lambda: residual(False),
}  # fmt: skip
SIDES = {"lenet": 28, "normed": 28, "monitored": 28, "attentive": 28, "residual": 9, "unpadded": 13}


def images(name: str, count: int = 4, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    side = SIDES[name]
    return torch.randn(count, 1, side, side, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    assert one.keys() == other.keys()
    return max(((one[task] - other[task]).abs().max() / other[task].abs().max()).item() for task in other)
