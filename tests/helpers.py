"""Small networks, data and witnesses that many tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import polytask as pt
from polytask.callback import UpdateInfo
from polytask.models import Block

NAN = float("nan")
TASKS = ("a", "b", "c")
FEATURED = ["monitored", "mtan", "cross-stitch", "mmoe", "cgc", "ple", "shared decision"]
"""Forms of `network` with a boundary that is more than a trunk's output, or heads that do more than heads."""


def tasks(names: str = "ab", **options: Any) -> list[pt.Task]:
    """Task a is binary, b has three classes, c is a regression."""
    kinds = {
        "a": lambda: pt.binary("a", **options),
        "b": lambda: pt.classification("b", 3, **options),
        "c": lambda: pt.regression("c", **options),
    }
    return [kinds[name]() for name in names]


def data(size: int = 24, names: str = "ab", missing: bool = False, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs (size, 3) and targets; with `missing`, about a third of each task's targets are."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=random)
    y = {
        "a": (x[:, 0] + x[:, 1] > 0).float(),
        "b": (x[:, 2] > 0).long() + (x[:, 0] > 0.5).long(),
        "c": x.sum(1) + 0.1 * torch.randn(size, generator=random),
    }
    if missing:
        for name, nothing in (("a", NAN), ("b", -100), ("c", NAN)):
            y[name] = y[name].masked_fill(torch.rand(size, generator=random) < 0.33, nothing)
    return x, {name: y[name] for name in names}


def _layers(kind: str, inputs: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    if "norm" in kind:
        layers.append(nn.BatchNorm1d(width))
    layers.append(nn.Tanh())
    if "dropout" in kind:
        layers.append(nn.Dropout(0.3))
    return layers


def trunk(kind: str = "plain", width: int = 6) -> nn.Sequential:
    return nn.Sequential(*_layers(kind, 3, width))


def heads(names: str = "ab", kind: str = "plain", width: int = 6) -> dict[str, nn.Module]:
    outputs = {"a": 1, "b": 3, "c": 1}
    return {name: nn.Sequential(*_layers(kind, width, 5), nn.Linear(5, outputs[name])) for name in names}


class Whole(nn.Module):
    """A foreign module that returns {task: outputs}."""

    def __init__(self, shared: nn.Module, own: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = shared
        self.tops = nn.ModuleDict(own)

    def forward(self, x: Any) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {name: head(z) for name, head in self.tops.items()}


def _experts(kind: str, inputs: int, count: int) -> list[nn.Module]:
    return [nn.Sequential(*_layers(kind, inputs, 6)) for _ in range(count)]


def _ple(kind: str, names: str, shared: nn.Module, own: dict[str, nn.Module]) -> pt.models.Model:
    common = [_experts(kind, 3, 1), _experts(kind, 6, 2)]
    return pt.models.PLE(common, {n: [_experts(kind, 3, 1), _experts(kind, 6, 1)] for n in names}, [3, 6], own)


def _cgc(kind: str, names: str, shared: nn.Module, own: dict[str, nn.Module]) -> pt.models.Model:
    return pt.models.CGC(_experts(kind, 6, 2), {name: _experts(kind, 6, 1) for name in names}, 6, own, encoder=shared)


def _shared_decision(kind: str, names: str, shared: nn.Module, own: dict[str, nn.Module]) -> pt.models.Model:
    outputs = {name: 3 if name == "b" else 1 for name in names}
    decision = nn.Sequential(*_layers(kind, sum(outputs.values()), 4))
    readouts = {name: nn.Sequential(*_layers(kind, 4, 4), nn.Linear(4, count)) for name, count in outputs.items()}
    return pt.models.SharedDecision(shared, own, decision, readouts)


_FORMS: dict[str, Callable[..., pt.models.Model]] = {
    "cross-stitch": lambda kind, names, shared, own: pt.models.CrossStitch([shared, *_experts(kind, 6, 1)], own),
    "mmoe": lambda kind, names, shared, own: pt.models.MMoE(_experts(kind, 3, 3), 3, own),
    "soft": lambda kind, names, shared, own: pt.models.SoftSharing({name: trunk(kind) for name in names}, own),
    "cgc": _cgc,
    "ple": _ple,
    "shared decision": _shared_decision,
}


def network(kind: str = "plain", names: str = "ab", form: str = "hard", seed: int = 0) -> pt.models.Model:
    """A fresh network: `kind` plain, dropout, norm, norm+dropout; `form` hard, partitioned, single, soft, FEATURED."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        shared, own = trunk(kind), heads(names, kind)
        if form == "monitored":
            return pt.models.Monitored(shared, {name: trunk(kind) for name in names}, own)
        if form == "mtan":
            stages = [shared, nn.Sequential(*_layers(kind, 6, 6))]
            masks = {name: [nn.Sequential(*_layers(kind, 6, 6), nn.Sigmoid())] for name in names}
            return pt.models.MTAN(stages, masks, own)
        if form in _FORMS:
            return _FORMS[form](kind, names, shared, own)
    if form == "hard":
        return pt.models.HardSharing(shared, own)
    if form == "single":
        return pt.models.SingleTask(shared, own)
    specific = {name: f"tops.{name}" for name in names} if form == "partitioned" else None
    return pt.models.Partitioned(Whole(shared, own), shared="trunk", specific=specific)


def digits(form: str, epochs: int, **settings: Any) -> dict[str, Any]:
    """A configuration of a little network, `form`, for digits; `settings` are the trainer's."""
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 10}}
    trunk = {"class_path": "MLP", "init_args": {"inputs": 100, "widths": [8]}}
    return {
        "data": {"class_path": "MultiDigits", "init_args": {"pairs": [1, 1, 1]}},
        "model": {"class_path": form, "init_args": {"trunk": trunk, "heads": {"left": linear, "right": linear}}},
        "trainer": {"batch_size": 64, **settings},
        "epochs": epochs,
    }


def sgd(lr: float = 0.1, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def adam(lr: float = 0.01) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def trainer(model: pt.models.Model | None = None, names: str = "ab", **options: Any) -> pt.Trainer:
    options = {"optimizer": sgd(), "batch_size": 8, "progress": False} | options
    return pt.Trainer(network(names=names) if model is None else model, options.pop("tasks", tasks(names)), **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two nested structures are equal to the bit (NaN equals NaN), seconds left out."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
        )
    if isinstance(one, Mapping):
        keys = [k for k in one if not str(k).endswith("seconds")]
        return keys == [k for k in other if not str(k).endswith("seconds")] and all(
            same(one[k], other[k]) for k in keys
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def block_state(block: Block, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """All that must not change while a block is frozen."""
    return {
        "parameters": [p.detach().clone() for p in block.parameters],
        "buffers": [b.clone() for m in block.modules for b in m.buffers(recurse=False)],
        "optimizer": [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in o.state[p].items()} if p in o.state else None
            for p in block.parameters
            for o in optimizers
        ],
    }


class Witness(pt.Callback):
    """Fails the moment a frozen block or an absent task's block moves, or a live one does not."""

    def on_fit_start(self, run: Any) -> None:
        self.blocks = run.model.blocks()
        self.before = self._look(run)
        self.frozen_seen = self.live_seen = 0
        self.updates: list[tuple[int, bool, tuple[str, ...]]] = []

    def _look(self, run: Any) -> dict[str, Any]:
        every = {"": self.blocks.shared, **self.blocks.specific}
        return {name: block_state(block, run.optimizers.optimizers) for name, block in every.items()}

    def on_update(self, run: Any, info: UpdateInfo) -> None:
        now = self._look(run)
        wanted = set(self.blocks.specific) if info.update.specific is None else set(info.update.specific)
        live = (wanted & set(info.losses)) | ({""} if info.update.shared else set())
        self.updates.append((run.epoch, info.update.shared, tuple(sorted(live - {""}))))
        for name, block in {"": self.blocks.shared, **self.blocks.specific}.items():
            if not block.parameters:
                continue
            label = name or "the shared block"
            if name in live or any(block is self.blocks.specific.get(other) for other in live):
                assert not same(now[name]["parameters"], self.before[name]["parameters"]), f"{label} did not move"
                self.live_seen += 1
                continue
            for part, value in now[name].items():
                assert same(value, self.before[name][part]), f"the {part} of {label} moved while frozen"
            assert all(p.grad is None for p in block.parameters), f"{label} was given a gradient while frozen"
            self.frozen_seen += 1
        self.before = now


class Interrupter(pt.Callback):
    """Sends a signal to this process after a number of updates."""

    observes_only = True

    def __init__(self, after: int | None = None, number: int = signal.SIGINT) -> None:
        self.after = after
        self.number = number

    def on_fit_start(self, run: Any) -> None:
        self.seen = 0

    def on_update(self, run: Any, info: UpdateInfo) -> None:
        self.seen += 1
        if self.seen == self.after:
            os.kill(os.getpid(), self.number)


class SaveAll(pt.Callback):
    """Keeps a checkpoint of every epoch boundary in a folder, and the last state in memory."""

    def __init__(self, folder: Any = None) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {}

    def on_boundary(self, run: Any) -> None:
        self.state = run.state_dict()
        if self.folder is not None:
            run.save(self.folder / f"{run.epoch}.ckpt")


class Rows(Dataset):
    """A map-style data set of (x, {task: target})."""

    def __init__(self, x: Tensor, y: dict[str, Tensor]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[index], {name: values[index] for name, values in self.y.items()}


class Stream(torch.utils.data.IterableDataset):
    """The same rows as a stream that does not know its length."""

    def __init__(self, x: Tensor, y: dict[str, Tensor]) -> None:
        self.rows = Rows(x, y)

    def __iter__(self) -> Iterator[Any]:
        return (self.rows[i] for i in range(len(self.rows)))


def loader(size: int = 24, generator: bool = False, missing: bool = False, **options: Any) -> DataLoader:
    own = torch.Generator().manual_seed(5) if generator else None
    options = {"batch_size": 8, "shuffle": True, "generator": own} | options
    return DataLoader(Rows(*data(size, missing=missing)), **options)
