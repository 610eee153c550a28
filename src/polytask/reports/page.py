"""The comparison as one HTML page that needs no network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from polytask.reports.chart import Chart, page_json
from polytask.reports.colours import style
from polytask.reports.method import Method
from polytask.reports.pairs import INTRODUCTION, SECTION, pair_charts
from polytask.reports.plots import charts
from polytask.reports.summary import Summary, summarize
from polytask.reports.sweep import CHOSEN
from polytask.reports.tables import (
    MARKS,
    NOTHING,
    Cell,
    Column,
    budget_table,
    can_judge,
    cost_columns,
    csv_text,
    figure_columns,
    markdown,
    names,
    notes,
    phase_table,
    sweep_table,
    unfinished,
)
from polytask.reports.words import config_of, data_of, duration, period, plural
from polytask.studies.store import RunRecord

# even a mistake in the page cannot reach out: the browser is told to load nothing
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

_INTRODUCTIONS = {
    "Results": "Large marks are means over seeds with one standard deviation either way; small dots are runs.",
    "Trade-off": "Large marks are means over seeds with one standard deviation either way; small marks are runs.",
    "Learning curves": "Thick lines are means over seeds, up to the last epoch that all seeds reached; thin lines "
    "are runs. Figures are taken at each epoch's end.",
    "Decision regions": "Colour is the prediction over the plane, dots are test points in the colour of their "
    "target (for two classes: purple 1, green 0, the paler the less certain), so a dot that stands out is a "
    "mistake. Of each {noun}, the first seed that has them.",
    SECTION: INTRODUCTION,
}

_OF_ONE_SEED = {
    "Results": "One mark a {noun}, of its one run.",
    "Trade-off": "One mark a {noun}, of its one run.",
    "Learning curves": "Figures are taken at each epoch's end.",
}


def write(
    records: Sequence[RunRecord],
    folder: str | Path,
    *,
    baseline: str | None = None,
    reference: str | None = None,
    sweep: Sequence[str] = (),
    title: str | None = None,
    extra: str = "",
    more: Sequence[Chart] = (),
    stages: bool = False,
) -> Path:
    """Writes ``report.html``, ``table.csv`` and ``table.md``, each complete or not at all.

    Args:
        records: the runs; see `polytask.reports.summary.summarize`.
        folder: where to; made if need be.
        baseline: the single-task method of Δm; None looks for one called ``single-task``.
        reference: the method that verdicts compare with; None looks for one called ``joint``.
        sweep: the methods that are fixed weights, of which the table shows the chosen ones.
        title: the page's heading.
        extra: sections of HTML for the page alone, put first.
        more: the charts that have their places (`figure`) in `extra`.
        stages: whether the methods are stages of one another, see `polytask.reports.summary.Summary`.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: the records cannot be compared.
    """
    summary = summarize(records, baseline, reference, sweep, stages=stages)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_file(target / "table.csv", csv_text(summary))
    write_file(target / "table.md", markdown(records, baseline, reference, sweep, stages=stages))
    write_file(target / "report.html", html(summary, title, extra, more))
    return target / "report.html"


def html(summary: Summary, title: str | None = None, extra: str = "", more: Sequence[Chart] = ()) -> str:
    """The page of a comparison, complete with plotly.js.

    Args:
        summary: see `polytask.reports.summary.summarize`.
        title: its heading; None makes one from the methods.
        extra: sections of HTML, put first.
        more: the charts that have their places in `extra`.
    """
    heading = title or _title(summary)
    drawn = [*charts(summary), *pair_charts(summary)]
    body = "\n".join([
        f"<header><h1>{escape(heading)}</h1>{_compared(summary)}</header>",
        "<main>",
        extra,
        _tables(summary),
        _failures(summary),
        legend(names(summary), drawn, f"{summary.noun.capitalize()}s"),
        *_sections(drawn, summary),
        _notes(summary),
        _settings(summary),
        "</main>",
    ])  # fmt: skip
    return document(heading, body, [*more, *drawn])


def document(heading: str, body: str, drawn: Sequence[Chart]) -> str:
    """A whole page that needs no network.

    Args:
        heading: its title, as plain text.
        body: HTML with a place for every chart, see `figure`.
        drawn: the charts.
    """
    return "\n".join([
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(heading)}</title>",
        f"<style>{_asset('page.css')}</style>",
        "</head>",
        f"<body>{body}{_scripts(drawn)}</body>",
        "</html>\n",
    ])  # fmt: skip


def _scripts(drawn: Sequence[Chart]) -> str:
    if not drawn:
        return ""
    from plotly.offline import get_plotlyjs

    data = f'<script type="application/json" id="charts">{page_json(drawn)}</script>'
    return f"{data}<script>{get_plotlyjs()}</script><script>{_asset('page.js')}</script>"


def _asset(name: str) -> str:
    return (resources.files("polytask.reports") / name).read_text(encoding="utf-8")


def write_file(path: Path, text: str) -> None:
    """Writes a file, complete or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _title(summary: Summary) -> str:
    tasks = [task["name"] for task in summary.tasks]
    on = " and ".join(tasks) if 0 < len(tasks) <= 2 else plural(len(tasks), "task")
    if len(summary.methods) == 1:
        return f"{summary.methods[0].name} on {on}"
    return f"{len(summary.methods)} {summary.noun}s on {on}"


def _compared(summary: Summary) -> str:
    """The list of what was compared: tasks, data, seeds, epochs, budget."""
    runs = summary.runs
    done = [run for run in runs if run.state == "done"]
    facts = [("Tasks", ", ".join(_task(task) for task in summary.tasks) or "none recorded")]
    data = dict.fromkeys(text for run in runs if (text := data_of(run)))
    if data:
        facts.append(("Data", "; ".join(data)))
    if len(summary.methods) > 1:
        facts.append((f"{summary.noun.capitalize()}s", f"{len(summary.methods)}{_roles(summary)}"))
    facts.append(("Seeds", ", ".join(map(str, summary.seeds))))
    state = f"{len(done)} of {len(runs)} finished"
    facts.append(("Runs", state))
    if done:
        epochs = sorted({run.epochs for run in done if run.epochs}) or [0]  # what was made of another run has none
        early = sum(bool(run.stopped) for run in done)
        span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
        facts.append(("Epochs trained", span + (f" ({early} of {len(done)} runs stopped early)" if early else "")))
        facts.append(("Training time", f"{duration(sum(run.seconds for run in done))} over the finished runs"))
    return f'<dl class="facts">{facts_list(facts)}</dl>'


def facts_list(facts: Sequence[tuple[str, str]]) -> str:
    """Names and what is to be said of each, for a ``<dl>``."""

    def wide(text: str) -> str:
        return ' class="wide"' if len(text) > 70 else ""

    return "".join(f"<div{wide(t)}><dt>{escape(n)}</dt><dd>{escape(t)}</dd></div>" for n, t in facts)


def prose(text: str) -> str:
    """A sentence as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _roles(summary: Summary) -> str:
    roles = [f"Δm baseline: {summary.baseline}"] if summary.baseline else []
    roles += [f"compared with: {summary.reference}"] if summary.reference else []
    return f" ({'; '.join(roles)})" if roles else ""


def _task(task: dict[str, Any]) -> str:
    weight = task.get("weight", 1.0)
    suffix = "" if weight == 1.0 else f", weight {weight:g}"
    return f"{task['name']} ({task.get('kind', 'task')}, {task['metric']}{suffix})"


def _tables(summary: Summary) -> str:
    rows = names(summary)
    several = len(summary.methods) > 1
    title = f"{summary.split.capitalize()} figures"
    figures = _table("Figures", "figures", rows, figure_columns(summary), summary)
    costs = _table("Costs", "costs", rows, cost_columns(summary), summary)
    by_phase = phase_table(summary)
    phases = f"<h3>By phase</h3>{_table('Costs by phase', 'phase-costs', *by_phase, summary)}" if by_phase[0] else ""
    at_budget = budget_table(summary)
    budgets = (
        '<section aria-labelledby="h-budget"><h2 id="h-budget">At equal budgets</h2><p class="hint">Validation figures '
        "of the best epoch, by validation loss, within the same number of epochs and of training seconds.</p>"
        f"{_table('At equal budgets', 'budgets', *at_budget, summary)}</section>"
        if at_budget[0]
        else ""
    )
    marks = _marks(summary.reference) if summary.reference and several and can_judge(summary) else ""
    points = sweep_table(summary)
    hint = (
        '<p class="hint">Joint training with fixed task weights; validation data choose. The rule is under Notes.</p>'
    )
    fixed = f"<h3>Fixed weights</h3>{hint}{_table('Fixed weights', 'sweep', *points, summary)}" if points[0] else ""
    return (
        f'<section aria-labelledby="h-figures"><h2 id="h-figures">{title}</h2>{figures}{marks}{fixed}</section>'
        f'<section aria-labelledby="h-costs"><h2 id="h-costs">Costs</h2>{costs}{phases}</section>'
        f"{budgets}"
    )


def _marks(reference: str) -> str:
    return (
        '<p class="hint"><span class="better">▲</span> better, <span class="worse">▼</span> worse than '
        f"{escape(reference)} (in Δm: than the baseline) by more than the seeds’ spread; no mark: no difference "
        "beyond it. The rule is under Notes.</p>"
    )


def _table(caption: str, key: str, rows: Sequence[str], columns: Sequence[Column], summary: Summary) -> str:
    heads = "".join(
        f'<th scope="col"{_side(c)}>{escape(c.heading)}<small>{escape(c.note)}</small></th>' for c in columns
    )
    order = {method.name: i for i, method in enumerate(summary.methods)}
    body = "".join(
        f"<tr>{_row_head(name, order.get(name))}{''.join(_td(c.cells[i], _side(c)) for c in columns)}</tr>"
        for i, name in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}, scrolls sideways">'
        f'<table id="{key}"><caption class="hidden">{caption}</caption>'
        f'<thead><tr><th scope="col">{summary.noun}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row_head(name: str, number: int | None) -> str:
    mark = "" if number is None else chip(number)
    return f'<th scope="row"><span class="name">{mark}<span>{escape(name)}</span></span></th>'


def chip(number: int) -> str:
    """The mark by which the charts know method `number`."""
    colour, dash, _ = style(number)
    pattern = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}[dash]
    return (
        '<svg class="chip" width="22" height="10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="22" y2="5" stroke="{colour}" stroke-width="4" stroke-dasharray="{pattern}"/></svg>'
    )


def _side(column: Column) -> str:
    return ' class="text"' if column.text else ""


def _td(cell: Cell, side: str = "") -> str:
    mark = ""
    if cell.verdict:
        mark = f' <span class="{cell.verdict}" role="img" aria-label="{cell.verdict}">{MARKS[cell.verdict]}</span>'
    title = f' title="{escape(cell.reason)}"' if cell.reason else ""
    return f"<td{side}{title}>{escape(cell.text)}{mark}</td>"


def _failures(summary: Summary) -> str:
    if not summary.unfinished:
        return ""
    items = "".join(f"<li>{escape(unfinished(run))}</li>" for run in summary.unfinished)
    return (
        '<section class="warning" aria-labelledby="h-failed"><h2 id="h-failed">Runs without figures</h2>'
        f"<ul>{items}</ul></section>"
    )


def legend(methods: Sequence[str], drawn: Sequence[Chart], what: str = "Methods") -> str:
    """One legend for all charts, whose entries switch a method off and on in every one of them."""
    if not drawn:
        return ""
    empty = "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>"
    if len(methods) < 2:
        return empty
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-method="{i}">{chip(i)}<span>{escape(name)}</span></button>'
        for i, name in enumerate(methods)
    )
    label = f'<span class="label">{what} in the charts</span>'
    return f'{empty}<div class="legend" role="group" aria-label="{what} in the charts">{label}{buttons}</div>'


def _sections(drawn: Sequence[Chart], summary: Summary) -> Iterable[str]:
    for section in dict.fromkeys(chart.section for chart in drawn):
        key = "h-" + section.lower().replace(" ", "-")
        shown = [chart for chart in drawn if chart.section == section]
        switch = _SWITCH if section == "Learning curves" else ""
        stripes = "<p class='hint stripes' hidden></p>" if section == "Learning curves" else ""
        yield (
            f'<section aria-labelledby="{key}"><h2 id="{key}">{section}</h2>'
            f'<p class="hint">{_introduction(section, summary)}</p>{stripes}{switch}'
            f'<div class="charts{" small" if section == "Decision regions" else ""}">'
            f"{''.join(map(figure, shown))}</div></section>"
        )


def _introduction(section: str, summary: Summary) -> str:
    """What a section shows, in other words where no method has runs of more than one seed."""
    several = any(len(method.done) > 1 for method in summary.methods)
    told = _INTRODUCTIONS[section] if several else _OF_ONE_SEED.get(section, _INTRODUCTIONS[section])
    return told.replace("{noun}", summary.noun)


_SWITCH = (
    '<div class="switch" role="group" aria-label="Horizontal axis">'
    '<button type="button" aria-pressed="true" data-axis="epochs">over epochs</button>'
    '<button type="button" aria-pressed="false" data-axis="seconds">over training seconds</button></div>'
)


def figure(chart: Chart) -> str:
    """The place of a chart."""
    classes = ' class="wide"' if chart.wide else ""
    method = "" if chart.method is None else f' data-only="{chart.method}"'
    least = f";min-width:{chart.least}px" if chart.least else ""
    place = (
        f'<div class="chart" id="{chart.key}" role="img" aria-label="{escape(chart.description)}" '
        f'style="height:{chart.height}px{least}"></div>'
    )
    if chart.least:
        label = f"{escape(chart.title)}, scrolls sideways"
        place = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{place}</div>'
    return f"<figure{classes}{method}><figcaption>{escape(chart.title)}</figcaption>{place}</figure>"


def _notes(summary: Summary) -> str:
    items = "".join(f"<li>{prose(note)}</li>" for note in notes(summary))
    return f'<section aria-labelledby="h-notes"><h2 id="h-notes">Notes</h2><ul class="notes">{items}</ul></section>'


def _settings(summary: Summary) -> str:
    runs = summary.runs
    keys = dict.fromkeys(key for run in runs for key in run.versions)
    facts = [(key, ", ".join(dict.fromkeys(str(r.versions[key]) for r in runs if key in r.versions))) for key in keys]
    started = [run.started for run in runs if run.started]
    if started:
        facts.append(("started (UTC)", period(started)))
    configs = "".join(_details(method) for method in summary.every)
    return (
        '<section aria-labelledby="h-settings"><h2 id="h-settings">Settings</h2>'
        f'<dl class="facts">{facts_list(facts)}</dl>{_every_run(summary)}{configs}</section>'
    )


def _details(method: Method) -> str:
    run = next((run for run in method.runs if config_of(run)), None)
    if run is None:
        return ""
    label = f"Settings of {method.name}, seed {run.seed}"
    return f"<details><summary>{escape(label)}</summary><pre tabindex='0'>{escape(config_of(run))}</pre></details>"


def _trained(run: RunRecord) -> list[str]:
    """Epochs, the epoch kept, seconds."""
    if not run.epochs:  # it was made of another one, or failed at once
        return [NOTHING] * 3
    return [str(run.epochs), str(run.selected_epoch), f"{run.seconds:.1f}"]


def _every_run(summary: Summary) -> str:
    metrics = [figure.key for figure in summary.metrics]
    heads = [summary.noun, "seed", "state", *metrics, "epochs", "epoch kept", "seconds", "ended"]
    rows: list[list[str]] = []
    for method in summary.every:
        for run in method.runs if summary.sweep is None or method.name != CHOSEN else ():
            values = run.metrics.get(summary.split, {})
            shown = [NOTHING if values.get(key) is None else f"{values[key]:.5g}" for key in metrics]
            rows.append([
                method.name, str(run.seed), run.state, *shown, *_trained(run), run.stopped or run.error or NOTHING,
            ])  # fmt: skip
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f"<details><summary>Every run ({len(rows)})</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Every run, scrolls sideways">'
        f'<table id="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )
