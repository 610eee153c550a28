"""Balancing: whole steps beside TorchJD's and the bare cost, aggregators alone, memory.

`python balancing.py --rounds 3 --methods MGDA UPGrad` for a quick look.

One thread, and its processor time: other work on the machine slows it, but is not counted. glibc's allocator hands
large blocks back to the system and faults them in anew; whether a candidate suffers depends on what ran before it in
the process. So steps are timed with freed memory kept, and those of LeNet as the allocator comes as well.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torchjd.aggregation
from timing import measure, ratio, record, show
from torch import Tensor, nn
from torch.nn import functional as F
from torchjd.autojac import jac_to_grad, mtl_backward

import polytask as pt
from polytask.balancing import Aggregator, Evidence, Needs
from polytask.balancing.aggregation import __all__ as METHODS
from polytask.balancing.base import CotangentAggregator, JacobianAggregator
from polytask.training.cost import peak_memory

BATCH, STEPS, PARAMETERS, SIZES = 256, 3, 100_000, (2, 3, 10, 40)
FAST_AT_40 = ("NashMTL", "ConFIG", "PCGrad", "GradVac")
OUR_DEFAULTS = {"CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 1.0}, "GradVac": {"beta": 0.01}}  # where TorchJD's differ
NOISE = "Processor time; medians over rounds of ratios within a round, and their quartiles."
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h


def ours(name: str) -> Aggregator:
    return getattr(pt.aggregation, name)()


def theirs(name: str, tasks: int) -> torchjd.aggregation.Aggregator:
    settings = {"NashMTL": {"n_tasks": tasks}} | OUR_DEFAULTS
    return getattr(torchjd.aggregation, name)(**settings.get(name, {}))


def matched(wanted: Sequence[str] | None) -> list[str]:
    """Our aggregators that TorchJD has too; says which it has not."""
    found = []
    for name in wanted or METHODS:
        if hasattr(torchjd.aggregation, name):
            found.append(name)
        else:
            print(f"{name}: skipped, TorchJD has none of that name")
    return found


@dataclass
class Case:
    """A network, a batch and an optimizer: what a training step of any kind starts from."""

    trunk: nn.Module
    heads: nn.ModuleList
    inputs: Tensor
    targets: Tensor

    def __post_init__(self):
        self.shared = list(self.trunk.parameters())
        self.own = [list(head.parameters()) for head in self.heads]
        self.optimizer = torch.optim.SGD([*self.shared, *self.heads.parameters()], lr=1e-3)
        self.names = [f"task {k}" for k in range(len(self.heads))]

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        self.optimizer.zero_grad()
        features = self.trunk(self.inputs)
        return features, [F.cross_entropy(h(features), y) for h, y in zip(self.heads, self.targets, strict=True)]

    def bare(self, keep: bool = True) -> None:
        """One forward pass, each head's backward, one pull through the trunk per task; nothing is made of them.

        With `keep`, the K gradients are alive together, as any exact method needs them to be.
        """
        features, losses = self.forward()
        cotangents, rows = [], []
        for loss, own in zip(losses, self.own, strict=True):
            cotangent, *gradients = torch.autograd.grad(loss, [features, *own])
            cotangents.append(cotangent)
            fill(own, gradients)
        for k, cotangent in enumerate(cotangents, 1):
            row = torch.autograd.grad(features, self.shared, cotangent, retain_graph=k < len(cotangents))
            rows = [*rows, row] if keep else [row]
        fill(self.shared, rows[-1])
        self.optimizer.step()

    def ours(self, balancer: Aggregator) -> None:
        features, losses = self.forward()
        given = features if isinstance(balancer, CotangentAggregator) else ()
        named = dict(zip(self.names, losses, strict=True))
        pt.balance(named, shared=self.shared, balancer=balancer, features=given)
        self.optimizer.step()

    def theirs(self, aggregator: torchjd.aggregation.Aggregator, chunk: int | None = None) -> None:
        features, losses = self.forward()
        mtl_backward(losses, features, tasks_params=self.own, shared_params=self.shared, parallel_chunk_size=chunk)
        jac_to_grad(self.shared, aggregator)
        self.optimizer.step()

    def plain(self, balancer: pt.balancing.Balancer, gradients: str = "exact") -> None:
        """Forward and backward only, for the memory of either."""
        _, losses = self.forward()
        pt.balance(
            dict(zip(self.names, losses, strict=True)), shared=self.shared, balancer=balancer, gradients=gradients
        )


def fill(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def lenet(layout: torch.memory_format = torch.contiguous_format) -> Case:
    heads = nn.ModuleList(nn.Linear(50, 10) for _ in range(2))
    trunk = pt.models.LeNet()
    trunk.to(memory_format=layout)  # pyright: ignore[reportCallIssue] (its overloads lack it)
    return Case(trunk, heads, torch.rand(BATCH, 1, 28, 28), torch.randint(10, (2, BATCH)))


def mlp() -> Case:
    heads = nn.ModuleList(nn.Linear(128, 5) for _ in range(10))
    return Case(pt.models.MLP(100, [256, 256, 128]), heads, torch.randn(BATCH, 100), torch.randint(5, (10, BATCH)))


def steps(case: Case, title: str, methods: Sequence[str], target: float, rounds: int) -> None:
    """Whole training steps: ours, TorchJD's, bare."""
    work: dict[str, Callable[[], object]] = {"bare": case.bare, "bare, dropped": lambda: case.bare(keep=False)}
    for name in methods:
        own, foreign = ours(name), theirs(name, len(case.names))
        work[f"{name} ours"] = lambda own=own: case.ours(own)
        work[f"{name} TorchJD"] = lambda foreign=foreign: case.theirs(foreign)
    plain = torchjd.aggregation.Sum()
    work["their sum"] = lambda: case.theirs(plain)
    work["one by one"] = lambda: case.theirs(plain, chunk=1)
    with chatter_off():
        times = measure({name: several(one) for name, one in work.items()}, rounds, time.process_time)
    rows = [
        ratio("bare: forward, heads, K pulls kept", times["bare"], times["bare"]),
        ratio("bare, each pull dropped at once / bare", times["bare, dropped"], times["bare"]),
        ratio("TorchJD's Sum with parallel_chunk_size=1 / bare", times["one by one"], times["bare"]),
        ratio("bare / TorchJD's Sum", times["bare"], times["their sum"]),
    ]
    rows += [ratio(f"{n} / bare", times[f"{n} ours"], times["bare"], 1.10) for n in methods]
    rows += [ratio(f"{n} / TorchJD", times[f"{n} ours"], times[f"{n} TorchJD"], target) for n in methods]
    show(f"A training step, {title} (ms of {STEPS} steps)", rows, NOISE)


def several(one: Callable[[], object], times: int = STEPS) -> Callable[[], None]:
    """The same work a few times over, so that a round is longer than the clock's and the scheduler's grain."""

    def work() -> None:
        for _ in range(times):
            one()

    return work


def per_call(name: str, one: Callable[[], object], least: float = 0.01) -> Callable[[], dict[str, float]]:
    """Seconds of one call, from as many as fill a hundredth of a second."""

    def work() -> dict[str, float]:
        begin, calls = time.process_time(), 0
        while (spent := time.process_time() - begin) < least or not calls:
            one()
            calls += 1
        return {name: spent / calls}

    return work


@contextlib.contextmanager
def chatter_off() -> Iterator[None]:
    """TorchJD's solvers warn and print on some matrices; that is not what is measured here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def alone(methods: Sequence[str], tasks: int, rounds: int) -> None:
    """The aggregators alone: a Jacobian to one gradient."""
    jacobian = torch.randn(tasks, PARAMETERS) + 0.3 * torch.randn(PARAMETERS)
    names = [f"task {k}" for k in range(tasks)]
    times: dict[str, list[float]] = {}
    with chatter_off():
        for name in methods:
            own, foreign = ours(name), theirs(name, tasks)
            own.setup(names)
            work = {
                f"{name} ours": lambda own=own: gradient(own, names, jacobian),
                f"{name} TorchJD": lambda foreign=foreign: foreign(jacobian),
                f"{name} floor": lambda: (jacobian @ jacobian.T)[0] @ jacobian,
            }
            times |= measure({figure: per_call(figure, one) for figure, one in work.items()}, rounds)
    fast = [name for name in methods if tasks == 40 and name in FAST_AT_40]
    target = {name: 0.2 if name in fast else 1.0 for name in methods}
    rows = [ratio(f"{n} / TorchJD", times[f"{n} ours"], times[f"{n} TorchJD"], target[n]) for n in methods]
    rows += [ratio(f"JJᵀ and wᵀJ / TorchJD's {n}", times[f"{n} floor"], times[f"{n} TorchJD"]) for n in fast]
    show(f"Aggregators alone, K = {tasks}, {PARAMETERS:,} parameters", rows, NOISE)


def gradient(aggregator: Aggregator, names: Sequence[str], jacobian: Tensor) -> Tensor:
    """All that lies between a Jacobian and the shared block's gradient."""
    values = list(torch.ones(len(jacobian))) if Needs.LOSSES in aggregator.needs else None
    combined = torch.as_tensor(aggregator.combine(Evidence(names, values, jacobian=jacobian)))
    return combined if isinstance(aggregator, JacobianAggregator) else combined @ jacobian


def keep_memory() -> bool:
    """Lets glibc keep what is freed, from now on; False where there is another C library."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, 2**31 - 1) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def memory(case: Case) -> None:
    """`low_memory` beside joint training, in tensors alive at the peak of a step."""
    peaks = {}
    for name, balancer, mode in (
        ("joint", pt.scalarization.Linear(), "exact"),
        ("low_memory", pt.aggregation.MGDA(), "low_memory"),
        ("exact", pt.aggregation.MGDA(), "exact"),
    ):
        case.plain(balancer, mode)
        case.optimizer.zero_grad()
        peaks[name] = peak_memory(lambda balancer=balancer, mode=mode: case.plain(balancer, mode))
        case.optimizer.zero_grad()
    size = sum(p.numel() * p.element_size() for p in case.shared)
    extra = {name: (peak - peaks["joint"]) / size for name, peak in peaks.items()}
    verdict = "met" if extra["low_memory"] <= 1.2 else "missed"
    text = (
        f"Peak memory of a step, MLP 100-256-256-128, K = 10: joint {peaks['joint'] / 2**20:.2f} MiB; above it, in "
        f"shared gradients: low_memory {extra['low_memory']:.2f} (target ≤ 1.2: {verdict}), exact {extra['exact']:.2f}."
    )
    print(text)
    record([text])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    methods, rounds = matched(arguments.methods), arguments.rounds
    title = f"LeNet, batch {BATCH}, K = 2"
    steps(lenet(), f"{title}, allocator as it comes", methods, 0.75, rounds)
    if not keep_memory():
        print("not glibc: the allocator stays as it is")
    steps(lenet(), title, methods, 0.75, rounds)
    steps(lenet(torch.channels_last), f"{title}, channels last", methods, 0.75, rounds)
    steps(mlp(), f"MLP 100-256-256-128, batch {BATCH}, K = 10", methods, 0.92, rounds)
    for tasks in SIZES:
        alone(methods, tasks, rounds)
    memory(mlp())


if __name__ == "__main__":
    main()
