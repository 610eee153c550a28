"""The written files: complete, escaped, without a link to the outside; and the page in a real browser."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from polytask import reports
from polytask.reports import curves, page, plots, regions
from polytask.reports.chart import page_json, whole_step
from polytask.reports.colours import style
from polytask.reports.summary import summarize
from polytask.reports.words import in_words

OUTSIDE = re.compile(r"""(?:src|href|action|poster|data)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)


class Tags(HTMLParser):
    """Collects start tags and text, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def rendered(records, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(reports.terminal_table(records))
    return console.file.getvalue()


def test_write_makes_three_files_and_leaves_nothing_else(study, tmp_path):
    path = reports.write(study, tmp_path / "new" / "out", title="A <title>")
    assert path == tmp_path / "new" / "out" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "table.csv", "table.md"]
    assert "<title>A &lt;title&gt;</title>" in path.read_text()


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(study, tmp_path, monkeypatch):
    path = reports.write(study, tmp_path / "out")
    before = path.read_text()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        reports.write(study, tmp_path / "out", title="other")
    monkeypatch.undo()
    assert path.read_text() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "table.csv", "table.md"]


def test_page_is_self_contained_and_escaped(study):
    text = page.html(summarize(study))
    assert not OUTSIDE.search(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    parsed = Tags(text)
    assert not any(tag in ("b", "i", "iframe", "base") for tag, _ in parsed.tags)
    assert not any("src" in attributes for _, attributes in parsed.tags)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "alternate <b>&\"'|`*_</b>" in parsed.text
    assert "<i>right& (binary, accuracy)" in parsed.text
    assert text.count("plotly.js v") == 1
    assert "default-src 'none'" in text


def test_every_chart_has_a_description_and_data(study):
    drawn = plots.charts(summarize(study))
    content = json.loads(page_json(drawn))
    assert len({chart.key for chart in drawn}) == len(drawn)
    sections = [chart.section for chart in drawn]
    counts = {section: sections.count(section) for section in sections}
    # results: 2 tasks; curves: total, 2 metrics, 2 losses and the phases; regions: 3 methods × 2 tasks
    assert counts == {"Results": 2, "Trade-off": 1, "Learning curves": 6, "Decision regions": 6}
    assert all(chart.description and content[chart.key]["data"] for chart in drawn)


def test_a_method_has_one_colour_everywhere(study):
    seen = {}
    for chart in plots.charts(summarize(study)):
        for trace in chart.data:
            if "method" in trace.get("meta", {}):
                seen.setdefault(trace["meta"]["method"], set()).add(trace["marker"]["color"])
    assert len(seen) == 3
    assert all(len(colours) == 1 for colours in seen.values())
    assert len({style(i) for i in range(28)}) == 28


def test_a_single_run(study, tmp_path):
    run = study[-1]
    text = reports.write([run], tmp_path / "out").read_text()
    assert "mean rank" not in text
    drawn = plots.charts(summarize([run]))
    assert {chart.section for chart in drawn} == {"Learning curves", "Decision regions"}
    stripes = drawn[0].layout["meta"]["stripes"]
    assert [stripe["epochs"] for stripe in stripes] == [[2, 4], [6, 8], [10, 12]]
    assert stripes[0]["seconds"] == pytest.approx([0.2, 0.4])


def test_stages_are_not_set_against_each_other(study, tmp_path):
    runs = [replace(run, method=f"part {run.method[:3]}") for run in study]
    shown = Tags(reports.page.write(runs, tmp_path, stages=True).read_text().split("Settings of")[0])
    labels = [attrs["aria-label"] for _, attrs in shown.tags if "aria-label" in attrs]
    seen = " ".join([shown.text, *labels])
    assert "stages on" in seen and "Stages in the charts" in seen
    for text in (seen, (tmp_path / "table.md").read_text()):
        assert "stage" in text
        for word in ("equal budget", "Δm", "mean rank", "Mean rank", "method", "Method"):
            assert word not in text, word


def test_records_without_files_still_make_a_page(two, tmp_path):
    runs = [two("joint", 0, 0.5, 1.0), two("other", 0, 0, 0, state="failed", error="no <memory>")]
    text = reports.write(runs, tmp_path).read_text()
    assert "other, seed 0: failed: no &lt;memory&gt;" in text
    nothing = reports.write(runs[1:], tmp_path).read_text()
    assert "plotly" not in nothing


def test_three_tasks_and_one(record, tmp_path):
    for tasks in (("a", "b", "c"), ("a",)):
        figures = {"a/accuracy": 0.9, "b/mae": 1.0, "c/f1": 0.5}
        runs = [record(name, 0, figures, tasks) for name in ("x", "y")]
        assert all(chart.section != "Trade-off" for chart in plots.charts(summarize(runs)))
        reports.write(runs, tmp_path)


def test_regions_leave_out_missing_targets_and_grids_that_do_not_fit(study):
    summary = summarize(study)
    arrays = regions._arrays(study[0])
    arrays["targets_left"][:10] = float("nan")
    data, _ = regions._region(arrays, summary.tasks[0])
    assert len(data[1]["x"]) == 20
    assert regions._drawable(arrays, "left")
    assert not regions._drawable({**arrays, "left": arrays["left"][:3]}, "left")
    assert not regions._drawable(arrays, "x") and not regions._drawable({}, "left")


def test_thinning_keeps_the_extremes_of_an_alternating_line():
    values = [float(i % 2) for i in range(10_000)]
    kept = curves._thin(values, 100)
    assert len(kept) <= 110
    assert {values[i] for i in kept} == {0.0, 1.0}
    assert kept[0] == 0 and kept[-1] == 9_999


def test_means_end_where_the_first_seed_stops(study):
    tables = [study[0].history(), study[1].history().iloc[:5]]
    epochs, seconds, _ = curves._mean(tables, "validation/loss")
    assert list(epochs) == [1, 2, 3, 4, 5]
    assert seconds[-1] == pytest.approx(0.5)


def test_csv_and_markdown(two, tmp_path):
    runs = [two("single-task", seed, 0.5, 2.0) for seed in range(2)]
    runs += [two("a|b*", seed, 0.6, 3.0 + seed) for seed in range(2)]
    reports.write(runs, tmp_path)
    base, other = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert base["delta_m_metrics/mean"] == ""
    assert float(other["test/b/mae/std"]) == pytest.approx(0.5**0.5)
    assert float(other["delta_m_metrics/mean"]) == pytest.approx((-20 + 75) / 2)
    assert float(other["joint/memory"]) == 2048
    text = (tmp_path / "table.md").read_text()
    assert re.search(r"^\| a\\\|b\\\* \| 0\.6000 ± 0\.0000 \| 3\.50 ± 0\.71 \|", text, re.MULTILINE)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()[:4]}
    assert len(widths) == 1


def test_terminal_states_direction_marks_and_failures(two):
    means = {"joint": 0.5, "up": 0.9, "down": 0.1}
    runs = [two(name, seed, mean + seed / 1000, 1.0) for name, mean in means.items() for seed in range(3)]
    runs.append(two("down", 9, 0, 0, state="failed", error="boom"))
    text = rendered(runs)
    assert "higher is better" in text and "lower is better" in text
    assert re.search(r"up .*0\.901.*▲", text)
    assert re.search(r"down .*0\.101.*▼", text)
    assert "down, seed 9: failed: boom" in text
    assert "1.2 MiB" not in text and "2.0 KiB" in text
    assert "–" in text and "needs a single-task baseline" in " ".join(text.split())


def test_no_mark_within_the_spread(two):
    runs = [two(n, s, a + s / 10, 1.0) for n, a in (("joint", 0.5), ("up", 0.6)) for s in range(3)]
    table = rendered(runs).split("test data, mean")[0]
    assert "▲" not in table and "▼" not in table


def test_terminal_fits_its_width(record, task):
    tasks = [task(f"task-{k}") for k in range(10)]
    figures = {f"task-{k}/accuracy": 0.5 for k in range(10)}
    runs = [record("x" * 60, 0, figures, tasks), record("joint", 0, figures, tasks)]
    for width in (60, 80, 200):
        text = rendered(runs, width)
        assert max(map(len, text.splitlines())) <= width
        assert all(text.count(f"task-{k}") == text.count("task-0") for k in range(10))


def test_learning_curves_picture(study, tmp_path):
    path = reports.learning_curves_png(study, tmp_path / "curves.png", dpi=50)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_learning_curves_need_a_history(two, tmp_path):
    with pytest.raises(ValueError, match="found none"):
        reports.learning_curves_png([two("x", 0, 1, 1)], tmp_path / "x.png")


def test_ticks_of_epochs_are_whole_and_few(study):
    axes = [c.layout["xaxis"] for c in plots.charts(summarize(study)) if c.section == "Learning curves"]
    assert len(axes) == 6 and all(axis["title"]["text"] == "epoch" for axis in axes)
    assert {axis["dtick"] for axis in axes} == {2, 1}  # of 12 epochs; the phases have the page's whole width
    for width in (*range(1, 50), 99, 500, 1001):
        step = whole_step(width, 6)
        assert isinstance(step, int) and width / step <= 6
        assert step == 1 or width / step > 2  # no more than the next finer step of 1, 2, 5 would allow


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_page_speaks_of_a_spread_only_where_there_is_one(two, seeds):
    runs = [two(name, seed, 0.5 + seed / 10, 1.0) for name in ("single-task", "joint", "x") for seed in range(seeds)]
    for text in (Tags(page.html(summarize(runs))).text, rendered(runs)):
        said = " ".join(text.split())
        assert ("standard deviation" in said) == (seeds > 1)
        assert ("▲" in said) == (seeds == 3)
    assert ("takes at least 3 seeds" in Tags(page.html(summarize(runs))).text) == (seeds < 3)


def test_data_are_told_in_words(study):
    assert "Points: seed 7" in Tags(page.html(summarize(study))).text
    nested = {"class_path": "a.Both", "init_args": {"parts": [{"class_path": "b.One"}], "kinds": {"x": 1, "y": 2.5}}}
    assert in_words(nested) == "Both: parts (One); kinds (x 1; y 2.5)"
    assert (
        in_words({"columns": list("abcdefghij"), "empty": [], "none": None})
        == "columns a, b, c, d, e, f, g, and 3 more"
    )


def test_what_was_not_trained_has_dashes_for_its_training(two):
    runs = [two("search", 0, 0.5, 1.0), two("compact", 0, 0.5, 1.0, epochs=0, selected_epoch=0, seconds=0.0)]
    text = page.html(summarize(runs))
    row = re.search(r'<table id="runs">.*?>compact<(.*?)</tr>', text, re.DOTALL).group(1)
    assert re.findall(r"<td>(.*?)</td>", row)[-4:] == ["–"] * 4
    assert not re.search(r">\s*(?:None|nan)\b", text)


def test_the_picture_has_the_colours_of_the_page(study, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "_draw", lambda axes, found, *_: drawn.update({c.method.name: c.number for c in found}))
    order = [run for run in study if run.method != "joint"] + [run for run in study if run.method == "joint"]
    reports.learning_curves_png(order, tmp_path / "curves.png", baseline="single-task")
    lines = [t for c in plots.charts(summarize(order, "single-task")) if c.key == "curve-0" for t in c.data]
    assert {n: style(k)[0] for n, k in drawn.items()} == {
        method.name: next(t["line"]["color"] for t in lines if t["meta"]["method"] == number)
        for number, method in enumerate(summarize(order, "single-task").methods)
    }


@pytest.fixture
def browser(tmp_path):
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("opening the page needs chromium and chromedriver on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    quiet = ("background-networking", "component-update", "sync", "gpu")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    for flag in ("headless", "no-sandbox", "no-first-run", *(f"disable-{service}" for service in quiet)):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    yield opened
    opened.quit()


def show(browser, path, width):
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.drawn"))


DRAWN = """return [...document.querySelectorAll(".chart")].map((chart) => {
  const svg = chart.querySelector("svg.main-svg");
  const marks = [...chart.querySelectorAll(
    ".scatterlayer .trace path, .scatterlayer .trace .point, .barlayer path, .heatmaplayer image")];
  const sized = marks.filter((m) => { const r = m.getBoundingClientRect(); return r.width + r.height > 0; });
  return [chart.id, svg ? svg.getBoundingClientRect().width : 0, sized.length];
});"""


@pytest.mark.browser
def test_the_page_in_a_browser(study, tmp_path, browser):
    path = reports.write(study, tmp_path / "out")
    expected = {chart.key for chart in plots.charts(summarize(study))}
    for width in (390, 1280):
        show(browser, path, width)
        charts = browser.execute_script(DRAWN)
        assert {key for key, _, _ in charts} == expected
        assert all(wide > 100 and marks > 0 for _, wide, marks in charts), charts
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(overflow) <= 0
        assert browser.get_log("browser") == []


@pytest.mark.browser
def test_the_page_answers_to_its_buttons(study, tmp_path, browser):
    show(browser, reports.write(study, tmp_path / "out"), 1280)
    axis = "return document.getElementById('curve-0')._fullLayout.xaxis.title.text"
    shown = "return document.getElementById('curve-0')._fullData.filter((t) => t.visible === true).length"
    assert browser.execute_script(axis) == "epoch"
    assert browser.execute_script(shown) == 12
    ticks = "return document.getElementById('curve-0')._fullLayout.xaxis.dtick"
    assert browser.execute_script(ticks) == 2
    browser.execute_async_script(
        "const done = arguments[0], zoom = { 'xaxis.range[0]': 2, 'xaxis.range[1]': 5 };"
        "Plotly.relayout('curve-0', zoom).then(() => setTimeout(done, 50));"
    )
    assert browser.execute_script(ticks) == 1
    browser.find_element("css selector", "[data-axis=seconds]").click()
    assert browser.execute_script(axis) == "training seconds"
    assert max(browser.execute_script("return document.getElementById('curve-0')._fullData[0].x")) < 2
    browser.find_element("css selector", "button[data-method='1']").click()
    assert browser.execute_script(shown) == 8
    assert browser.execute_script("return document.getElementById('region-1-0').offsetParent") is None
    assert browser.get_log("browser") == []
