"""Draws the pictures of README.md and docs/ (learning curves need the runs of `make demo` and examples/)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

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
                axis.add_patch(plt.Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, color=colour))
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
    curves(HERE.parent / "runs" / "digits", HERE / "digits.png")
    curves(HERE.parent / "runs" / "synthetic", HERE / "synthetic.png")
