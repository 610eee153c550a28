"""Which tasks belong together: measured, suggested, and checked by training it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import torch

from polytask.errors import nearest, whole
from polytask.models.hard_sharing import HardSharing
from polytask.schedules.joint import Joint
from polytask.studies import spec
from polytask.studies.compare import Comparison, check_ready, checked_seeds, compare, plan, read_comparison
from polytask.studies.executors import Job
from polytask.studies.network import splits_of
from polytask.studies.pairs import Matrix, Mean, Noise, by_epoch, independent, read_noise, read_pairs, successive
from polytask.studies.run import run
from polytask.studies.run_folder import finished
from polytask.studies.store import described, read_history, write_text
from polytask.training.callbacks.pairwise import MEET, never_meet

logger = logging.getLogger("polytask")

FORMAT = 1
RECORD = "grouping.json"
MEASURED = "affinity"
"""The folder of the run that measures, in the study's."""
SINGLE, TOGETHER, GROUPED = "single-task", "together", "grouped"
ALONE = 1e-6
"""What a task alone in its group is said to gain, so that a group must help to be worth it."""
EXACT = 12
"""Most tasks of which every grouping is looked at."""
TIE = 1e-12
"""A sum of gains that is larger by less is no better: rounding makes as much."""


@dataclass(frozen=True)
class Grouping:
    """A suggested grouping.

    Attributes:
        groups: the tasks of each group, in their order.
        gains: {task: its expected gain}: the mean affinity of the others of its group towards it, `ALONE` if there
            are none.
        together: the same with all tasks in one group.
        exact: whether no grouping into as many groups has a larger sum of gains.
    """

    groups: tuple[tuple[str, ...], ...]
    gains: Mapping[str, float]
    together: Mapping[str, float]
    exact: bool = True

    @property
    def method(self) -> str:
        """The method that trains it: ``together`` if one group has all tasks, ``single-task`` if each has one."""
        if len(self.groups) == 1:
            return TOGETHER
        return SINGLE if len(self.groups) == len(self.gains) else GROUPED


@dataclass
class Study:
    """What `group` found.

    Attributes:
        folder: where it is stored.
        affinity: {i: {j: by what part a step for i lowered the loss of j}}, the mean over training.
        grouping: what was suggested.
        comparison: ``single-task``, ``together`` and, unless it is one of the two, ``grouped``, each trained.
        noise: the affinities with their errors over the epochs of the run that measured; see
            `polytask.studies.pairs.successive`.
        advantage: by how much the sum of expected gains lies above that of all tasks together, likewise.
        optimizer: what made the steps of that run.
    """

    folder: Path
    affinity: Matrix
    grouping: Grouping
    comparison: Comparison
    noise: Noise
    advantage: Mean
    optimizer: str

    @property
    def measured_advantage(self) -> Mean | None:
        """By how much the suggested grouping did better than all tasks together, with its error over seeds.

        By what part of the single-task ones (their mean over seeds) its validation losses lie below those of
        ``together``, summed over tasks. None if that is what was suggested, or no seed has both.
        """
        wanted = self.grouping.method
        losses = _validation_losses(self.comparison)
        seeds = sorted(losses.get(wanted, {}).keys() & losses.get(TOGETHER, {}).keys())
        if wanted == TOGETHER or not seeds or not losses.get(SINGLE):
            return None
        alone = {task: math.fsum(found[task] for found in losses[SINGLE].values()) for task in self.grouping.gains}
        count = len(losses[SINGLE])
        return independent(
            [
                math.fsum(
                    (losses[TOGETHER][seed][task] - losses[wanted][seed][task]) * count / total
                    for task, total in alone.items()
                    if total
                )
                for seed in seeds
            ]
        )


def suggest(matrix: Matrix, groups: int = 2) -> Grouping:
    """Divides tasks into at most so many groups, each to be trained as one network, with the largest sum of gains.

    A task's gain is the mean of the figures that the other tasks of its group have towards it (Fifty et al.,
    *Efficiently Identifying Task Groupings for Multi-Task Learning*, `arXiv:2109.04617
    <https://arxiv.org/abs/2109.04617>`_, section 3.4, who measure them with pairs in three and more tasks alike); of a
    task alone `ALONE`. Of equally good groupings one of the fewest groups is taken. Unlike theirs, groups do not
    overlap: no task is trained in a network that does not serve it.

    Up to `EXACT` tasks, the best of all groupings is found (dynamic programming over sets of tasks). Of more, a good
    one: starting from every task alone, the two groups whose union is best are joined until there are few enough groups
    and no union gains, then single tasks move while that gains.

    Args:
        matrix: {i: {j: figure of i towards j}} of at least two tasks, see `read_pairs`; the cosines of gradients do
            too.
        groups: at most so many, at least 1.

    Raises:
        ValueError: fewer than two tasks, `groups` below 1, or a pair without a finite figure.

    >>> made = suggest({"a": {"b": 0.2, "c": -0.3}, "b": {"a": 0.1, "c": -0.2}, "c": {"a": -0.1, "b": -0.1}})
    >>> made.groups, made.gains["a"], round(made.together["a"], 3)
    ((('a', 'b'), ('c',)), 0.1, 0.0)
    """
    whole("groups", groups, 1)
    tasks = list(matrix)
    if len(tasks) < 2:
        raise ValueError(f"there must be at least two tasks to group, found {len(tasks)}")
    _check(matrix, tasks)
    score = _Score(matrix, tasks)
    exact = len(tasks) <= EXACT
    found = _best(score, groups) if exact else _good(score, groups)
    chosen = sorted(tuple(sorted(group)) for group in found)
    gains = {tasks[j]: score.gain(group, j) for group in chosen for j in group}
    everyone = range(len(tasks))
    return Grouping(
        tuple(tuple(tasks[i] for i in group) for group in chosen),
        {task: gains[task] for task in tasks},
        {task: score.gain(everyone, j) for j, task in enumerate(tasks)},
        exact,
    )


class _Score:
    """Gains of groups of tasks, which are told by their positions."""

    def __init__(self, matrix: Matrix, tasks: Sequence[str]) -> None:
        self.size = len(tasks)
        self._rows = [[0.0 if i == j else float(matrix[i][j]) for j in tasks] for i in tasks]

    def gain(self, group: Iterable[int], j: int) -> float:
        """What task j gains in a group that it belongs to."""
        others = [self._rows[i][j] for i in group if i != j]
        return math.fsum(others) / len(others) if others else ALONE

    def of(self, group: Iterable[int]) -> float:
        """The sum of a group's gains."""
        members = tuple(group)
        return math.fsum(self.gain(members, j) for j in members)


def _check(matrix: Matrix, tasks: Sequence[str]) -> None:
    for i in tasks:
        for j in tasks:
            if i != j and not math.isfinite(found := matrix[i].get(j, math.nan)):
                told = "none" if math.isnan(found) else found
                raise ValueError(f"every pair of tasks must have a finite figure, found {told} of `{i}` towards `{j}`")


def advantage(matrices: Iterable[Matrix], made: Grouping) -> Mean:
    """By how much the sum of a grouping's gains lies above that of all tasks together, with its error.

    A suggested grouping was chosen because this sum is large, in part by luck: the figure flatters it.

    Args:
        matrices: those of the epochs, in order, see `polytask.studies.pairs.by_epoch`; epochs in which a pair has no
            figure are left out.
        made: the grouping.
    """
    tasks = list(made.gains)
    place = {task: number for number, task in enumerate(tasks)}
    groups = [[place[task] for task in group] for group in made.groups]
    found = []
    for matrix in matrices:
        if all(j in matrix.get(i, {}) for i, j in permutations(tasks, 2)):
            score = _Score(matrix, tasks)
            found.append(math.fsum(map(score.of, groups)) - score.of(range(len(tasks))))
    return successive(found or [math.nan])


def _best(score: _Score, groups: int) -> list[list[int]]:
    """The best of all groupings, by dynamic programming: a set of tasks is a number, bit i standing for task i."""
    every, most = (1 << score.size) - 1, min(groups, score.size)
    value = [score.of(_members(mask)) for mask in range(every + 1)]
    best = value  # of each set, in at most `count` groups
    chosen = [list(range(every + 1))]  # by `count`: a set's group with its lowest task; 0: as with a group less
    for count in range(2, most + 1):
        before, best = best, list(best)
        group = [0] * (every + 1)
        for mask in range(1, every + 1) if count < most else (every,):
            rest = part = mask & (mask - 1)
            while part:  # what the group leaves to the others
                if (made := value[mask ^ part] + before[part]) > best[mask] + TIE:
                    best[mask], group[mask] = made, mask ^ part
                part = (part - 1) & rest
        chosen.append(group)
    found, mask = [], every
    for group in reversed(chosen):
        if group[mask]:
            found.append(_members(group[mask]))
            mask ^= group[mask]
    return found


def _members(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def _good(score: _Score, groups: int) -> list[list[int]]:
    """A grouping of many tasks that no union of two groups and no move of one task makes better."""
    found = [[i] for i in range(score.size)]
    while len(found) > 1:
        change, i, j = max((_joined(score, found, i, j), -i, -j) for i, j in combinations(range(len(found)), 2))
        if len(found) <= groups and change <= TIE:
            break
        found[-i] += found.pop(-j)
    while (better := _moved(score, found, groups)) is not None:
        found = better
    return found


def _joined(score: _Score, found: Sequence[list[int]], i: int, j: int) -> float:
    return score.of(found[i] + found[j]) - score.of(found[i]) - score.of(found[j])


def _moved(score: _Score, found: Sequence[list[int]], groups: int) -> list[list[int]] | None:
    """The grouping with one task moved that gains most; None if none gains."""
    most, best = TIE, None
    places = [*found, []] if len(found) < groups else found
    for source in found:
        for task in source:
            left = [other for other in source if other != task]
            for target in places:
                if target is source:
                    continue
                gain = score.of([*target, task]) - score.of(target) + score.of(left) - score.of(source)
                if gain > most:
                    kept = [group for group in found if group is not source and group is not target]
                    most, best = gain, [group for group in (*kept, left, [*target, task]) if group]
    return best


def group(
    config: Mapping[str, Any] | str | Path,
    *,
    groups: int = 2,
    every: int = 10,
    lr: float | None = None,
    overrides: spec.Overrides = (),
    folder: str | Path | None = None,
    jobs: int | None = None,
    seeds: Sequence[int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Study:
    """Finds out which tasks should share a trunk, and trains that beside the alternatives.

    Trains all tasks together once, with the first seed, and measures their affinities
    (`polytask.callbacks.Affinity`); has a grouping suggested (`suggest`); then trains, with the same epochs and every
    seed, ``single-task``, ``together`` and ``grouped`` (`polytask.models.Grouped`), and compares them. A suggestion
    that puts all tasks together, or each alone, is one of those two already. `remarks` says what is more than noise.

    Finished runs are not repeated and interrupted ones go on, so that the same call continues a killed study.

    Args:
        config: a train configuration with a `HardSharing` model, and besides ``seeds``, a list; a mapping or the path
            of a YAML file.
        groups: at most so many groups, hence trunks; at least 1.
        every: steps between looks, see `polytask.callbacks.Affinity`.
        lr: likewise.
        overrides: values that win over the configuration's.
        folder: where to store it; ``runs/<name of the file>`` if None.
        jobs: parallel processes; as many as processors if None.
        seeds: in place of the configuration's.
        overwrite: repeat runs whose configuration has changed.
        progress: show how it goes.

    Raises:
        ValueError: a wrong configuration, another model than `HardSharing`, a schedule that alternates (groups share no
            block), two tasks that will never be in one step (told before anything is trained, where the sources tell),
            a folder that holds other runs, or a measuring run that failed or in which two tasks were not compared.
        FileNotFoundError: no such file, or the data set's files are missing.
        OSError: the folder cannot be written.
        Interrupted: Ctrl-C or SIGTERM while measuring, after writing a checkpoint.
        StudyInterrupted: the same while comparing.

    >>> study = group("three_tasks.yaml", groups=2)  # doctest: +SKIP
    >>> study.grouping.groups, study.grouping.gains["a"]  # doctest: +SKIP
    """
    whole("groups", groups, 1)
    base, chosen = _read(config, overrides, seeds)
    target = spec.folder_of(config, folder, "grouping")
    look = {"class_path": "Affinity", "init_args": {"every": every, "lr": lr}}
    measured = _with_callback({**base, "seed": chosen[0]}, look)
    first = plan(_comparison(base, chosen, None))  # what the methods refuse is told before the measuring run
    job = Job(MEASURED, spec.resolve(measured), target / MEASURED)
    check_ready([job, *first.jobs(target)], target, overwrite)
    if overwrite or not finished(job.folder):
        _check_meetings(job.config)
    record = run(job.config, job.folder, method=MEASURED, overwrite=overwrite, progress=progress)
    if record.state == "failed":
        raise ValueError(f"the run that measures affinities must come to an end, found: {record.error}")
    affinity = read_pairs(read_history(job.folder / "history.csv"))
    if not affinity:
        raise ValueError(
            "the run that measures affinities must find some between two tasks, found none: no step held targets of "
            f"two tasks, for which {MEET}, or the losses of all that met were zero"
        )
    made = suggest(affinity, groups)
    logger.info("suggested: %s", in_words(made))
    compare(_comparison(base, chosen, made), folder=target, jobs=jobs, overwrite=overwrite, progress=progress)
    content = {"format": FORMAT, "affinity": affinity, "grouping": asdict(made)}
    write_text(target / RECORD, json.dumps(content, indent=2) + "\n")
    return read_grouping(target)


def read_grouping(folder: str | Path) -> Study:
    """A study of `group`, from its folder.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: its files are damaged.
    """
    target = Path(folder)
    path = target / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"a finished study of `group` must hold {RECORD}, found none in {target}")
    with described(path, FORMAT, "a study of `group`") as content:
        affinity, made = content["affinity"], content["grouping"]
        grouping = Grouping(**{**made, "groups": tuple(map(tuple, made["groups"]))})
    history = read_history(target / MEASURED / "history.csv")
    return Study(
        target, affinity, grouping, read_comparison(target), read_noise([history]),
        advantage(by_epoch(history), grouping), _optimizer(spec.read_config(target / MEASURED / "config.yaml")),
    )  # fmt: skip


def is_grouping(folder: str | Path) -> bool:
    """Whether a folder holds a finished study of `group`."""
    return (Path(folder) / RECORD).is_file()


def in_words(made: Grouping) -> str:
    """A grouping as text.

    >>> in_words(suggest({"a": {"b": 1.0}, "b": {"a": 1.0}}))
    'a and b together'
    """
    parts = [
        ", ".join(part[:-1]) + f" and {part[-1]} together" if part[1:] else f"{part[0]} alone" for part in made.groups
    ]
    return "; ".join(parts)


def remarks(study: Study) -> list[str]:
    """What a study's figures are worth, in sentences: what was suggested, what is noise, and what the steps were."""
    said = []
    made, name = study.grouping, f"`{study.grouping.method}`"
    if made.method == SINGLE:
        said.append("Grouped = single-task: every task is suggested to be alone, as in `single-task`.")
    elif made.method == TOGETHER:
        said.append("Grouped = together: all tasks are suggested to share one trunk, as in `together`.")
    means = [mean for row in study.noise.values() for mean in row.values()]
    known = [mean for mean in means if mean.known]
    if len(known) < len(means):
        said.append("An affinity that only one epoch has is without a standard error: it may be noise. Train longer.")
    if known:
        unclear = sum(not mean.clear for mean in known)
        said.append(
            f"{unclear} of {len(means)} affinities cannot be told from zero (95 %, by how they vary over the epochs of "
            "this one run; another seed may differ by more)" + ("." if not unclear else ": they stand in brackets.")
        )
    if made.method != TOGETHER:
        what = f"gain of {name} beyond `together`, summed over tasks"
        said.append(_judged(f"Expected {what}", study.advantage, "epochs"))
        if (found := study.measured_advantage) is not None:
            said.append(_judged(f"Measured {what}, in parts of the single-task validation losses", found, "seeds"))
    if study.optimizer:
        said.append(
            f"The affinities are of plain gradient steps, not of those that {study.optimizer} makes: their signs and "
            "proportions count, not their sizes."
        )
    return said


def _judged(what: str, mean: Mean, over: str) -> str:
    """Whether an advantage over training together is more than noise."""
    value = f"{100 * mean.value:+.2g} %".replace("-", "−")
    if not mean.known:
        return f"{what}: {value}. Without several {over} it is not known whether that is more than noise."
    end = "more than noise" if mean.clear else "inside the noise, the two cannot be told apart"
    return f"{what}: {value} ± {100 * mean.error:.2g} % (standard error over {over}): {end}."


def _validation_losses(comparison: Comparison) -> dict[str, dict[int, dict[str, float]]]:
    """{method: {seed: {task: its loss on validation data}}} of the runs that came to an end."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for record in comparison.records:
        if record.state == "done":
            losses = {name.removesuffix("/loss"): value for name, value in record.metrics["validation"].items()}
            found.setdefault(record.method, {})[record.seed] = losses
    return found


def _optimizer(config: spec.Config) -> str:
    """What makes the steps of a run, "" if these are plain gradient steps."""
    given: Mapping[str, Any] = config["trainer"].get("optimizer") or {"class_path": "SGD"}
    name = str(given["class_path"]).rsplit(".", 1)[-1]
    momentum = (given.get("init_args") or {}).get("momentum")
    return name if name != "SGD" else "SGD with momentum" if momentum else ""


def _check_meetings(config: Mapping[str, Any]) -> None:
    """Refuses data of which it is known that two tasks will never be in one step."""
    built = spec.build(config)
    trainer = built.trainer
    source = trainer.served(splits_of(built).train, torch.device("cpu"))
    for one, other in never_meet(source, list(trainer.tasks), trainer.accumulate, built.epochs):
        raise ValueError(
            f"affinities need steps with targets of every two tasks, and none will hold both `{one}` and `{other}`: "
            f"{MEET}"
        )


def _read(
    config: Mapping[str, Any] | str | Path, overrides: spec.Overrides, seeds: Sequence[int] | None
) -> tuple[spec.Config, list[int]]:
    """The configuration, resolved and without its seeds, and the seeds."""
    content = spec.read_config(config)
    known = (*spec.TRAIN_KEYS, "seeds")
    for key in content:
        if key not in known:
            hint = "a study of groups has methods of its own" if key == "methods" else nearest(str(key), known)
            raise ValueError(f"unknown key `{key}`: {hint}")
    told = content.pop("seeds", [content.get("seed", 0)])
    chosen = checked_seeds(told if seeds is None else seeds)
    base = spec.resolve(content, overrides)
    if spec.find_class(base["model"]["class_path"]) is not HardSharing:
        raise ValueError(
            "`model` must be HardSharing, from whose trunk every group's is copied, found "
            f"{base['model']['class_path']}"
        )
    schedule = base["trainer"]["schedule"]
    if schedule is not None and spec.find_class(schedule["class_path"]) is not Joint:
        raise ValueError(
            "`trainer.schedule` must be Joint or null, as groups share no block to alternate with, found "
            f"{schedule['class_path']}"
        )
    return base, chosen


def _with_callback(config: spec.Config, callback: Mapping[str, Any]) -> spec.Config:
    callbacks = [*(config["trainer"]["callbacks"] or ()), dict(callback)]
    return {**config, "trainer": {**config["trainer"], "callbacks": callbacks}}


def _comparison(base: spec.Config, seeds: Sequence[int], made: Grouping | None) -> spec.Config:
    """The comparison of a grouping with the alternatives, or of these alone."""
    methods: dict[str, Any] = {SINGLE: {"model": {"class_path": "SingleTask"}}, TOGETHER: {}}
    if made is not None and made.method == GROUPED:
        methods[GROUPED] = {"model": {"class_path": "Grouped", "init_args": {"groups": [list(g) for g in made.groups]}}}
    return {**base, "seeds": list(seeds), "methods": methods, "baseline": SINGLE}
