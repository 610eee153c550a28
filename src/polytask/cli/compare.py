"""``polytask compare``: several methods with several seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.cli.printing import console
from polytask.cli.session import SOME_FAILED, refuse
from polytask.cli.words import configured

if TYPE_CHECKING:
    from polytask.studies.compare import Comparison
    from polytask.studies.store import RunRecord

HELP = (
    "The file of a comparison holds these settings as defaults, and besides: methods: {name: the settings it "
    "changes}; seeds: [0, 1, 2]; baseline: the method that others are measured against. methods may also be a list of "
    "the names that `polytask methods` prints, or of the groups all, aggregation and scalarization, and --methods "
    "MGDA UPGrad takes its place (a file without methods will do). Listed methods are compared with single-task "
    "training, the plain sum and fixed weights: as many vectors as methods, or --weights of them. --seeds takes a list "
    "such as 0,1,2. Settings given on the command line hold for every method."
)


def compare_command(words: list[str]) -> int:
    """train several methods with several seeds and report: CONFIG.yaml [--methods NAME ...] [--jobs N] [...]"""
    given = configured(
        "compare", words, ("--out", "--jobs", "--seeds", "--weights"), ("--overwrite", "--print_config"),
        listed="--methods", epilog=HELP,
    )  # fmt: skip
    from polytask.studies.compare import compare, plan
    from polytask.studies.spec import dump

    seeds, weights = given.numbers("--seeds"), given.number("--weights")
    methods = given.options["--methods"].splitlines() if "--methods" in given.options else None
    if "--print_config" in given.options:
        made = plan(given.config, given.overrides, seeds, methods, weights)
        print(dump({"seeds": made.seeds, "baseline": made.baseline, "methods": made.methods}), end="")
        return 0
    comparison = compare(
        given.config, overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs"), seeds=seeds,
        methods=methods, weights=weights, overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return report_on_comparison(comparison, title=Path(given.config).stem)


def report_on_comparison(comparison: Comparison, title: str) -> int:
    from polytask import reports

    return report_on_runs(
        comparison,
        lambda: reports.write(
            comparison.records, comparison.folder, baseline=comparison.baseline, sweep=comparison.sweep, title=title
        ),
    )


def report_on_runs(comparison: Comparison, write: Callable[[], Path]) -> int:
    """The table of a comparison and its report, which `write` makes."""
    from polytask import reports

    failed = comparison.failed
    if len(failed) == len(comparison.records):
        return refuse(f"no run came to an end; {first_failure(failed)}")
    console().print(reports.terminal_table(comparison.records, comparison.baseline, sweep=comparison.sweep))
    print(f"report: {write()}")
    if failed:
        count = f"{len(failed)} of {len(comparison.records)} runs failed"
        print(f"polytask: {count}; {first_failure(failed)}", file=sys.stderr)
    return SOME_FAILED if failed else 0


def first_failure(failed: Sequence[RunRecord]) -> str:
    return f"{failed[0].method}, seed {failed[0].seed}: {failed[0].error}"
