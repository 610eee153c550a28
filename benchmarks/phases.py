"""What a specific phase costs beside joint training, with features cached, filled and not cached."""

from __future__ import annotations

import torch
from timing import record, show, side_by_side
from torch import nn

import polytask as pt
from polytask.training.cost import measure

FIRST, LATER = "one-epoch specific phase, filling included", "later specific epochs, features cached"


def synthetic():
    data = pt.data.CircleRhombus()
    train = data.load().train
    trunk = pt.models.MLP(2, [64] * 4)
    heads = {task.name: pt.models.MLP(64, [64, 64], 1) for task in data.tasks}
    return trunk, heads, data.tasks, train, 16


def images():
    inputs = torch.rand(6400, 1, 28, 28)
    tasks = [pt.classification(name, 10) for name in ("left", "right")]
    targets = {task.name: torch.randint(10, (len(inputs),)) for task in tasks}
    return pt.models.LeNet(), {t.name: nn.Linear(50, 10) for t in tasks}, tasks, (inputs, targets), 256


def deep():
    inputs = torch.randn(6400, 512)
    tasks = [pt.classification(name, 10) for name in ("left", "right")]
    targets = {task.name: torch.randint(10, (len(inputs),)) for task in tasks}
    trunk = pt.models.MLP(512, [512] * 8)
    return trunk, {t.name: nn.Linear(512, 10) for t in tasks}, tasks, (inputs, targets), 256


def trainer(case, schedule, **options):
    trunk, heads, tasks, train, batch_size = case
    made = pt.Trainer(
        pt.models.HardSharing(trunk, heads), tasks, lambda p: torch.optim.SGD(p, lr=0.01), schedule=schedule,
        batch_size=batch_size, train_metrics=False, progress=False, **options,
    )  # fmt: skip
    return made, train


def joint_epoch(case):
    made, train = trainer(case, pt.schedules.Joint())
    return lambda: {"joint epoch": made.fit(train, epochs=2)[1]["seconds"]}


def specific_epochs(case):
    made, train = trainer(case, pt.schedules.AlternateEpochs(shared=1, specific=3))

    def seconds():
        history = made.fit(train, epochs=4)
        return {
            "shared epoch": history[0]["seconds"], FIRST: history[1]["seconds"], LATER: history[3]["seconds"]
        }  # fmt: skip

    return seconds


def uncached(case):
    made, train = trainer(case, pt.schedules.AlternateEpochs(shared=1, specific=1), cache_features=False)
    return lambda: {"specific epoch, not cached": made.fit(train, epochs=2)[1]["seconds"]}


def memory(name, case, target):
    peaks = {}
    for schedule in (pt.schedules.Joint(), pt.schedules.AlternateEpochs()):
        made, train = trainer(case, schedule)
        source = made.served(train, made.device)
        peaks |= {phase: cost["memory"] for phase, cost in measure(made, source)["phases"].items()}
    ratio = peaks["specific"] / peaks["joint"]
    verdict = "met" if ratio <= target else "missed"
    line = ", ".join(f"{phase} {size / 2**20:.2f} MiB" for phase, size in peaks.items())
    text = (
        f"Peak memory of a step, {name}: {line}; uncached specific / joint = {ratio:.3f} "
        f"(target ≤ {target}: {verdict})."
    )
    print(text)
    record([text])


def main():
    torch.set_num_threads(1)
    cases = {
        "synthetic net, 750 examples, batch 16": (synthetic(), {LATER: 0.75}, 25),
        "LeNet, 6,400 images, batch 256": (images(), {LATER: 0.15, FIRST: 0.85}, 9),
        "8-layer 512-wide MLP, 6,400 examples, batch 256": (deep(), {LATER: 0.05, FIRST: 0.45}, 9),
    }
    for name, (case, targets, rounds) in cases.items():
        work = {"joint": joint_epoch(case), "alternate": specific_epochs(case), "uncached": uncached(case)}
        show(f"Phases: {name}", side_by_side(work, "joint epoch", rounds=rounds, targets=targets))
    memory("8-layer 512-wide MLP, batch 256", deep(), 0.5)
    memory("LeNet, batch 256", images(), 1.0)


if __name__ == "__main__":
    main()
