"""``polytask group``: which tasks should share a trunk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polytask.cli.compare import report_on_runs
from polytask.cli.words import configured

if TYPE_CHECKING:
    from polytask.studies.grouping import Study

HELP = (
    "Trains all tasks together and measures whether a step for one helps the others, suggests at most --groups groups "
    "of tasks with a trunk each (2 if not given), and trains that beside all together and each alone. The file holds "
    "these settings and may hold seeds: [0, 1, 2]; its model must be HardSharing. --every N looks at every Nth step, "
    "10 if not given. The same command goes on with what a killed one left."
)


def group_command(words: list[str]) -> int:
    """find out which tasks should share a trunk, and train that: CONFIG.yaml [--groups N] [--out FOLDER] [...]"""
    given = configured(
        "group", words, ("--out", "--jobs", "--seeds", "--groups", "--every"), ("--overwrite",), epilog=HELP
    )
    from polytask.studies.grouping import group

    groups, every = given.number("--groups"), given.number("--every")
    study = group(
        given.config, groups=2 if groups is None else groups, every=10 if every is None else every,
        overrides=given.overrides, folder=given.folder(), jobs=given.number("--jobs"),
        seeds=given.numbers("--seeds"), overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return report_on_groups(study, title=Path(given.config).stem)


def report_on_groups(study: Study, title: str) -> int:
    from polytask import reports
    from polytask.studies.grouping import in_words, remarks

    print(f"{reports.pairs_text(study.noise)}\n\nsuggested: {in_words(study.grouping)}")
    print("".join(f"- {sentence}\n" for sentence in remarks(study)))
    return report_on_runs(study.comparison, lambda: reports.write_grouping(study, title))
