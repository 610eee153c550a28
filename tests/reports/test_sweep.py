"""Fixed weights: validation data choose, the table shows the chosen ones, and all stand in a table of their own."""

import csv
import io

import pytest
from rich.console import Console

from polytask import reports
from polytask.reports import page, plots, tables
from polytask.reports.summary import summarize
from polytask.reports.sweep import CHOSEN

POINTS = ["joint", "weights 0.5/1.5", "weights 1.5/0.5"]


@pytest.fixture
def swept(record):
    """A function from {method: validation accuracy of task a} to records of three seeds; test runs the other way."""

    def make(validation, losses=None, seeds=(0, 1, 2)):
        runs = []
        for method, value in validation.items():
            for seed in seeds:
                noise = 0.001 * seed
                run = record(method, seed, {"a/accuracy": 1 - value + noise, "b/mae": 1.0 + noise})
                loss = (losses or {}).get(method, 1.0)
                run.metrics["validation"] = {"a/accuracy": value + noise, "b/mae": 1.0 + noise, "loss": loss}
                runs.append(run)
        return runs

    return make


def scored(runs, **options):
    return summarize(runs, sweep=POINTS, **options)


def test_validation_chooses_and_test_reports(swept):
    runs = swept({"single-task": 0.5, "joint": 0.6, "MGDA": 0.9, POINTS[1]: 0.8, POINTS[2]: 0.7})
    summary = scored(runs)
    # the highest on validation, though the lowest of the three on test
    assert summary.sweep.chosen == POINTS[1]
    assert [method.name for method in summary.methods] == ["single-task", "joint", CHOSEN, "MGDA"]
    chosen, point = summary.methods[2], summary.sweep.points[1]
    assert chosen.figures == point.figures and chosen.figures["a/accuracy"].mean == pytest.approx(0.201)
    assert chosen.deltas == point.deltas and chosen.deltas["delta_m_metrics"].mean is not None
    assert [p.name for p in summary.sweep.points] == POINTS
    assert "Δm" in summary.sweep.by and "single-task" in summary.sweep.by


def test_equal_scores_are_told_apart_by_the_loss(swept):
    same = dict.fromkeys(["single-task", *POINTS], 0.7)
    assert scored(swept(same, {POINTS[0]: 0.9, POINTS[2]: 0.8})).sweep.chosen == POINTS[2]
    assert scored(swept(same)).sweep.chosen == "joint"  # the plain sum where nothing tells them apart


def test_without_a_baseline_the_loss_chooses(swept):
    runs = swept(dict.fromkeys(POINTS, 0.7) | {POINTS[1]: 0.9}, {POINTS[2]: 0.5})
    summary = scored(runs)
    assert summary.sweep.chosen == POINTS[2] and summary.sweep.by == "mean total loss"


def test_only_weights_that_finished_every_seed_are_chosen(swept):
    runs = swept({"single-task": 0.5, "joint": 0.6, POINTS[1]: 0.8, POINTS[2]: 0.7})
    missing = next(run for run in runs if run.method == POINTS[1] and run.seed == 2)
    missing.state, missing.metrics, missing.error = "failed", {}, "out of luck"
    summary = scored(runs)
    assert summary.sweep.chosen == POINTS[2] and summary.unfinished == [missing]
    assert "out of luck" in page.html(summary)
    nothing = summarize([*swept({"single-task": 0.5, "MGDA": 0.6}), missing], sweep=POINTS)
    assert nothing.sweep.chosen is None and [m.name for m in nothing.methods] == ["single-task", "MGDA"]
    assert "the sweep is not complete" in " ".join(tables.notes(nothing))


@pytest.mark.parametrize("state", ["running", "missing"])
def test_nothing_is_chosen_before_the_sweep_is_complete(swept, state):
    runs = swept({"single-task": 0.5, "joint": 0.6, POINTS[1]: 0.8, POINTS[2]: 0.7})
    if state == "running":
        runs[-1].state, runs[-1].metrics = "running", {}
    else:
        runs = [run for run in runs if run.method != POINTS[2]]
    summary = scored(runs)
    assert summary.sweep.chosen is None and CHOSEN not in [method.name for method in summary.methods]
    assert "the sweep is not complete" in " ".join(tables.notes(summary))


def test_weights_that_diverge_are_not_chosen(swept):
    runs = swept({"single-task": 0.5, "joint": 0.6, POINTS[1]: float("nan"), POINTS[2]: 0.7})
    summary = scored(runs)
    assert summary.sweep.chosen == POINTS[2] and "Δm" in summary.sweep.by


def test_ranks_and_runs_count_nothing_twice(swept):
    runs = swept({"single-task": 0.5, "joint": 0.6, "MGDA": 0.9, POINTS[1]: 0.8, POINTS[2]: 0.7})
    summary = scored(runs)
    assert len(summary.runs) == len(runs) == 15 and summary.seeds == [0, 1, 2]
    assert sorted(method.rank for method in summary.methods)[-1] <= 4
    assert all(point.rank is None for point in summary.sweep.points[1:])


def test_every_point_is_in_the_page_the_csv_and_the_markdown(swept, tmp_path):
    runs = swept({"single-task": 0.5, "joint": 0.6, "MGDA": 0.9, POINTS[1]: 0.8, POINTS[2]: 0.7})
    path = reports.write(runs, tmp_path, sweep=POINTS)
    text, rows = path.read_text(), list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    for point in POINTS[1:]:
        assert point in text and f"| {point} |" in (tmp_path / "table.md").read_text()
    assert [row["method"] for row in rows] == ["single-task", "joint", CHOSEN, "MGDA", *POINTS[1:]]
    assert [row["method"] for row in rows if row["sweep_chosen"] == "True"] == [POINTS[1]]
    assert 'id="sweep"' in text and "15 of 15 finished" in text
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(reports.terminal_table(runs, sweep=POINTS))
    printed = " ".join(console.file.getvalue().split())
    assert f"{CHOSEN} on validation data: {POINTS[1]}" in printed and POINTS[2] not in printed


def test_the_trade_off_shows_all_points(swept):
    runs = swept({"single-task": 0.5, "joint": 0.6, "MGDA": 0.9, POINTS[1]: 0.8, POINTS[2]: 0.7})
    (chart,) = (chart for chart in plots.charts(scored(runs)) if chart.key == "tradeoff")
    crosses = chart.data[0]
    assert crosses["name"] == "fixed weights" and crosses["text"] == POINTS and "method" not in crosses.get("meta", {})
    assert "fixed weights" in chart.description
    (plain,) = (c for c in plots.charts(summarize(runs)) if c.key == "tradeoff")
    assert plain.data[0]["name"] != "fixed weights"
