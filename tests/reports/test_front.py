"""A front's report: complete, escaped, honest, and drawn in a real browser."""

import csv
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from tests.reports.test_page import DRAWN, OUTSIDE, Tags, browser, show  # noqa: F401 (a fixture)

from polytask import reports
from polytask.reports import front as report
from polytask.reports.chart import page_json
from polytask.reports.front_charts import front_charts, staircase
from polytask.studies.front import Front
from polytask.studies.front_view import KINDS, Point
from polytask.studies.pareto import hypervolume, simplex_grid
from polytask.studies.store import write_record

GAIN = {"Chebyshev": 0.05, "Linear": 0.0}


@pytest.fixture
def made(record, task, tmp_path):
    """Makes fronts on a circle's arc, the first sweep `gain` further out; objectives after two have no metric."""

    def front(objectives=("left <b>", "right"), seeds=(0, 1, 2), gain=0.05, noise=0.001):
        names = list(objectives)
        tasks = [task(name) for name in names[:2]]
        points = []
        for sweep, more in (("Chebyshev", gain), ("Linear", 0.0)):
            for seed in seeds:
                for number, vector in enumerate(simplex_grid(names, 4)):
                    values = {name: (0.8 + more + noise * seed) * vector[name] ** 0.5 for name in names}
                    figures = {f"{name}/accuracy": value for name, value in values.items() if name in names[:2]}
                    figures |= {f"{name}/loss": 1 - value for name, value in values.items() if name in names[:2]}
                    figures |= {f"{name}/value": 1 - value for name, value in values.items() if name in names[2:]}
                    run = record(f"{sweep} {number}", seed, figures, tasks)
                    run.metrics["validation"] = dict(figures)
                    run.folder = tmp_path / sweep / str(number) / f"seed-{seed}"
                    run.folder.mkdir(parents=True, exist_ok=True)
                    write_record(run, run.folder)
                    points.append(Point(sweep, seed, vector, run))
        return Front(points, names, list(GAIN), list(seeds), tmp_path)

    return front


def test_write_makes_four_files(made, tmp_path):
    path = reports.write_front(made(), tmp_path / "out", title="A <title>")
    assert sorted(file.name for file in path.parent.iterdir()) == ["front.csv", "front.md", "front.png", "report.html"]
    assert "<title>A &lt;title&gt;</title>" in path.read_text()
    assert (tmp_path / "out" / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_self_contained_and_escaped(made):
    text = report.front_html(made())
    assert not OUTSIDE.search(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    parsed = Tags(text)
    assert not any(tag in ("b", "i", "iframe", "base") for tag, _ in parsed.tags)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "left <b>" in parsed.text and "Reference point by metric: " in parsed.text


@pytest.mark.parametrize(("objectives", "charts"), [(("a", "b"), 2), (("a", "b", "sparsity"), 8)])
def test_every_chart_tells_vector_and_figures_of_each_run(made, objectives, charts):
    """Two objectives: one chart a split; three: parallel coordinates and three pairs a split."""
    front = made(objectives, seeds=(0,))
    drawn = front_charts([front.view(kind) for kind in KINDS], front.sweeps)
    assert len(drawn) == 2 * charts and len({chart.key for chart in drawn}) == len(drawn)
    assert json.loads(page_json(drawn)).keys() == {chart.key for chart in drawn}
    for chart in drawn:
        texts = {text for trace in chart.data for text in trace.get("text", ())}
        assert len(texts) == len(front.points)
        assert all("preference: a 0" in text or "preference: a 1" in text for text in texts)
        assert all("test, b: accuracy" in text for text in texts)


def test_the_stairs_bound_the_hypervolume(made):
    """The area between the stairs and the reference point is the hypervolume, whichever way is better."""
    front = made(("a", "b"), seeds=(0,))
    for view in (front.view(kind) for kind in KINDS):
        for curve in view.curves:
            corners = np.array(staircase(curve, view, "test"))
            x, y = corners.T
            area = abs(np.trapezoid(y - view.reference[1], x))
            assert area == pytest.approx(curve.volumes["test"])
            rows = curve.values["test"][np.array(curve.chosen)]
            maximise = [axis.maximise for axis in view.axes]
            assert area == pytest.approx(hypervolume(rows, view.reference, maximise))


@pytest.mark.parametrize(
    ("seeds", "gain", "noise", "wanted"),
    [
        ((0, 1, 2), 0.05, 0.001, r"above Linear's by .* more than the spread of 3 seeds\."),
        ((0, 1, 2), -0.05, 0.001, r"below Linear's by .* more than the spread of 3 seeds\."),
        ((0, 1, 2), 0.001, 0.01, r"above Linear's by .* within the spread of 3 seeds: no difference is shown\."),
        ((0, 1), 0.05, 0.001, r"above Linear's by .*; 2 seeds can tell nothing about the spread\."),
        ((0,), 0.0, 0.0, r"Chebyshev and Linear have the same hypervolume"),
    ],
)
def test_the_verdict_says_no_more_than_the_spread_supports(made, seeds, gain, noise, wanted):
    front = made(seeds=seeds, gain=gain, noise=noise)
    lines = report.verdicts(front, [front.view(kind) for kind in KINDS])
    assert len(lines) == 4 and all(re.search(wanted, line) for line in lines)


def test_a_run_that_failed_takes_its_seed_out_of_the_comparison(made, tmp_path):
    front = made(seeds=(0, 1))
    front.points[0].record.state = "failed"
    front.points[0].record.error = "the <loss> is not finite"
    text = reports.write_front(front, tmp_path / "out").read_text()
    assert "Chebyshev 0, seed 0: failed: the &lt;loss&gt; is not finite" in text
    assert "1 seed can tell nothing" in text
    assert "4 of 4, 5 of 5" in text
    front = made(seeds=(0,))
    front.points[0].record.state = "failed"
    assert "no comparison, for no seed" in reports.front_markdown(front)


def test_csv_holds_every_run_at_full_precision(made):
    front = made(("a", "b"))
    rows = list(csv.DictReader(io.StringIO(report.csv_text(front, [front.view(kind) for kind in KINDS]))))
    assert len(rows) == len(front.points)
    assert float(rows[1]["preference/a"]) == 0.25
    assert float(rows[1]["test/a/accuracy"]) == front.points[1].record.metrics["test"]["a/accuracy"]
    assert {row["non_dominated/metric"] for row in rows} == {"True"}


def test_the_terminal_shows_hypervolumes_and_verdicts(made):
    console = Console(width=140, file=io.StringIO(), color_system=None)
    console.print(reports.front_terminal(made()))
    text = console.file.getvalue()
    assert "Chebyshev" in text and "By loss, on test: Chebyshev's hypervolume is above" in text


@pytest.mark.browser
@pytest.mark.parametrize("objectives", [("left", "right"), ("left", "right", "sparsity")])
def test_the_front_in_a_browser(made, tmp_path, browser, objectives):  # noqa: F811
    path = reports.write_front(made(objectives, seeds=(0, 1)), tmp_path / "out")
    for width in (390, 1280):
        show(browser, path, width)
        charts = browser.execute_script(DRAWN)
        assert len(charts) == (4 if len(objectives) == 2 else 16)
        assert all(wide > 100 and marks > 0 for _, wide, marks in charts), charts
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(overflow) <= 0
        assert browser.get_log("browser") == []
    shown = "return document.querySelectorAll('.chart')[0]._fullData.filter((t) => t.visible === true).length"
    before = browser.execute_script(shown)
    browser.find_element("css selector", "button[data-method='1']").click()
    assert browser.execute_script(shown) < before


def test_counts_and_budgets_are_told_over_the_seeds(made):
    front = made(seeds=(0, 1, 2))
    table = report.volume_table(front, [front.view(kind) for kind in KINDS])
    assert table.rows[0][-1] == "5.0 ± 0.0 of 5 (5, 5, 5)"
    (line,) = report.budget(front)
    assert line.startswith("Budget, 5 vectors and 3 seeds each: Chebyshev 15 runs, ") and "; Linear 15 runs, " in line
    assert line in report.front_markdown(front)
    front.sweeps.pop()
    assert report.budget(front) == []
