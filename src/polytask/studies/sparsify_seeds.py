"""Sparse networks from several seeds: the study of `polytask.studies.sparsify`, once a seed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polytask.studies import spec
from polytask.studies.compare import checked_seeds
from polytask.studies.executors import ORPHAN_SECONDS, Job, run_all
from polytask.studies.machine import threads
from polytask.studies.run_folder import check_same
from polytask.studies.sparsify import RECORD, SEEDS, SEEDS_KEY, Sparsified, plan, prepare, read_sparsified, sparsify
from polytask.studies.stages import Stages
from polytask.studies.store import RunRecord, probe, write_text

logger = logging.getLogger("polytask")

FORMAT = 1
TRAINED = ("search", "retrain")
"""The stages that take epochs."""


@dataclass
class SparsifiedSeeds:
    """What the studies of several seeds found.

    Attributes:
        folder: where they are stored, each in ``seed-<n>``.
        seeds: those that were asked for.
        studies: {seed: its study}, of those that came to an end, in the order of `seeds`.
        unfinished: {seed: why it has none}.
    """

    folder: Path
    seeds: list[int]
    studies: dict[int, Sparsified]
    unfinished: dict[int, str] = field(default_factory=dict)

    @property
    def records(self) -> list[RunRecord]:
        """The runs of all studies: search, retraining and compact network of each."""
        return [record for study in self.studies.values() for record in study.records]

    @property
    def missed(self) -> list[int]:
        """Seeds of which no epoch of the search was sparse enough."""
        return [seed for seed, study in self.studies.items() if not study.reached]


@dataclass
class SeedsPlan:
    """A configuration of several seeds, checked: {seed: the resolved configuration of its study}."""

    configs: dict[int, spec.Config]

    def jobs(self, folder: Path) -> Iterator[Job]:
        """One study a seed."""
        for seed, config in self.configs.items():
            yield Job("sparsify", config, folder / f"seed-{seed}", make=_carry_out, stages=TRAINED)


def plan_seeds(
    config: Mapping[str, Any] | str | Path, overrides: spec.Overrides = (), seeds: Sequence[int] | None = None
) -> SeedsPlan:
    """Checks a configuration and completes that of each seed. No data are read.

    Args:
        config: as for `polytask.studies.sparsify.plan`, and ``seeds``: a list.
        overrides: values that win over the configuration's.
        seeds: in place of the configuration's.

    Raises:
        ValueError: an unknown key or class, a value out of range, no seed, or one twice.
    """
    content = spec.read_config(config)
    stored = content.pop(SEEDS_KEY, None)
    chosen = checked_seeds(stored if seeds is None else seeds)
    base = plan(content, overrides).config
    return SeedsPlan({seed: plan(base | {"seed": seed}).config for seed in chosen})


def sparsify_seeds(
    config: Mapping[str, Any] | str | Path,
    *,
    seeds: Sequence[int] | None = None,
    overrides: spec.Overrides = (),
    folder: str | Path | None = None,
    jobs: int | None = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> SparsifiedSeeds:
    """Makes the whole study of `polytask.studies.sparsify` once a seed, each in a folder ``seed-<n>`` of its own.

    A finished study is not repeated, and a killed one goes on where it was, so the same call continues; more seeds can
    be asked for later. A seed whose study breaks is told in `SparsifiedSeeds.unfinished` and does not stop the others.

    Args:
        config: as for `sparsify`, and ``seeds``: a list.
        seeds: in place of the configuration's.
        overrides: values that win over the configuration's.
        folder: where to store them; ``runs/<name of the file>`` if None.
        jobs: parallel processes, as many as processors if None. More than one make the latencies less certain: each
            is measured beside the others' training.
        overwrite: start afresh where a seed's folder holds a study of another configuration.
        progress: show how it goes.

    Raises:
        ValueError: a wrong configuration, no seed, more sparsity than the caps allow, or a folder that holds another
            study.
        FileNotFoundError: no such file, or the data set's files are missing.
        OSError: the folder cannot be written.
        StudyInterrupted: Ctrl-C or SIGTERM; a `KeyboardInterrupt`.

    >>> found = sparsify_seeds("examples/sparsify_digits.yaml", seeds=[0, 1, 2])  # doctest: +SKIP
    >>> [study.report["after"]["parameters"] for study in found.studies.values()]  # doctest: +SKIP
    """
    made = plan_seeds(config, overrides, seeds)
    target = spec.folder_of(config, folder, "sparsified")
    todo = list(made.jobs(target))
    _check(todo, target, overwrite)
    write_text(target / SEEDS, json.dumps({"format": FORMAT, "seeds": list(made.configs)}, indent=2) + "\n")
    records = run_all(todo, jobs=jobs, overwrite=overwrite, progress=progress)
    found = read_sparsified_seeds(target)
    told = {record.seed: record.error for record in records if record.state == "failed"}
    return replace(found, unfinished=found.unfinished | told)


def read_sparsified_seeds(folder: str | Path) -> SparsifiedSeeds:
    """The studies of several seeds as they stand on disk.

    Raises:
        FileNotFoundError: there are none.
        ValueError: their files are damaged.
    """
    root = Path(folder)
    path = root / SEEDS
    if not path.is_file():
        raise FileNotFoundError(f"studies of several seeds must have {SEEDS}, found none in {root}")
    try:
        content = json.loads(path.read_text())
        if content["format"] > FORMAT:
            raise ValueError("it is of a newer format")
        seeds = checked_seeds(content["seeds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must list the seeds of a study, found a damaged file ({error})") from error
    places = {seed: root / f"seed-{seed}" for seed in seeds}
    done = {seed: read_sparsified(place) for seed, place in places.items() if (place / RECORD).is_file()}
    unfinished = {seed: "not finished: the command that began it goes on" for seed in seeds if seed not in done}
    return SparsifiedSeeds(root, seeds, done, unfinished)


def has_sparsified_seeds(folder: str | Path) -> bool:
    """Whether a folder holds studies of several seeds."""
    return (Path(folder) / SEEDS).is_file()


def _check(todo: Sequence[Job], folder: Path, overwrite: bool) -> None:
    """Tells what would stop the studies before anything is trained or written."""
    if any((folder / name).exists() for name in (RECORD, *TRAINED)):
        raise ValueError(f"{folder} must hold no study of one seed, found one: choose another output folder (--out)")
    for job in todo if not overwrite else ():
        check_same(job.folder, job.config)
    for job in todo:
        if not (job.folder / RECORD).is_file():
            with threads(job.config["threads"]):
                prepare(Stages(plan(job.config), job.folder, progress=False))
            break  # the others differ in their seeds alone
    probe(folder)


def _carry_out(job: Job, overwrite: bool) -> RunRecord:
    """One seed's study; its record tells the compact network's figures and what all stages took."""
    logger.info("seed %d, in %s", job.config["seed"], job.folder)
    study = sparsify(job.config, folder=job.folder, overwrite=overwrite, progress=False, wait=ORPHAN_SECONDS)
    trained = study.records[: len(TRAINED)]
    return replace(
        study.compact, method=job.method, epochs=sum(record.epochs for record in trained),
        seconds=sum(record.seconds for record in trained), folder=job.folder,
    )  # fmt: skip
