"""Hand-made records whose tables can be worked out with pen and paper."""

import csv
import math

import numpy as np
import pytest

from polytask.studies.store import RunRecord, write_record

TASKS = {
    "a": {"name": "a", "kind": "binary", "outputs": 1, "metric": "accuracy", "higher_is_better": True},
    "b": {"name": "b", "kind": "regression", "outputs": 1, "metric": "mae", "higher_is_better": False},
    "c": {"name": "c", "kind": "classification", "outputs": 3, "metric": "f1", "higher_is_better": True},
}


def task(name, key="a", **changes):
    """A described task called `name`, of the kind of `key`."""
    return {"weight": 1.0, "labels": [], **TASKS[key], "name": name, **changes}


def record(method, seed, figures, tasks=("a", "b"), state="done", **more):
    """A run whose test figures are `figures`: {"a/accuracy": 0.9, ...}."""
    described = [t if isinstance(t, dict) else task(t, t) for t in tasks]
    usual = {
        "epochs": 10,
        "selected_epoch": 8,
        "seconds": 5.0,
        "seconds_per_epoch": {"joint": 0.5},
        "cost": {
            "parameters": 1234567,
            "shared_parameters": 1000000,
            "forward_macs": 2000,
            "phases": {"joint": {"macs": 6000, "memory": 2048}},
        },
        "versions": {"polytask": "0.1.0", "torch": "2.13"},
        "started": "2026-01-02T03:04:05+00:00",
    }
    metrics = {"test": dict(figures)} if state == "done" else {}
    return RunRecord(method, seed, state, described, metrics, **({**usual, **more} if state == "done" else more))


def two(method, seed, a, b, **more):
    """A run on one task where higher is better, one where lower is."""
    return record(method, seed, {"a/accuracy": a, "b/mae": b}, **more)


@pytest.fixture(name="task")
def task_fixture():
    return task


@pytest.fixture(name="record")
def record_fixture():
    return record


@pytest.fixture(name="two")
def two_fixture():
    return two


@pytest.fixture
def study(tmp_path):
    """Records on disk: a baseline, joint training and an alternate one, three seeds each, with histories."""
    return [
        stored(tmp_path / method / f"seed-{seed}", method, seed, offset)
        for offset, method in enumerate(("single-task", "joint", "alternate <b>&\"'|`*_</b>"))
        for seed in range(3)
    ]


def stored(folder, method, seed, offset=0, epochs=12):
    folder.mkdir(parents=True)
    names = ("left", "<i>right&")
    figures, columns = {}, {}
    for k, name in enumerate(names):
        curve = [math.exp(-epoch / 3) + 0.05 * (seed + offset + k) for epoch in range(epochs)]
        columns[f"validation/{name}/loss"] = curve
        columns[f"validation/{name}/accuracy"] = [1 - value / 3 for value in curve]
        figures |= {f"{name}/loss": curve[-1], f"{name}/accuracy": 1 - curve[-1] / 3}
    columns["validation/loss"] = [sum(values) for values in zip(*list(columns.values())[::2], strict=True)]
    phases = ["shared", "specific"] if offset == 2 else ["joint"]
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "phase", *columns, "seconds"])
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([i + 1, phases[i // 2 % len(phases)], *values, 0.1])
    grid = np.linspace(-1, 1, 21)
    plane = (np.add.outer(grid, grid) > 0).astype(np.float32)
    points = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    content = {"x": grid, "y": grid, "points": points}
    for name in names:
        content |= {name: plane, f"targets_{name}": (points.sum(1) > 0).astype(np.float32)}
    with (folder / "regions.npz").open("wb") as file:
        np.savez(file, **content)
    (folder / "config.yaml").write_text("data:\n  class_path: some.where.Points\n  init_args: {seed: 7}\n")
    tasks = [task(name) for name in names]
    costs = {p: {"macs": 10, "memory": 100} for p in phases}
    run = record(method, seed, figures, tasks, seconds_per_epoch=dict.fromkeys(phases, 0.1), cost={"phases": costs})
    run.folder = folder
    write_record(run, folder)
    return run
