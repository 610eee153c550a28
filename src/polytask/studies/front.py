"""Pareto fronts: one run per preference vector, by one method and by plain weights, under one budget."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from polytask.balancing.base import Scalarizer
from polytask.errors import in_words, nearest, whole
from polytask.sparsity.rows import SUPPORTED, to_rows
from polytask.studies import spec
from polytask.studies.compare import check_ready, checked_seeds
from polytask.studies.executors import Job, run_all
from polytask.studies.front_view import KINDS, Point, View, view
from polytask.studies.pareto import Vector, check_vectors, read_vectors, simplex_grid
from polytask.studies.store import RunRecord, described, read_record, safe_names, write_text

FORMAT = 1
RECORD = "front.json"
TAKES = ("preference", "weights")
"""Arguments by which a scalarizer is given a vector, the first that it has."""
Reference = dict[str, dict[str, float]]


@dataclass(frozen=True)
class FrontSettings:
    """The section ``front`` of a configuration.

    Args:
        objectives: the names of the tasks and of the trainer's objectives, in the order of the vectors; None takes the
            tasks and then the objectives.
        divisions: the vectors are the points of the simplex whose entries are multiples of 1 / `divisions`, at least 1;
            10 gives 11 vectors for two objectives, 66 for three.
        least: shrinks that grid towards the centre so that no entry is below it; in [0, 1/K). At 0 its corners leave an
            objective, and a task's head, untrained; under `Chebyshev` small entries do too, for at 0.1 against 0.9 one
            loss may be nine times the other.
        vectors: in place of the grid: a list of preferences, or a JSON or CSV file, see
            `polytask.studies.pareto.read_vectors`.
        method: the scalarizer that is given each vector as its `preference` or its `weights`: a class, with arguments.
        against: a second one that is given the same vectors, with as many epochs; None for none.
        reference: {"metric" or "loss": the reference point of the hypervolume, {objective: value} or in their order};
            what is not given is set by the rule in `polytask.studies.front_view.default_reference`.
        warm_start: start each vector from the weights of its nearest neighbour among those done before, the most even
            one first. Every run still trains all epochs.
        keep_dead: rows that are zero in the weights a run starts from stay zero (`polytask.sparsity.KeepDead`); None:
            where the configuration has a `start` with such rows.
    """

    objectives: list[str] | None = None
    divisions: int = 10
    least: float = 0.1
    vectors: Any = None
    method: Any = "Chebyshev"
    against: Any = "Linear"
    reference: Any = None
    warm_start: bool = False
    keep_dead: bool | None = None


SECTIONS: spec.Sections = (("front", FrontSettings),)


@dataclass
class Front:
    """What a front study found.

    Attributes:
        points: one per sweep, seed and vector; runs that failed among them.
        objectives: their names, in the order of the vectors.
        sweeps: the method's name, then that of what it is set against.
        seeds: the seeds of every vector.
        folder: where it is stored.
        reference: reference points that were given, by kind of view.
        warm_start: whether runs started from their neighbours' weights.
    """

    points: list[Point]
    objectives: list[str]
    sweeps: list[str]
    seeds: list[int]
    folder: Path
    reference: Reference = field(default_factory=dict)
    warm_start: bool = False

    @property
    def failed(self) -> list[RunRecord]:
        """The runs that failed."""
        return [point.record for point in self.points if point.record.state == "failed"]

    def view(self, kind: str = "metric") -> View:
        """Non-dominated points and hypervolumes by ``metric`` or by ``loss``.

        Raises:
            ValueError: another kind, or no run has ended.
        """
        return view(self.points, self.objectives, self.sweeps, self.seeds, kind, self.reference.get(kind))


@dataclass
class Sweep:
    """A scalarizer that is given one vector after another.

    Attributes:
        name: the class's.
        class_path: the class.
        init_args: its arguments but one.
        takes: the argument that holds the vector.
    """

    name: str
    class_path: str
    init_args: dict[str, Any]
    takes: str

    def balancer(self, vector: Vector) -> spec.Config:
        """The configuration of the balancer with one vector."""
        return {"class_path": self.class_path, "init_args": {**self.init_args, self.takes: dict(vector)}}


@dataclass
class Plan:
    """A front's configuration, checked.

    Attributes:
        configs: {sweep: the resolved configuration of each vector, without a seed of its own}.
        vectors: the preferences.
        objectives: their names.
        seeds: the seeds of every vector.
        reference: reference points that are given.
        before: for each vector the number of the one it starts from, None if it starts as the configuration says; in
            the order in which they are to be run.
        warm_start: whether any starts from another.
    """

    configs: dict[str, list[spec.Config]]
    vectors: list[Vector]
    objectives: list[str]
    seeds: list[int]
    reference: Reference
    before: dict[int, int | None]
    warm_start: bool

    def folder(self, root: Path, sweep: str, number: int, seed: int) -> Path:
        """The run folder of a vector."""
        names = safe_names(text(vector, 9) for vector in self.vectors)
        return root / safe_names(self.configs)[sweep] / names[text(self.vectors[number], 9)] / f"seed-{seed}"

    def jobs(self, root: Path) -> Iterator[Job]:
        """The runs, every one after the one it starts from, both sweeps of a vector together."""
        for seed in self.seeds:
            for number, before in self.before.items():
                for sweep, configs in self.configs.items():
                    config = {**configs[number], "seed": seed}
                    after = None if before is None else self.folder(root, sweep, before, seed)
                    if after is not None:
                        config["start"] = str(after)
                    name = f"{sweep} {text(self.vectors[number])}"
                    yield Job(name, config, self.folder(root, sweep, number, seed), after)


def text(vector: Mapping[str, float], digits: int = 3) -> str:
    """A vector's numbers.

    >>> text({"left": 1 / 3, "right": 2 / 3})
    '0.333/0.667'
    """
    return "/".join(f"{value:.{digits}g}" for value in vector.values())


def plan(
    config: Mapping[str, Any] | str | Path, overrides: spec.Overrides = (), seeds: Sequence[int] | None = None
) -> Plan:
    """Checks a front's configuration and completes each vector's.

    Args:
        config: the keys of a train configuration, and ``front``: see `FrontSettings`; ``seeds``: a list.
        overrides: values that win, ``{"epochs": 3, "front.divisions": 4}``.
        seeds: in place of the configuration's.

    Raises:
        ValueError: an unknown key or class, a vector off the simplex or of another length, an unknown objective, a
            method that takes no vector, a reference point that does not fit, a `start` of another network.
        FileNotFoundError: a file of vectors or a folder to start from is missing.
    """
    content = {"front": {}} | spec.read_config(config)
    given = content.pop("seeds", [content.get("seed", 0)])
    chosen = checked_seeds(given if seeds is None else seeds)
    base = spec.resolve(content, overrides, SECTIONS)
    base["seed"] = chosen[0]  # what {seed} in its texts means
    settings = FrontSettings(**base.pop("front"))
    if base["trainer"]["balancer"] is not None:
        raise ValueError("a front gives every run its balancer: name it as `front.method`, found a `trainer.balancer`")
    trainer = spec.build(base).trainer  # what its classes refuse is told before anything is written
    names = _objectives(settings.objectives, [*trainer.tasks, *trainer.objectives])
    vectors = _vectors(settings, names)
    if settings.keep_dead or (settings.keep_dead is None and base["start"] is not None and _has_dead(trainer.model)):
        base["trainer"]["callbacks"] = [*base["trainer"]["callbacks"], {"class_path": "polytask.sparsity.KeepDead"}]
    sweeps = _sweeps(settings)
    configs = {sweep.name: _configs(base, sweep, vectors) for sweep in sweeps}
    before = neighbours(vectors) if settings.warm_start else dict.fromkeys(range(len(vectors)))
    return Plan(
        configs, vectors, names, chosen,
        _reference(settings.reference, names), before, settings.warm_start,
    )  # fmt: skip


def _has_dead(model: nn.Module) -> bool:
    """Whether a layer has rows of zeros beside others."""
    for module in model.modules():
        if isinstance(module, SUPPORTED):
            alive = (to_rows(module) != 0).any(1)
            if bool(alive.any()) and not bool(alive.all()):
                return True
    return False


def neighbours(vectors: Sequence[Vector]) -> dict[int, int | None]:
    """From which vector each one starts: {number: number of its neighbour}, in the order in which they can be run.

    The vector nearest to the centre starts from none; then, again and again, the one that is nearest to any of those
    reached so far starts from that one (a shortest spanning tree). Of equally near ones the first.

    >>> neighbours([{"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.0}])
    {1: None, 0: 1, 2: 1}
    """
    places = [list(vector.values()) for vector in vectors]
    centre = [1 / len(vectors[0])] * len(vectors[0])
    first = min(range(len(places)), key=lambda number: (round(math.dist(places[number], centre), 9), number))
    reached: dict[int, int | None] = {first: None}
    while len(reached) < len(places):
        left = [number for number in range(len(places)) if number not in reached]
        pairs = [(round(math.dist(places[n], places[r]), 9), r, n) for n in left for r in reached]
        _, neighbour, number = min(pairs)
        reached[number] = neighbour
    return reached


def front(
    config: Mapping[str, Any] | str | Path,
    *,
    overrides: spec.Overrides = (),
    folder: str | Path | None = None,
    jobs: int | None = None,
    seeds: Sequence[int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Front:
    """Trains a network for every preference vector and gathers the points.

    Finished runs found in `folder` are not repeated and interrupted ones go on, so a killed study is continued by the
    same call. A run whose stored configuration differs from what is asked for now is refused, before anything is
    trained, unless `overwrite`.

    Args:
        config: see `plan`; a mapping or the path of a YAML file.
        overrides: values that win, such as ``{"epochs": 3}``.
        folder: where to store it; ``runs/<name of the file>`` if None.
        jobs: parallel processes; as many as processors if None.
        seeds: in place of the configuration's.
        overwrite: repeat runs whose configuration has changed.
        progress: show how it goes.

    Raises:
        ValueError: a wrong configuration, or a folder that holds runs of another one.
        FileNotFoundError: no such file.
        OSError: the folder cannot be written.
        StudyInterrupted: Ctrl-C or SIGTERM; a `KeyboardInterrupt`.

    >>> found = front("examples/front_digits.yaml", folder="runs/front")  # doctest: +SKIP
    >>> found.view("metric").volumes("Chebyshev", "test")  # doctest: +SKIP
    [0.0071]
    """
    made = plan(config, overrides, seeds)
    target = spec.folder_of(config, folder, "front")
    todo = list(made.jobs(target))
    check_ready(todo, target, overwrite)
    _write(made, target)
    run_all(todo, jobs=jobs, overwrite=overwrite, progress=progress)
    return read_front(target)


def read_front(folder: str | Path) -> Front:
    """A front study as it stands on disk: the runs its last call asked for, as far as they have begun.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: ``front.json`` or a record is damaged.
    """
    root = Path(folder)
    path = root / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"a front's folder must hold {RECORD}, found none in {root}")
    with described(path, FORMAT, "a front of polytask") as content:
        names, sweeps, seeds = content["objectives"], content["sweeps"], content["seeds"]
        places = [
            (sweep, seed, dict(zip(names, entry["vector"], strict=True)), root / sweeps[sweep] / entry["folder"])
            for sweep in sweeps
            for seed in seeds
            for entry in content["vectors"]
        ]
        reference, warm_start = content["reference"], content["warm_start"]
    points = [
        Point(sweep, seed, vector, read_record(place / f"seed-{seed}"))
        for sweep, seed, vector, place in places
        if (place / f"seed-{seed}" / "run.json").is_file()
    ]
    if not points:
        raise FileNotFoundError(f"a front's folder must hold at least one run, found none in {root}")
    return Front(points, names, list(sweeps), seeds, root, reference, warm_start)


def is_front(folder: str | Path) -> bool:
    """Whether a folder holds a front study."""
    return (Path(folder) / RECORD).is_file()


def _write(made: Plan, root: Path) -> None:
    folders = safe_names(text(vector, 9) for vector in made.vectors)
    content = {
        "format": FORMAT, "objectives": made.objectives, "sweeps": safe_names(made.configs), "seeds": made.seeds,
        "vectors": [{"vector": list(v.values()), "folder": folders[text(v, 9)]} for v in made.vectors],
        "reference": made.reference, "warm_start": made.warm_start,
    }  # fmt: skip
    write_text(root / RECORD, json.dumps(content, indent=2) + "\n")


def _objectives(given: list[str] | None, known: list[str]) -> list[str]:
    for name in given or ():
        if name not in known:
            raise ValueError(f"`front.objectives` names an unknown objective `{name}`: {nearest(name, known)}")
    if given is not None and sorted(given) != sorted(known):
        raise ValueError(f"`front.objectives` must name every task and objective once, {known}, found {given}")
    if len(known) < 2:
        raise ValueError(f"a front must have at least 2 objectives, found {known}")
    return known if given is None else list(given)


def _vectors(settings: FrontSettings, names: Sequence[str]) -> list[Vector]:
    given = settings.vectors
    try:
        if given is None:
            whole("divisions", settings.divisions, 1)
            return simplex_grid(names, settings.divisions, settings.least)
        if isinstance(given, str):
            return read_vectors(given, names)
        if isinstance(given, list):
            return check_vectors(given, names)
    except ValueError as error:
        raise ValueError(f"`front`: {error}") from error
    raise ValueError(f"`front.vectors` must be a list of preferences or a file, found {given!r}")


def _sweeps(settings: FrontSettings) -> list[Sweep]:
    sweeps = [_sweep("method", settings.method)]
    if settings.against is not None:
        other = _sweep("against", settings.against)
        if other.name == sweeps[0].name:
            if other == sweeps[0]:
                raise ValueError(f"`front.against` must differ from `front.method`, found `{other.name}` twice")
            other.name = f"{other.name} (against)"
        sweeps.append(other)
    return sweeps


def _sweep(where: str, given: Any) -> Sweep:
    if isinstance(given, str):
        given = {"class_path": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise ValueError(f"`front.{where}` must be a class, found {given!r}")
    found, arguments = spec.find_class(given["class_path"]), dict(given.get("init_args") or {})
    if not (inspect.isclass(found) and issubclass(found, Scalarizer)):
        raise ValueError(f"`front.{where}` must be a scalarizer, found `{given['class_path']}`")
    accepted = inspect.signature(found).parameters
    takes = next((name for name in TAKES if name in accepted), None)
    if takes is None:
        raise ValueError(f"`front.{where}` must take a `preference` or `weights`, found `{found.__name__}` without")
    if takes in arguments:
        raise ValueError(f"`front.{where}` is given its `{takes}` by the front, found one in its arguments")
    return Sweep(found.__name__, given["class_path"], arguments, takes)


def _configs(base: spec.Config, sweep: Sweep, vectors: Sequence[Vector]) -> list[spec.Config]:
    """Each vector's resolved configuration; they differ in the vector alone, so one is resolved and built."""
    first = copy.deepcopy(base)
    first["trainer"]["balancer"] = sweep.balancer(vectors[0])
    try:
        first = spec.resolve(first)
        spec.build(first)
    except ValueError as error:
        raise ValueError(f"`front`, {sweep.name}: {in_words(error)}") from error
    configs = [copy.deepcopy(first) for _ in vectors]
    for config, vector in zip(configs, vectors, strict=True):
        config["trainer"]["balancer"]["init_args"][sweep.takes] = dict(vector)
    return configs


def _reference(given: Any, names: Sequence[str]) -> Reference:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"`front.reference` must be a mapping of `metric` and `loss` to points, found {given!r}")
    for kind in given:
        if kind not in KINDS:
            raise ValueError(f"`front.reference` has an unknown key `{kind}`: {nearest(str(kind), KINDS)}")
    return {kind: _reference_point(kind, value, names) for kind, value in given.items()}


def _reference_point(kind: str, value: Any, names: Sequence[str]) -> dict[str, float]:
    where = f"`front.reference.{kind}`"
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                raise ValueError(f"{where} names an unknown objective `{name}`: {nearest(str(name), names)}")
        value = [value[name] for name in names if name in value]
    if not isinstance(value, list) or len(value) != len(names):
        found = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise ValueError(f"{where} must have one number for each objective {list(names)}, found {found}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{where} must hold finite numbers, found {number!r}")
    return {name: float(number) for name, number in zip(names, value, strict=True)}
