"""A study of `polytask.studies.group` as a page: affinities, the suggested grouping, and what came of it."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from statistics import fmean

from polytask.reports import page
from polytask.reports.pairs import ABOUT_AFFINITY, BRACKETS, Unit, heat_map
from polytask.reports.sparse import Table, section
from polytask.reports.tables import NOTHING
from polytask.studies.grouping import ALONE, SINGLE, TOGETHER, Study, in_words, remarks

_NOTE = (
    "Expected: the mean affinity of the other tasks of its group towards a task, that is by what part of itself a step "
    "for one of them lowered its loss; a task alone has none. Measured: by what part the validation loss of the "
    "weights that were kept, as a mean over seeds, lies below that of single-task training (below 0: above it). The "
    "two are measures of one step and of a whole training: their order and signs may agree, their sizes need not."
)


def write_grouping(study: Study, title: str | None = None) -> Path:
    """Writes ``report.html``, ``table.csv`` and ``table.md`` into the study's folder.

    Args:
        study: a finished study.
        title: the page's heading.

    Returns:
        The path of ``report.html``.
    """
    chart = heat_map("affinity", "all tasks together: affinity", "affinity", study.noise)
    extra = _verdict(study, page.figure(chart)) + section(gains(study))
    comparison = study.comparison
    return page.write(
        comparison.records, study.folder, baseline=comparison.baseline, reference=TOGETHER, title=title, extra=extra,
        more=[chart],
    )  # fmt: skip


def gains(study: Study) -> Table:
    """Every task's expected gains, together and in its group, and those that were measured."""
    made = study.grouping
    unit = Unit.of("affinity", [*made.together.values(), *made.gains.values()])
    group_of = {task: group for group in made.groups for task in group}
    measured = {name: _measured(study, name) for name in (TOGETHER, made.method)}
    rows = [
        (
            task, ", ".join(group_of[task]), _expected(unit, made.together[task]), _expected(unit, made.gains[task]),
            *(NOTHING if (value := found.get(task)) is None else _share(value) for found in measured.values()),
        )
        for task in made.gains
    ]  # fmt: skip
    head = ("task", "group", "expected, together", "expected, grouped", "measured, together", "measured, grouped")
    if len(measured) == 1:  # what was suggested is to train all together
        head = head[:-1]
    return Table("gains", "Expected and measured gains", head, rows, [_NOTE])


def _expected(unit: Unit, value: float) -> str:
    return NOTHING if value == ALONE else unit.text(value)


def _share(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")


def _measured(study: Study, method: str) -> dict[str, float]:
    """{task: by what part its validation loss lies below that of single-task training}."""
    records = study.comparison.records
    losses = {
        name: [record.metrics["validation"] for record in records if record.method == name and record.state == "done"]
        for name in (SINGLE, method)
    }
    if not all(losses.values()):
        return {}
    means = {
        name: {task: fmean(figures[f"{task}/loss"] for figures in found) for task in study.grouping.gains}
        for name, found in losses.items()
    }
    return {task: 1 - means[method][task] / base for task, base in means[SINGLE].items() if base}


def _verdict(study: Study, chart: str) -> str:
    made = study.grouping
    count = len(made.groups)
    networks = "one network" if count == 1 else f"{count} networks"
    how = "the best" if made.exact else "a good one (there are too many to look at all)"
    said = "".join(f"<li>{_code(escape(sentence))}</li>" for sentence in remarks(study))
    return (
        '<section aria-labelledby="h-grouping"><h2 id="h-grouping">Which tasks belong together</h2>'
        f"<p>Suggested: <strong>{escape(in_words(made))}</strong> ({networks}), {how} of the groupings that were "
        f"allowed.</p><ul>{said}</ul>"
        f'<p class="hint">{ABOUT_AFFINITY} Means over the epochs of one run of all tasks together. {BRACKETS}</p>'
        f'<div class="charts" style="max-width:720px">{chart}</div></section>'
    )


def _code(text: str) -> str:
    """Names in backticks as the page writes them."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
