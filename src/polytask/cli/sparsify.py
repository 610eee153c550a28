"""``polytask sparsify``: from a dense network to a smaller one, with one seed or several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.cli.printing import console
from polytask.cli.session import NOT_REACHED, SOME_FAILED, refuse
from polytask.cli.words import Words, configured

if TYPE_CHECKING:
    from polytask.studies.sparsify import Sparsified
    from polytask.studies.sparsify_seeds import SparsifiedSeeds

HELP = (
    "The file of a study holds these settings; `epochs` are those of the search and the retraining together. Settings "
    "of the trainer that differ in either are given as sparsify.search and sparsify.retrain. The same command goes on "
    "with what a killed one left. Exit status 3: no epoch of the search was sparse enough. --seeds takes a list such "
    "as 0,1,2 (so does `seeds` in the file): the whole study once a seed, below one folder, with means and spreads. "
    "--jobs is how many at once, 1 if not given: latencies measured beside other work are less certain."
)


def sparsify_command(words: list[str]) -> int:
    """train a sparse network and make a smaller one of it: CONFIG.yaml [--seeds 0,1,2] [--out FOLDER] [...]"""
    from polytask.studies import spec
    from polytask.studies.sparsify import SECTION, SEEDS_KEY, plan, sparsify

    given = configured(
        "sparsify", words, ("--out", "--jobs", "--seeds"), ("--overwrite", "--print_config"),
        sections=SECTION, epilog=HELP,
    )  # fmt: skip
    if "--seeds" in given.options or SEEDS_KEY in spec.read_config(given.config):
        return _sparsify_seeds(given)
    if "--jobs" in given.options:
        raise ValueError("`--jobs` is for several seeds (`--seeds 0,1,2`), found one")
    if "--print_config" in given.options:
        print(spec.dump(plan(given.config, given.overrides).config), end="")
        return 0
    study = sparsify(
        given.config, overrides=given.overrides, folder=given.folder(), overwrite="--overwrite" in given.options
    )
    return report_on_sparsified(study, title=Path(given.config).stem)


def _sparsify_seeds(given: Words) -> int:
    from polytask.studies import spec
    from polytask.studies.sparsify_seeds import plan_seeds, sparsify_seeds

    seeds = given.numbers("--seeds")
    if "--print_config" in given.options:
        configs = plan_seeds(given.config, given.overrides, seeds).configs
        first = {key: value for key, value in next(iter(configs.values())).items() if key != "seed"}
        print(spec.dump({"seeds": list(configs)} | first), end="")
        return 0
    jobs = given.number("--jobs")
    found = sparsify_seeds(
        given.config, seeds=seeds, overrides=given.overrides, folder=given.folder(), jobs=1 if jobs is None else jobs,
        overwrite="--overwrite" in given.options,
    )  # fmt: skip
    return report_on_sparsified_seeds(found, title=Path(given.config).stem)


def report_on_sparsified(study: Sparsified, title: str) -> int:
    from polytask.reports import sparse

    console().print(sparse.terminal_table(study))
    print(f"report: {sparse.write(study, title=title)}")
    if study.exported is not None:
        print(f"exported: {study.exported}")
    if study.reached:
        return 0
    print(
        f"polytask: no epoch of the search had {study.wanted:.4g} of the rows dead; the sparsest was kept, with "
        f"{study.found:.4g}",
        file=sys.stderr,
    )
    return NOT_REACHED


def report_on_sparsified_seeds(found: SparsifiedSeeds, title: str) -> int:
    from polytask.reports import sparse_seeds

    told = "; ".join(f"seed {seed}: {reason}" for seed, reason in found.unfinished.items())
    if not found.studies:
        return refuse(f"no study came to an end; {told}")
    console().print(sparse_seeds.terminal_table(found))
    print(f"report: {sparse_seeds.write(found, title=title)}")
    if told:
        print(f"polytask: {len(found.unfinished)} of {len(found.seeds)} studies did not end; {told}", file=sys.stderr)
        return SOME_FAILED
    if found.missed:
        print(
            f"polytask: no epoch of the search was sparse enough with the seeds {found.missed}; the sparsest were kept",
            file=sys.stderr,
        )
    return NOT_REACHED if found.missed else 0
