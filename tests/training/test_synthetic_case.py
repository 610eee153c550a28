"""The published case: alternate training through the epochs on circle and rhombus."""

import statistics

import pytest
import torch

import polytask as pt

SEEDS = range(5)
RATES = (0.01, 0.05)  # those with which the published case is usually run


def trained(data, splits, rate, seed):
    torch.manual_seed(seed)
    heads = {task.name: pt.models.MLP(64, [64, 64], 1, init="glorot") for task in data.tasks}
    trainer = pt.Trainer(
        pt.models.HardSharing(pt.models.MLP(2, [64] * 4, init="glorot"), heads), data.tasks,
        lambda p: torch.optim.SGD(p, lr=rate), schedule=pt.schedules.AlternateEpochs(shared=1, specific=1),
        callbacks=[pt.callbacks.EarlyStopping(patience=25), pt.callbacks.ReduceLROnPlateau(patience=10)],
        batch_size=16, seed=seed, train_metrics=False,
    )  # fmt: skip
    history = trainer.fit(splits.train, splits.validation, epochs=500)
    return trainer, history


@pytest.mark.slow
def test_alternating_epochs_reach_the_published_accuracy():
    """The learning rate is chosen by validation loss; the test split is looked at once, afterwards."""
    data = pt.data.CircleRhombus()
    splits = data.load()
    runs = {rate: [trained(data, splits, rate, seed) for seed in SEEDS] for rate in RATES}
    losses = {
        rate: statistics.mean(trainer.evaluate(splits.validation)["loss"] for trainer, _ in made)
        for rate, made in runs.items()
    }
    chosen = min(losses, key=losses.__getitem__)
    figures = [trainer.evaluate(splits.test) for trainer, _ in runs[chosen]]
    circle = [100 * f["circle/accuracy"] for f in figures]
    rhombus = [100 * f["rhombus/accuracy"] for f in figures]
    epochs = [len(history) for _, history in runs[chosen]]
    print(f"\nvalidation loss by rate {losses}; chosen {chosen}; epochs {epochs}")
    for name, values in (("circle", circle), ("rhombus", rhombus)):
        print(f"{name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %, {values}")
    assert max(epochs) <= 500
    assert statistics.mean(circle) >= 99.1
    assert statistics.mean(rhombus) >= 98.1
