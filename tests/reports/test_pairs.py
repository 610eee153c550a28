"""Heat maps of affinities and cosines, for runs whose history has them."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
from tests.reports.conftest import record, task

from polytask import reports
from polytask.reports import page, pairs
from polytask.reports.pairs import Unit, heat_map, pair_charts
from polytask.reports.summary import summarize
from polytask.studies.pairs import Mean


def run(folder, seed, names, figure, epochs=3):
    """A run with affinities `figure(i, j, epoch)` and cosines twice that; its second epoch has none."""
    columns = [f"affinity/{a}/{b}" for a in names for b in names if a != b]
    columns += [f"cosine/{a}/{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    place = folder / f"seed-{seed}"
    place.mkdir(parents=True)
    with (place / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["epoch", "phase", "validation/loss", *(f"validation/{n}/accuracy" for n in names), *columns, "seconds"]
        )
        for epoch in range(epochs):
            values = []
            for kind, a, b in (column.split("/") for column in columns):
                value = figure(names.index(a), names.index(b), epoch) * (2 if kind == "cosine" else 1)
                values.append("" if epoch == 1 else value)
            writer.writerow([epoch + 1, "joint", 1.0, *(0.5 for _ in names), *values, 0.1])
    figures = {f"{name}/accuracy": 0.5 for name in names}
    made = record("joint", seed, figures, [task(name) for name in names])
    made.folder = place
    return made


def test_a_run_with_such_columns_has_a_heat_map_of_their_means(tmp_path):
    names = ["left", "<i>right&", "middle"]
    runs = [run(tmp_path, seed, names, lambda i, j, epoch, s=seed: 0.01 * (i - j) * (1 + epoch) + s) for seed in (0, 1)]
    drawn = {chart.key: chart for chart in pair_charts(summarize(runs))}
    # the three pairs of cosines have lines, the six of affinities too
    assert set(drawn) == {"pairs-affinity-0", "pair-lines-affinity-0", "pairs-cosine-0", "pair-lines-cosine-0"}
    chart = drawn["pairs-affinity-0"]
    (heat,) = chart.data
    # epochs 1 and 3 of both seeds: 100 (0.01 (i - j) (1 + 3) / 2 + 0.5) %
    assert heat["z"][0] == [None, 48.0, 46.0] and heat["z"][2][0] == 54.0
    assert heat["text"][0] == ["", "(48)", "(46)"]  # one seed has 100 % more than the other
    assert heat["customdata"][0][1] == " ± 50 % (standard error)"
    assert heat["zmid"] == 0 and heat["zmin"] == -heat["zmax"] == -8 * 50.0
    assert chart.layout["xaxis"]["ticktext"][1] == "&lt;i&gt;right&amp;"
    cosine = drawn["pairs-cosine-0"].data[0]
    assert cosine["z"][0][1] == cosine["z"][1][0] and cosine["zmax"] == 1
    line = drawn["pair-lines-affinity-0"].data[0]
    assert line["x"] == [1, 3] and line["y"] == [49.0, 47.0]
    text = reports.write(runs, tmp_path / "out").read_text()
    assert pairs.SECTION in text and 'id="pairs-affinity-0"' in text


def test_many_tasks_have_no_lines_and_scroll_where_it_is_narrow(tmp_path):
    names = [f"task-{i}" for i in range(8)]
    runs = [run(tmp_path, 0, names, lambda i, j, epoch: (i - j) / 1e5)]
    drawn = pair_charts(summarize(runs))
    assert [chart.key for chart in drawn] == ["pairs-affinity-0", "pairs-cosine-0"]
    assert "min-width:522px" in page.figure(drawn[0]) and "scrolls sideways" in page.figure(drawn[0])
    assert drawn[0].title == "joint: affinity, ppm"
    other = replace(run(tmp_path / "other", 0, names, lambda i, j, epoch: 0.0), method="other")
    reports.write([*runs, other], tmp_path / "out")  # pandas warns of tables with more than 100 columns


def test_runs_without_such_columns_have_none(study):
    assert pair_charts(summarize(study)) == []


@pytest.mark.parametrize(
    ("kind", "values", "value", "text"),
    [
        ("cosine", [0.5, -1.0], -0.104, "−0.10"),
        ("cosine", [0.5], -0.001, "0.00"),
        ("affinity", [0.5], 0.123, "12 %"),
        ("affinity", [0.03, -0.01], -0.012, "−1.2 %"),
        ("affinity", [0.001], 0.001, "0.10 %"),
        ("affinity", [0.0005], -0.0005, "−500 ppm"),
        ("affinity", [0.0], 0.0, "0.0 ppm"),
    ],
)
def test_figures_are_printed_in_a_unit_that_suits_the_largest(kind, values, value, text):
    assert Unit.of(kind, values).text(value) == text


def test_missing_pairs_are_blank():
    chart = heat_map("key", "title", "affinity", {"a": {"b": Mean(0.1, 0.01, 0.02)}, "b": {}})
    assert chart.data[0]["text"] == [["", "10"], ["", ""]]
    assert chart.data[0]["z"][1] == [None, None] and math.isclose(chart.data[0]["zmax"], 10)


@pytest.mark.parametrize(
    ("value", "error", "reach", "text", "zmax"),
    [
        (0.1, 0.01, 0.02, "10", 10.0),
        (0.01, 0.01, 0.02, "(1.0)", 8.0),  # noise: at an eighth of the range, nearly white
        (-0.3, 0.05, 0.6, "(−30)", 40.0),
        (2e-4, 1e-5, 2e-5, "200", 200.0),  # small but clear
        (2e-4, math.nan, math.nan, "200", 1000.0),  # nothing is known of the noise
        (0.0, 0.0, 0.0, "(0.0)", 1000.0),
    ],
)
def test_what_may_be_noise_is_in_brackets_and_pale(value, error, reach, text, zmax):
    figure = Mean(value, error, reach)
    noise = {"a": {"b": figure}, "b": {"a": figure}}
    (heat,) = heat_map("key", "title", "affinity", noise).data
    assert heat["text"][0][1] == text and heat["zmax"] == pytest.approx(zmax) == -heat["zmin"]
    assert text in pairs.pairs_text(noise)
    assert heat_map("key", "title", "cosine", noise).data[0]["zmax"] == 1


def test_the_epochs_of_lines_are_whole(tmp_path):
    runs = [run(tmp_path, 0, ["a", "b"], lambda i, j, epoch: 0.1)]
    axes = [c.layout["xaxis"] for c in pair_charts(summarize(runs)) if c.key.startswith("pair-lines")]
    assert axes and all(axis["dtick"] == 1 for axis in axes)
