"""Comparisons: several methods, several seeds, one budget."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.errors import in_words, nearest, whole
from polytask.studies import spec
from polytask.studies.executors import Job, run_all
from polytask.studies.methods import (
    FEWEST_WEIGHTS,
    SAME_AS_JOINT,
    SAME_AS_SINGLE,
    check_kept,
    companions,
    pick,
    plain,
    read_methods,
    sweep,
)  # fmt: skip
from polytask.studies.network import check_network, splits_of
from polytask.studies.run_folder import check_same, finished
from polytask.studies.store import RunRecord, described, probe, read_record, read_study, safe_names, write_text

logger = logging.getLogger("polytask")

FORMAT = 1
COMPARE_KEYS = (*spec.TRAIN_KEYS, "methods", "seeds", "baseline", "weights")


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        records: one per method and seed, in the order of the configuration.
        folder: where it is stored.
        baseline: the method that others are measured against, None if none is named.
        sweep: the methods among which fixed weights are chosen, the plain sum first; empty if they are not
            swept.
    """

    records: list[RunRecord]
    folder: Path
    baseline: str | None = None
    sweep: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[RunRecord]:
        """The runs that failed."""
        return [record for record in self.records if record.state == "failed"]


@dataclass
class Plan:
    """A comparison's configuration, checked.

    Attributes:
        methods: {method: its resolved configuration, without a seed of its own}.
        seeds: the seeds of every method.
        baseline: a method's name, or None.
        folders: {method: its folder's name}.
        sweep: the methods that are fixed weights, the plain sum first.
    """

    methods: dict[str, spec.Config]
    seeds: list[int]
    baseline: str | None = None
    folders: dict[str, str] = field(default_factory=dict)
    sweep: list[str] = field(default_factory=list)

    def jobs(self, folder: Path) -> Iterator[Job]:
        """The runs, every method's first seed first: early results then tell about all methods."""
        for seed in self.seeds:
            for method, config in self.methods.items():
                place = folder / self.folders[method] / f"seed-{seed}"
                yield Job(method, {**config, "seed": seed}, place)


def plan(
    config: Mapping[str, Any] | str | Path,
    overrides: spec.Overrides = (),
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | str | None = None,
    weights: int | None = None,
) -> Plan:
    """Checks a comparison's configuration and completes each method's.

    Args:
        config: the keys of a train configuration, as defaults, and ``methods``, ``seeds``: a list,
            ``baseline``: a method's name, ``weights``: a number. ``methods`` is {name: what it changes}, laid
            over the defaults as `polytask.studies.spec.merge` says and taken as it is; or a list, see
            `polytask.studies.methods.read_methods`. What a list names is always compared with single-task
            training, the plain sum (``joint``) and fixed weights: as many vectors as methods are listed, at
            least 5, or ``weights`` of them, with the same epochs and seeds. Given with a mapping, ``weights``
            adds the same.
        overrides: values that win over every method's.
        seeds: in place of the configuration's.
        methods: a list in place of the configuration's ``methods``, from which it may name some; a train
            configuration can so be compared.
        weights: in place of the configuration's.

    Raises:
        ValueError: an unknown key, class, method or baseline, no method, no seed or one twice, or whatever a
            method's objects refuse; the message names the method.
    """
    content = spec.read_config(config)
    for key in content:
        if key not in COMPARE_KEYS:
            raise ValueError(f"unknown key `{key}`: {nearest(str(key), COMPARE_KEYS)}")
    own, baseline = content.pop("methods", None), content.pop("baseline", None)
    stored = content.pop("weights", None)
    count = stored if weights is None else weights
    chosen = content.pop("seeds", [content.get("seed", 0)])
    chosen = checked_seeds(chosen if seeds is None else seeds)
    changes = _changes(own, methods)
    listed = methods is not None or not isinstance(own, Mapping) or count is not None
    beside = companions(content, changes) if listed else {}
    named = {name: _method(name, content, change, overrides) for name, change in (beside | changes).items()}
    if listed and baseline is None:
        baseline = next(name for name in named if plain(name) in SAME_AS_SINGLE)
    if baseline is not None and baseline not in named:
        raise ValueError(f"`baseline` must name a method, found `{baseline}`: {nearest(str(baseline), named)}")
    swept = _swept(named, len(changes), count, content, overrides) if listed else {}
    every = named | {name: config for name, config in swept.items() if name not in named}
    return Plan(every, chosen, baseline, safe_names(every), list(swept))


def _changes(own: Any, methods: Sequence[str] | str | None) -> dict[str, Any]:
    """{method: what it changes}, of the configuration, or those of a list that may name some of them."""
    if not own and methods is None:
        raise ValueError("a comparison must have `methods`: names, or {name: what it changes}, found none")
    changes = read_methods(own) if own else {}
    if methods is None:
        return changes
    chosen = pick([methods] if isinstance(methods, str) else methods, changes)
    kept = {name: change for name, change in changes.items() if plain(name) in (*SAME_AS_SINGLE, *SAME_AS_JOINT)}
    return {**kept, **chosen}


def _swept(
    named: Mapping[str, spec.Config], listed: int, count: int | None, base: spec.Config, overrides: spec.Overrides
) -> dict[str, spec.Config]:
    """Fixed weights, the plain sum first: {method: its configuration}."""
    number = max(FEWEST_WEIGHTS, listed) if count is None else count
    whole("weights", number, 1)
    joint = next(name for name in named if plain(name) in SAME_AS_JOINT)
    trainer = spec.build(named[joint]).trainer
    changes = sweep(list(trainer.tasks), list(trainer.objectives), number)
    return {joint: named[joint]} | {name: _method(name, base, change, overrides) for name, change in changes.items()}


def compare(
    config: Mapping[str, Any] | str | Path,
    *,
    overrides: spec.Overrides = (),
    folder: str | Path | None = None,
    jobs: int | None = None,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | str | None = None,
    weights: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Comparison:
    """Trains every method with every seed and gathers the records.

    Finished runs found in `folder` are not repeated and interrupted ones go on, so a killed comparison is
    continued by the same call. A run whose stored configuration differs from what is asked for now is
    refused, before anything is trained, unless `overwrite`.

    Args:
        config: see `plan`; a mapping or the path of a YAML file.
        overrides: values that win over every method's, such as ``{"epochs": 3}``.
        folder: where to store it; ``runs/<name of the file>`` if None.
        jobs: parallel processes; as many as processors if None.
        seeds: in place of the configuration's.
        methods: names of balancers and schedules, ``"all"``, ``"aggregation"`` or ``"scalarization"``, in
            place of the configuration's methods; see `plan`.
        weights: how many vectors of fixed weights stand beside listed methods.
        overwrite: repeat runs whose configuration has changed.
        progress: show how it goes.

    Raises:
        ValueError: a wrong configuration, or a folder that holds runs of another one.
        FileNotFoundError: no such file.
        OSError: the folder cannot be written.
        StudyInterrupted: Ctrl-C or SIGTERM; a `KeyboardInterrupt`.

    >>> study = compare("examples/digits.yaml", folder="runs/digits")  # doctest: +SKIP
    >>> [record.metrics["test"]["left/accuracy"] for record in study.records]  # doctest: +SKIP
    """
    made = plan(config, overrides, seeds, methods, weights)
    target = spec.folder_of(config, folder, "comparison")
    todo = list(made.jobs(target))
    check_ready(todo, target, overwrite)
    _write(made, target)
    records = run_all(todo, jobs=jobs, overwrite=overwrite, progress=progress)
    order = {method: index for index, method in enumerate(made.methods)}
    records.sort(key=lambda record: (order[record.method], made.seeds.index(record.seed)))
    return Comparison(records, target, made.baseline, made.sweep)


def read_comparison(folder: str | Path) -> Comparison:
    """A study as it stands on disk: the runs its last call asked for, finished or not.

    Args:
        folder: a study folder, or a run folder, or any folder above such.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: ``study.json`` or a record is damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"a study folder must exist, found no folder {root}")
    path = root / "study.json"
    if path.is_file():
        baseline, swept, places = _read(path)
        found = [read_record(place) for place in places if (place / "run.json").is_file()]
    else:
        baseline, swept, found = None, [], read_study(root)
    if not found:
        raise FileNotFoundError(f"a study folder must hold at least one run, found none in {root}")
    return Comparison(found, root, baseline, swept)


def _method(name: str, base: spec.Config, change: Any, overrides: spec.Overrides) -> spec.Config:
    try:
        if change is not None and not isinstance(change, Mapping):
            raise ValueError(f"it must be a mapping of what it changes, found {change!r}")
        resolved = spec.resolve(spec.merge(base, change or {}), overrides)
        check_kept(name, resolved)
        devices, nodes = resolved["trainer"]["devices"], resolved["trainer"]["nodes"]
        if devices not in (None, 1) or nodes != 1:
            raise ValueError(
                f"a run of a comparison must have one device, found `devices` = {devices} and `nodes` = {nodes}: a "
                "comparison spreads its runs over processes instead (`jobs`)"
            )
        spec.build(resolved)  # what its classes refuse is told before anything is written
    except Exception as error:  # a user's own class may raise anything
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"method `{name}`: {in_words(error)}") from error
    return resolved


def check_ready(todo: Sequence[Job], folder: Path, overwrite: bool) -> None:
    """Tells before anything is trained what would stop a study: other runs in its folders, missing data, no access."""
    for job in todo if not overwrite else ():
        check_same(job.folder, job.config)
    _check_data(job for job in todo if not finished(job.folder))
    probe(folder)


def _check_data(todo: Iterable[Job]) -> None:
    """Loads every data set once, so that missing files are told before anything is written."""
    known: list[Any] = []
    for job in todo:
        if job.config["data"] not in known:
            known.append(job.config["data"])
            built = spec.build(job.config)
            check_network(built, splits_of(built))


def checked_seeds(seeds: Any) -> list[int]:
    """The seeds of a study; raises `ValueError` unless they are different whole numbers of at least 0."""
    if not isinstance(seeds, Sequence) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise ValueError(f"`seeds` must be a list of at least one whole number, each at least 0, found {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be different, found {list(seeds)}")
    return list(seeds)


def _write(made: Plan, folder: Path) -> None:
    content = {
        "format": FORMAT, "baseline": made.baseline, "seeds": made.seeds, "methods": made.folders,
        "sweep": made.sweep,
    }  # fmt: skip
    write_text(folder / "study.json", json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> tuple[str | None, list[str], list[Path]]:
    with described(path, FORMAT) as content:
        places = [
            path.parent / folder / f"seed-{seed}" for folder in content["methods"].values() for seed in content["seeds"]
        ]
        return content["baseline"], list(content.get("sweep", [])), places  # of version 0.1.0 without a sweep
