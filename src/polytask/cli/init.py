"""``polytask init``: a first configuration for a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polytask.cli.printing import console
from polytask.cli.words import parsed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from polytask.studies.first import First


def init_command(words: list[str]) -> int:
    """write a first configuration for your own table: DATA.csv --targets A B [--out FIRST.yaml] [--overwrite]"""
    given = parsed("init", init_command.__doc__, words, None, _init_options)
    from polytask.studies.first import first_config

    made = first_config(
        given.data, given.targets, given.out, id=given.id, group=given.group, split=given.split,
        missing=given.missing, encoding=given.encoding, separator=given.separator, decimal=given.decimal,
        overwrite=given.overwrite,
    )  # fmt: skip
    _print_uses(made)
    for note in made.notes:
        print(f"note: {note}")
    print(f"{made.path} written: {made.rows:,} rows, of {made.width} numbers each once encoded. Next:")
    print(f"  polytask train {made.path} --epochs 3")
    print(f"  polytask compare {made.path} --methods UPGrad --seeds 0,1,2")
    print(f"  polytask predict runs/{made.path.stem}/UPGrad/seed-0 new.csv --out predictions.csv")
    print(f"  # runs/{made.path.stem}: the one run of `polytask train`")
    return 0


def _init_options(parser: ArgumentParser) -> None:
    parser.add_argument("data", type=str, help="the table: .csv, .tsv, .txt or .parquet")
    parser.add_argument("--targets", type=str, nargs="+", required=True, help="the columns to predict")
    parser.add_argument("--out", type=str | None, default=None, help="the file to write; beside the table if not given")
    parser.add_argument("--id", type=str | None, default=None, help="a column that names rows")
    parser.add_argument("--group", type=str | None, default=None, help="a column whose equal entries stay together")
    parser.add_argument("--split", type=str | None, default=None, help="a column of train, validation and test")
    parser.add_argument("--missing", type=str, nargs="+", default=[], help="entries that stand for nothing")
    parser.add_argument("--encoding", type=str, default="utf-8", help="of the text")
    parser.add_argument("--separator", type=str, default=",", help="what stands between entries")
    parser.add_argument("--decimal", type=str, default=".", help="what stands before decimals: . or ,")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _print_uses(made: First) -> None:
    """What `init` took each column for."""
    from rich.table import Table

    table = Table("column", "use", "kind", "different", "missing", "filled with")
    for use in made.uses:
        absent = use.column.rows - use.column.given
        name = "".join(mark if mark.isprintable() else " " for mark in use.column.name)
        kind = use.kind + ", of numbers and text" * (use.role == "input" and bool(use.column.mixed))
        missing = f"{absent:,}" if absent else ""
        table.add_row(_plain(name), use.role, _plain(kind), f"{use.column.distinct:,}", missing, use.fill)
    console().print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a column may be called [red]
