"""``polytask report``: about any study that is on disk."""

from __future__ import annotations

from pathlib import Path

from polytask.cli.compare import report_on_comparison
from polytask.cli.front import report_on_front
from polytask.cli.group import report_on_groups
from polytask.cli.sparsify import report_on_sparsified, report_on_sparsified_seeds
from polytask.cli.words import parsed


def report_command(words: list[str]) -> int:
    """tables, charts and a page about finished runs: FOLDER"""
    from polytask.studies.compare import read_comparison

    given = parsed("report", report_command.__doc__, words, read_comparison)
    from polytask.studies.front import is_front, read_front
    from polytask.studies.grouping import is_grouping, read_grouping
    from polytask.studies.sparsify import is_sparsified, read_sparsified

    if is_grouping(given.folder):
        return report_on_groups(read_grouping(given.folder), title=Path(given.folder).resolve().name)
    if is_front(given.folder):
        return report_on_front(read_front(given.folder), title=Path(given.folder).resolve().name)
    from polytask.studies.sparsify_seeds import has_sparsified_seeds, read_sparsified_seeds

    if has_sparsified_seeds(given.folder):
        return report_on_sparsified_seeds(read_sparsified_seeds(given.folder), title=Path(given.folder).resolve().name)
    if is_sparsified(given.folder):
        return report_on_sparsified(read_sparsified(given.folder), title=Path(given.folder).resolve().name)
    return report_on_comparison(read_comparison(given.folder), title=Path(given.folder).resolve().name)
