"""Sparse multi-objective training: the prox alone, and a Chebyshev step of MDMTN beside one of the summed loss."""

from __future__ import annotations

import torch
from timing import Ratio, measure, ratio, show
from torch import nn

import polytask as pt
from polytask.sparsity import GrOWL, Magnitude, Proximal, owl

BATCH = 256
STEPS = 3


def proxes():
    """Milliseconds of one prox; the targets are milliseconds too."""
    random = torch.Generator().manual_seed(0)
    rows = []
    for n, most in ((7_200, 2.0), (50_000, 20.0)):
        norms = torch.rand(n, generator=random)
        for kind in owl.PATTERNS:
            weights = 0.1 * owl.pattern(kind, n)
            name = f"{kind}, n = {n:,}"
            seconds = measure({name: lambda v=norms, w=weights: owl.prox(v, w)}, rounds=25)[name]
            milliseconds = [1e3 * second for second in seconds]
            rows.append(ratio(name, milliseconds, [1.0] * len(milliseconds), most))
            rows[-1] = Ratio(name, rows[-1].median / 1e3, rows[-1].median, rows[-1].low, rows[-1].high, most)
    show("Prox of the ordered weighted ℓ1 norm (the ratio is in milliseconds)", rows)


def network():
    """MDMTN for MultiMNIST."""
    torch.manual_seed(0)
    names = ("left", "right")
    return pt.models.Monitored(
        pt.models.LeNet(),
        {name: pt.models.LeNetMonitor() for name in names},
        {name: nn.Linear(50, 10) for name in names},
    )


def stepper(data, balancer=None, objectives=(), callbacks=()):
    tasks = [pt.classification(name, 10) for name in ("left", "right")]
    trainer = pt.Trainer(
        network(), tasks, lambda p: torch.optim.Adam(p, lr=2.5e-3), balancer=balancer, objectives=objectives,
        callbacks=callbacks, batch_size=BATCH, train_metrics=False, progress=False,
    )  # fmt: skip
    return lambda: trainer.fit(data, epochs=1)


def steps():
    """One epoch of a few steps each; what the start of a fit costs is in all of them."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(STEPS * BATCH, 1, 28, 28, generator=random)
    y = {name: torch.randint(10, (len(x),), generator=random) for name in ("left", "right")}
    penalty = GrOWL()
    preference = {"left": 0.2, "right": 0.799, "sparsity": 0.001}

    def chebyshev(k):
        return pt.scalarization.Chebyshev(k, normalise=["sparsity"] if "sparsity" in k else None)

    candidates = {
        "summed loss": stepper((x, y)),
        "Chebyshev over the tasks": stepper((x, y), chebyshev({"left": 0.5, "right": 0.5})),
        "Chebyshev over tasks and sparsity, proximal step": stepper(
            (x, y), chebyshev(preference), [penalty], [Proximal(penalty, sparsity=0.5)]
        ),
        "Chebyshev over tasks and sparsity, by its gradient": stepper((x, y), chebyshev(preference), [GrOWL()]),
        "summed loss, smallest units removed": stepper((x, y), callbacks=[Magnitude(0.5)]),
    }
    times = measure(candidates, rounds=25)
    base = times["summed loss"]
    rows = [ratio(name, times[name], base, 1.15 if name.startswith("Chebyshev") else None) for name in times]
    show(f"MDMTN on MultiMNIST's shapes, batch {BATCH} (ms of {STEPS} steps)", rows)


def main():
    torch.set_num_threads(1)
    proxes()
    steps()


if __name__ == "__main__":
    main()
