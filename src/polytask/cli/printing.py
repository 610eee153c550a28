"""What commands print: on a terminal as wide as that, elsewhere in a fixed width."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def print_entry(name: str, summary: str, facts: Mapping[str, str]) -> None:
    """A name with its summary beside it, and below it what is known about it, a line each."""
    start = f"  {name:<20} "
    print(wrapped(summary, start))
    for what, text in facts.items():
        if text:
            print(wrapped(text, f"{'':<{len(start)}}{what} "))


def wrapped(text: str, start: str) -> str:
    """Text after `start`, broken at the terminal's width, at most 100 columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    return textwrap.fill(
        text, max(width, len(start) + 20), initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
