"""Draws the pictures of README.md and docs/ (learning curves need the runs of `make demo` and examples/)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

matplotlib.use("Agg")

HERE = Path(__file__).parent
SHARED, SPECIFIC, FROZEN = "#0072B2", "#D55E00", "#E9E9E9"


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
    from polytask.reports import plots
    from polytask.studies.store import read_study

    records = read_study(study)
    if not records:
        print(f"{path.name} is left as it is: there are no runs in {study}")
        return
    plots.learning_curves_png(records, path)


if __name__ == "__main__":
    schedules(HERE / "schedules.png")
    choosing(HERE / "choosing.png")
    curves(HERE.parent / "runs" / "digits", HERE / "digits.png")
    curves(HERE.parent / "runs" / "synthetic", HERE / "synthetic.png")
