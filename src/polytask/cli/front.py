"""``polytask front``: one run per preference vector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.cli.compare import first_failure
from polytask.cli.printing import console
from polytask.cli.session import SOME_FAILED, refuse
from polytask.cli.words import configured

if TYPE_CHECKING:
    from polytask.studies.front import Front

HELP = (
    "The file of a front holds these settings, seeds: [0, 1, 2], and front: how the preference vectors are chosen and "
    "who is given them. --seeds takes a list such as 0,1,2. The same command goes on with what a killed one left."
)


def front_command(words: list[str]) -> int:
    """train one network per preference vector, and draw the front: CONFIG.yaml [--out FOLDER] [--jobs N] [...]"""
    from polytask.studies.front import SECTIONS, front, plan
    from polytask.studies.spec import dump

    given = configured(
        "front", words, ("--out", "--jobs", "--seeds"), ("--overwrite", "--print_config"),
        sections=SECTIONS, epilog=HELP,
    )  # fmt: skip
    seeds = given.numbers("--seeds")
    if "--print_config" in given.options:
        made = plan(given.config, given.overrides, seeds)
        print(dump({"seeds": made.seeds, "vectors": made.vectors, "runs": made.configs}), end="")
        return 0
    found = front(
        given.config, overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs"),
        seeds=seeds, overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return report_on_front(found, title=Path(given.config).stem)


def report_on_front(found: Front, title: str) -> int:
    from polytask import reports

    failed = found.failed
    if len(failed) == len(found.points):
        return refuse(f"no run came to an end; {first_failure(failed)}")
    console().print(reports.front_terminal(found))
    print(f"report: {reports.write_front(found, title=title)}")
    if failed:
        count = f"{len(failed)} of {len(found.points)} runs failed"
        print(f"polytask: {count}; {first_failure(failed)}", file=sys.stderr)
    return SOME_FAILED if failed else 0
