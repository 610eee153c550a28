"""Reports: a comparison as tables, charts and one page that needs no network."""

from polytask.reports.page import write
from polytask.reports.plots import learning_curves_png
from polytask.reports.summary import summarize
from polytask.reports.tables import markdown, terminal_table

__all__ = ["learning_curves_png", "markdown", "summarize", "terminal_table", "write"]
