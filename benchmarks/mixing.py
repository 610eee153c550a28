"""What three sources in memory cost beside one of the same total size: served alone, and in training."""

from __future__ import annotations

import itertools
import time

import torch
from timing import measure, ratio, show
from torch import nn

import polytask as pt

SIZES = (6000, 3000, 1000)
WIDTH, BATCH, ROUNDS = 64, 16, 9
EPOCHS = {"served only": 5, "training": 1}
MIXTURES = {
    "Proportional": pt.data.Proportional,
    "Temperature 2": pt.data.Temperature(T=2.0),
    "RoundRobin, all": pt.data.RoundRobin(until="all"),
}


def one():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), WIDTH, generator=random)
    return x, {"sign": (x.sum(1) > 0).float()}


def several():
    x, y = one()
    parts = zip(x.split(SIZES), y["sign"].split(SIZES), strict=True)
    return {f"source {k}": (inputs, {"sign": targets}) for k, (inputs, targets) in enumerate(parts)}


def serving(source):
    """An epoch of batches with their inputs, and nothing done with them."""
    source.bind({"sign": pt.binary("sign")}, torch.device("cpu"), "train")

    numbers = itertools.count()  # it goes on where the last round ended, as training does

    def epochs():
        for epoch in itertools.islice(numbers, EPOCHS["served only"]):
            for batches in source.steps(epoch):
                for batch in batches:
                    assert batch.inputs is not None

    return epochs


def training(data, mixture=None):
    model = pt.models.HardSharing(pt.models.MLP(WIDTH, [64, 64]), {"sign": nn.Linear(64, 1)})
    trainer = pt.Trainer(model, [pt.binary("sign")], batch_size=BATCH, mixture=mixture, progress=False)
    return lambda: trainer.fit(data, epochs=EPOCHS["training"])


def compared(candidates):
    """Ratios in processor time, which other programs on the machine do not lengthen as much."""
    times = measure(candidates, ROUNDS, time.process_time)
    return [ratio(name, times[name], times["one source"], 1.1 if name in MIXTURES else None) for name in times]


def main():
    torch.set_num_threads(1)
    arrays = lambda pair: pt.Arrays(*pair, batch_size=BATCH)  # noqa: E731
    parts = several()
    steps = sum(-(-size // BATCH) for size in SIZES)
    title = f"3 sources in memory beside one of the same total size, batch {BATCH}, epochs of {steps} steps"
    served = {"one source": serving(arrays(one()))}
    served |= {name: serving(mix({k: arrays(v) for k, v in parts.items()})) for name, mix in MIXTURES.items()}
    show(f"{title}, served only", compared(served))
    trained = {"one source": training(one())} | {name: training(parts, mix) for name, mix in MIXTURES.items()}
    show(f"{title}, training", compared(trained))


if __name__ == "__main__":
    main()
