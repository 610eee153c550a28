"""Balancing on a GPU: a whole step with each method beside plain joint training's; appends to RESULTS.md.

`python gpu.py --rounds 3 --methods MGDA UPGrad` for a quick look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import measure, ratio, record, show
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.balancing.base import CotangentAggregator
from polytask.catalog import catalog

STEPS = 20


def case(tasks: int, width: int, batch: int) -> tuple[nn.Module, nn.ModuleList, Tensor, Tensor]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(tasks))
    return trunk.cuda(), heads.cuda(), torch.randn(batch, width).cuda(), torch.randint(10, (tasks, batch)).cuda()


def steps(balancer: pt.balancing.Balancer | None, tasks: int, width: int, batch: int) -> Callable[[], object]:
    """Does `STEPS` steps and waits for them once, as training does; plain joint ones without a balancer."""
    trunk, heads, x, y = case(tasks, width, batch)
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=1e-3)

    def work() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            z = trunk(x)
            losses = {str(k): F.cross_entropy(head(z), y[k]) for k, head in enumerate(heads)}
            if balancer is None:
                torch.stack(list(losses.values())).sum().backward()
            else:
                features = z if isinstance(balancer, CotangentAggregator) else ()
                pt.balance(losses, shared=trunk, balancer=balancer, features=features)
            optimizer.step()
        torch.cuda.synchronize()

    return work


def main() -> None:
    methods = {entry.name: entry.cls for entry in catalog("balancer") if entry.name != "TorchJD"}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--methods", nargs="*", metavar="NAME", default=list(methods), choices=list(methods))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: these timings need a GPU that torch can use, found none")
        return
    for tasks, width, batch in ((2, 1024, 256), (10, 1024, 256)):
        candidates = {"joint": steps(None, tasks, width, batch)}
        candidates |= {name: steps(methods[name](), tasks, width, batch) for name in arguments.methods}
        times = measure(candidates, arguments.rounds)
        rows = [ratio(name, times[name], times["joint"]) for name in times]
        show(f"{STEPS} steps on a GPU, MLP {width}-{width}-{width}, batch {batch}, K = {tasks}", rows)
        record([f"GPU: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}."])


if __name__ == "__main__":
    main()
