"""Reports: a comparison as tables, charts and one page that needs no network."""

from polytask.reports.curves import learning_curves_png
from polytask.reports.front import front_markdown, front_terminal, write_front
from polytask.reports.grouping import write_grouping
from polytask.reports.page import write
from polytask.reports.pairs import pairs_text
from polytask.reports.summary import summarize
from polytask.reports.tables import markdown, terminal_table

__all__ = [
    "front_markdown",
    "front_terminal",
    "learning_curves_png",
    "markdown",
    "pairs_text",
    "summarize",
    "terminal_table",
    "write",
    "write_front",
    "write_grouping",
]
