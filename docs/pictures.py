"""Draws the pictures of README.md and docs/ (learning curves need the runs of `make demo` and examples/)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

import polytask as pt
from polytask import reports
from polytask.reports.colours import LEAST_AFFINITY, SIGNED, style
from polytask.studies.compare import read_comparison
from polytask.studies.grouping import suggest
from polytask.studies.pairs import read_pairs

matplotlib.use("Agg")

HERE = Path(__file__).parent
SHARED, SPECIFIC, FROZEN = style(0)[0], style(3)[0], "#E9E9E9"


def schedules(path: Path) -> None:
    """Which block moves when, under each schedule."""
    rows = [
        ("joint", ["both"] * 8, "epoch"),
        ("ATE-SG 1/1", ["shared", "specific"] * 4, "epoch"),
        ("ATE-SG 2/2", ["shared", "shared", "specific", "specific"] * 2, "epoch"),
        ("SAT-SG", ["shared", "specific"] * 4, "half step"),
    ]
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 5.6), constrained_layout=True)
    for axis, (name, phases, unit) in zip(axes, rows, strict=True):
        for column, phase in enumerate(phases):
            for row, block in enumerate(("specific", "shared")):
                live = phase in ("both", block)
                colour = {"shared": SHARED, "specific": SPECIFIC}[block] if live else FROZEN
                axis.add_patch(Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, color=colour))
                axis.text(
                    column + 0.5, row + 0.5, "moves" if live else "frozen", ha="center", va="center",
                    color="white" if live else "#555555", fontsize=9,
                )  # fmt: skip
        axis.set_xlim(0, 8)
        axis.set_ylim(0, 2)
        axis.set_yticks([0.5, 1.5], ["task-specific", "shared"], fontsize=9)
        axis.set_xticks([i + 0.5 for i in range(8)], [f"{unit} {i + 1}" for i in range(8)], fontsize=8)
        axis.tick_params(length=0)
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold")
        for side in axis.spines.values():
            side.set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


QUESTIONS = [  # question, the answer that leads aside, what to do then, its names
    (
        "1. Train single-task, the plain sum and a few fixed\nweights, three seeds each. Is the sum good enough,\n"
        "or the weights that validation data choose?",
        "yes", "Keep it: nothing costs less.", "Linear",
    ),
    (
        "2. Are the losses of very different size,\nor in different units?",
        "yes", "Standardise targets, or learn the scales:\none backward pass.", "Uncertainty, IMTLL, GeometricMean",
    ),
    (
        "3. Are there few tasks, or runs to spare?",
        "yes", "Sweep fixed weights more finely:\nthey are what has to be beaten.", "weights: 20",
    ),
    (
        "4. Can a step cost K backward passes\nthrough the trunk?",
        "no", "Balance by the losses alone:\none backward pass.", "FAMO, DynamicWeightAverage,\nSmoothTchebycheff",
    ),
    (
        "5. Do K gradients of the trunk fit into memory?",
        "no", "Gather their inner products only,\nor take gradients at the features.",
        "gradients: low_memory\ngradients: features",
    ),
]  # fmt: skip
GRADIENTS = """Balance gradients, so that
no task's loss rises to first order: MGDA, UPGrad, DualProj; the worst-off task gains too: CAGrad;
conflicts are taken out: PCGrad, GradVac, ConFIG; gains are even: IMTLG, NashMTL, FairGrad, AlignedMTL.
Which of them suits a problem, if any, only a comparison tells."""


def choosing(path: Path) -> None:
    """Which balancer to try, question by question."""
    figure, axis = plt.subplots(figsize=(9.6, 8))
    for number, (question, word, advice, names) in enumerate(QUESTIONS):
        y = 6 - 1.15 * number
        _box(axis, 0, y - 0.38, 5.2, 0.76, question, SHARED)
        axis.annotate("", xy=(6.15, y), xytext=(5.2, y), arrowprops={"arrowstyle": "->"})
        axis.text(5.65, y + 0.06, word, ha="center", va="bottom", fontsize=10)
        axis.text(6.25, y + 0.04, advice, va="bottom", fontsize=10)
        axis.text(6.25, y - 0.06, names, va="top", fontsize=9, family="monospace", color=SPECIFIC)
        axis.annotate("", xy=(2.6, y - 0.77), xytext=(2.6, y - 0.38), arrowprops={"arrowstyle": "->"})
        axis.text(2.7, y - 0.57, "no" if word == "yes" else "yes", va="center", fontsize=10)
    _box(axis, 0, -0.42, 9.9, 1.03, GRADIENTS, SPECIFIC)
    axis.set_xlim(-0.05, 9.95)
    axis.set_ylim(-0.47, 6.45)
    axis.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _box(axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axis.add_patch(Rectangle((x, y), width, height, facecolor="white", edgecolor=colour, linewidth=1.3))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5)


def curves(study: Path, path: Path) -> None:
    """Learning curves of a study's runs."""
    try:
        found = read_comparison(study)
    except FileNotFoundError:
        print(f"{path.name} is left as it is: there are no runs in {study}")
        return
    # as the page does: a method then has the same colour in both
    reports.learning_curves_png(found.records, path, baseline=found.baseline, sweep=found.sweep)


def negative_transfer(path: Path) -> None:
    """Affinities of three tasks, two of which are alike, and what dividing them into groups does to their losses."""
    torch.set_num_threads(1)
    train, validation = _three_tasks(256, 0), _three_tasks(2000, 1)
    together, history = _trained(pt.models.HardSharing, train, validation, pt.callbacks.Affinity(every=2))
    affinity = read_pairs(history)
    groups = suggest(affinity, groups=2).groups
    alone, _ = _trained(pt.models.SingleTask, train, validation)
    grouped, _ = _trained(lambda trunk, heads: pt.models.Grouped(trunk, heads, groups), train, validation)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), constrained_layout=True, width_ratios=(1, 1.25))
    names = list(affinity)
    values = [[100 * affinity[i].get(j, float("nan")) for j in names] for i in names]
    most = 100 * max(LEAST_AFFINITY, *(abs(value) for row in affinity.values() for value in row.values()))
    colours = LinearSegmentedColormap.from_list("signed", SIGNED)
    left.imshow(values, cmap=colours, vmin=-most, vmax=most)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if i != j:
                ink = "white" if abs(value) > 0.75 * most else "black"
                left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=10, color=ink)
    left.set_xticks(range(3), names)
    left.set_yticks(range(3), names)
    left.set_xlabel("loss of")
    left.set_ylabel("step for")
    left.set_title("affinity, all together, %", fontsize=10)
    labels = {"all together": together, " + ".join("".join(group) for group in groups): grouped}
    for shift, (label, losses), colour in zip((-0.2, 0.2), labels.items(), (SPECIFIC, SHARED), strict=True):
        change = [100 * (losses[name] / alone[name] - 1) for name in names]
        bars = right.bar([i + shift for i in range(3)], change, 0.38, label=label, color=colour)
        right.bar_label(bars, [f"{value:+.0f}" for value in change], padding=2, fontsize=9)
    right.axhline(0, color="#555555", linewidth=0.8)
    right.margins(y=0.15)
    right.set_xticks(range(3), names)
    right.set_title("validation loss against single-task, %", fontsize=10)
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


TASKS = tuple(pt.regression(name) for name in "abc")
SEEDS = range(2)


def _three_tasks(size: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of points of four dimensions: a, b nearly the same function, c another."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=random)
    first = (x @ torch.tensor([1.0, -1.0, 0.5, 0.0])).abs()
    noise = 0.3 * torch.randn(2, size, generator=random)
    return x, {"a": first + noise[0], "b": 0.8 * first + noise[1], "c": (x @ torch.tensor([1.0, 1.0, 0.0, 1.0])).abs()}


def _trained(
    make: Callable[..., pt.models.Model], train: Any, validation: Any, *callbacks: pt.Callback
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Validation losses, as means over seeds, and the rows of all histories, of a narrow trunk."""
    losses, rows = dict.fromkeys("abc", 0.0), []
    for seed in SEEDS:
        torch.manual_seed(seed)
        trunk = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        model = make(trunk, {name: torch.nn.Linear(3, 1) for name in "abc"})
        trainer = pt.Trainer(
            model, TASKS, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), batch_size=16, seed=seed,
            callbacks=callbacks, progress=False,
        )  # fmt: skip
        rows += trainer.fit(train, epochs=8)
        found = trainer.evaluate(validation)
        losses = {name: total + found[f"{name}/loss"] / len(SEEDS) for name, total in losses.items()}
    return losses, rows


if __name__ == "__main__":
    negative_transfer(HERE / "negative-transfer.png")
    schedules(HERE / "schedules.png")
    choosing(HERE / "choosing.png")
    curves(HERE.parent / "runs" / "digits", HERE / "digits.png")
    curves(HERE.parent / "runs" / "synthetic", HERE / "synthetic.png")
