"""From a dense network to a smaller one: search, share, retrain, compact, export, each stage in a folder of its own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.errors import at_least, in_words, one_of, whole
from polytask.export import FORMATS, check_packages
from polytask.sparsity.growl import GrOWL, Proximal
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.removal import Magnitude, Removal
from polytask.sparsity.sharing import check_affinity
from polytask.studies import spec
from polytask.studies.loading import load
from polytask.studies.machine import threads
from polytask.studies.network import splits_of
from polytask.studies.run_folder import check_same, clear, different
from polytask.studies.stages import FILES, STAGES, Stages, report_of
from polytask.studies.store import RunRecord, described, lock, probe, read_record, write_text
from polytask.training.trainer import Trainer

logger = logging.getLogger("polytask")

FORMAT = 1
RECORD = "sparsify.json"
SEEDS = "seeds.json"
"""What a folder with studies of several seeds holds; see `polytask.studies.sparsify_seeds`."""
SEEDS_KEY = "seeds"
METHODS = ("growl", "magnitude")
PENALTY = "sparsity"
"""The name of the sparsity objective, as preferences give it."""
DEFAULT_WEIGHT = 0.1
"""The sparsity objective's share of a preference that is not given."""


@dataclass(frozen=True)
class Affinity:
    """How like rows are found; see `polytask.sparsity.sharing.cluster`.

    Args:
        preference: how readily a row stands for itself, on the scale of the similarities: lower ones share more,
            above 1 nothing is shared. None takes each layer's median similarity.
        damping: of the messages, in [0.5, 1).
        iterations: at most so many, at least 1.
    """

    preference: float | None = None
    damping: float = 0.5
    iterations: int = 1000

    def __post_init__(self) -> None:
        check_affinity(self.preference, self.damping, self.iterations)


@dataclass(frozen=True)
class Sparsify:
    """The section ``sparsify`` of a configuration.

    Args:
        sparsity: the share of dead rows to be reached, over all layers in play, between 0 and 1.
        method: ``growl``: Chebyshev over the losses and the group-ordered penalty, whose proximal step lets rows die;
            ``magnitude``: the smallest rows die, with no penalty.
        preference: {objective: share}, at least 0, summing to 1, over ``sparsity`` and every task (and every other
            objective of the trainer); 0.1 for sparsity and the rest in equal parts if None. For ``growl`` alone.
        granularity: ``unit``: rows fed by one upstream unit die together, which makes networks faster; ``row``: each
            by itself. See `polytask.sparsity.layers_in_play`.
        select: names or prefixes of the layers in play; all but the first and the heads' outputs if None.
        cap: the largest share of a layer's groups that may die, in (0, 1]: one number, or {layer: share}.
        controlled: let the smallest groups die along a line that reaches `sparsity`; False leaves it to the
            penalty, which may miss it.
        until: the part of the search by which `sparsity` and the caps are reached, in (0, 1].
        rises: steps in which they rise, at least 1.
        pattern: of the penalty's weights, ``spike``, ``linear`` or ``pld``; see `polytask.sparsity.GrOWL`.
        beta1: β1, likewise.
        beta2: β2, likewise.
        tau: τ, likewise.
        preconditioned: see `polytask.sparsity.Proximal`.
        search_epochs: how many of the configuration's ``epochs`` are the search's, the rest being the retraining's;
            half if None.
        search: settings of the trainer that differ in the search.
        sharing: how like rows become one parameter; null to share none.
        retrain: settings of the trainer that differ in the retraining.
        merge: let the compact network sum inputs that share a row.
        padded: ``map`` or ``dense``, see `polytask.sparsity.compact.compact`.
        export: ``onnx`` or ``torch``: write the compact network in that format as well.
        timed_batch: examples of the timed forward pass, at least 1.
    """

    sparsity: float
    method: str = "growl"
    preference: dict[str, float] | None = None
    granularity: str = "unit"
    select: list[str] | None = None
    cap: float | dict[str, float] = 0.8
    controlled: bool = True
    until: float = 0.75
    rises: int = 20
    pattern: str = "spike"
    beta1: float = 0.8
    beta2: float = 0.2
    tau: float = 0.5
    preconditioned: bool = True
    search_epochs: int | None = None
    search: dict = field(default_factory=dict)
    sharing: Affinity | None = None
    retrain: dict = field(default_factory=dict)
    merge: bool = True
    padded: str = "map"
    export: str | None = None
    timed_batch: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"`sparsity` must be between 0 and 1, found {self.sparsity}")
        one_of("method", self.method, METHODS)
        one_of("padded", self.padded, ("map", "dense"))
        one_of("export", self.export, (None, *FORMATS))
        whole("timed_batch", self.timed_batch, 1)
        if self.method == "magnitude" and not self.controlled:
            raise ValueError("`controlled` must be true for the method 'magnitude', which has no penalty, found false")
        if self.method == "magnitude" and self.preference is not None:
            raise ValueError(f"`preference` must be null for the method 'magnitude', found {self.preference}")

    def removal(self, trainer: Trainer) -> Removal:
        """The callback of the search that lets rows die."""
        limits: Any = {"cap": self.cap, "until": self.until, "rises": self.rises}
        if self.method == "magnitude":
            return Magnitude(self.sparsity, granularity=self.granularity, select=self.select, **limits)
        penalty = trainer.objectives[PENALTY]
        assert isinstance(penalty, GrOWL)
        wanted = self.sparsity if self.controlled else None
        return Proximal(penalty, wanted, preconditioned=self.preconditioned, **limits)


SECTION = (("sparsify", Sparsify),)


@dataclass(frozen=True)
class Plan:
    """A study's configuration, checked, and what follows from it.

    Attributes:
        config: the whole, resolved.
        settings: its section ``sparsify``.
        search: the train configuration of the search.
        retrain: that of the retraining.
    """

    config: spec.Config
    settings: Sparsify
    search: spec.Config
    retrain: spec.Config


@dataclass
class Sparsified:
    """What a study found.

    Attributes:
        folder: where it is stored.
        wanted: the share of dead rows that was asked for.
        found: the share of dead rows of the network.
        reached: whether an epoch of the search had enough.
        epoch: the epoch of the search that was kept.
        records: the search, the retraining and the compact network, as runs.
        report: rates, costs before and after, what was left dense, and why; see `polytask.studies.stages.Compaction`.
        exported: the exported file, None if there is none.
        seconds: {stage: how long it took}, of the stages that the last call made.
    """

    folder: Path
    wanted: float
    found: float
    reached: bool
    epoch: int
    records: list[RunRecord]
    report: dict[str, Any]
    exported: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def compact(self) -> RunRecord:
        """The record of the compact network, with its figures on validation and test data."""
        return self.records[-1]

    def load(self) -> Trainer:
        """The compact network, ready to predict and evaluate."""
        return load(self.folder / "compact")


def plan(config: Mapping[str, Any] | str | Path, overrides: spec.Overrides = ()) -> Plan:
    """Checks a configuration and derives those of the search and of the retraining. No data are read.

    Args:
        config: a train configuration with the section ``sparsify``, see `Sparsify`.
        overrides: values that win over the configuration's, ``{"sparsify.sparsity": 0.6}`` or command-line words.

    Raises:
        ValueError: an unknown key or class, or a value out of range.
    """
    content = spec.read_config(config)
    if SEEDS_KEY in content:
        raise ValueError(
            f"a study of one network takes one `seed`, found `{SEEDS_KEY}`: that is for `polytask sparsify` and "
            "`polytask.studies.sparsify_seeds`"
        )
    if not isinstance(content.get("sparsify"), Mapping):
        found = repr(content["sparsify"]) if "sparsify" in content else "none"
        raise ValueError(f"a configuration to sparsify must have a section `sparsify`, found {found}")
    resolved = spec.resolve(content, overrides, SECTION)
    for stage in ("search", "retrain"):
        resolved["sparsify"][stage] = _nested(resolved["sparsify"][stage])
    base = {key: value for key, value in resolved.items() if key != "sparsify"}
    try:
        settings = _settings(resolved["sparsify"])
        search_epochs = _search_epochs(settings, base["epochs"])
    except ValueError as error:
        raise ValueError(f"`sparsify`: {error}") from error
    search = base | {"epochs": search_epochs, "trainer": base["trainer"] | {"callbacks": []}}
    if settings.method == "growl":
        search["trainer"] |= _chebyshev(settings, base)
    retrain = base | {"epochs": base["epochs"] - search_epochs, "start": None}  # it starts from the search
    return Plan(
        resolved, settings, _stage("search", search, settings.search), _stage("retrain", retrain, settings.retrain)
    )


def sparsify(
    config: Mapping[str, Any] | str | Path,
    *,
    overrides: spec.Overrides = (),
    folder: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    wait: float = 0.0,
) -> Sparsified:
    """Trains a sparse network, makes a smaller one of it, and checks that both say the same.

    Stages: *search* under the sparsity objective (or plain removal), keeping the epoch that is best on validation data
    among those that are sparse enough; *share* (if asked for): like rows become one parameter; *retrain*: dead rows
    stay dead and shared ones shared; *compact*: a smaller network with outputs equal to 1e-5 of the largest on the
    validation data, with its figures and costs; *export* (if asked for). Each has a folder of its own; a stage that is
    done is not repeated, and a run that was killed goes on from its checkpoint, so the same call continues.

    If no epoch of the search is sparse enough, the sparsest is kept, the other stages are made with it, and
    `Sparsified.reached` is False.

    Args:
        config: see `plan`; a mapping or the path of a YAML file.
        overrides: values that win over the configuration's.
        folder: where to store it; ``runs/<name of the file>`` if None.
        overwrite: start afresh where the folder holds a study of another configuration.
        progress: show how it goes.
        wait: seconds to wait for another process that works in the folder.

    Raises:
        ValueError: a wrong configuration, more sparsity than the caps allow, a folder that holds another study, a
            stage that broke (its name and reason), or a compact network whose outputs differ.
        FileNotFoundError: no such file, or the data set's files are missing.
        ModuleNotFoundError: the packages for `export` are not installed; told before anything is written.
        OSError: the folder cannot be written, or is in use.
        Interrupted: Ctrl-C or SIGTERM during training, after writing a checkpoint.

    >>> study = sparsify("examples/sparsify_digits.yaml")  # doctest: +SKIP
    >>> study.report["after"]["parameters"], study.compact.metrics["test"]["left/accuracy"]  # doctest: +SKIP
    """
    made = plan(config, overrides)
    target = spec.folder_of(config, folder, "sparsified")
    if (target / SEEDS).is_file():
        raise ValueError(f"{target} must hold no studies of several seeds, found {SEEDS}: choose another output folder")
    if not overwrite:
        check_same(target, made.config)
    with threads(made.config["threads"]):
        if (target / RECORD).is_file() and not different(target, made.config):
            return read_sparsified(target)
        stages = Stages(made, target, progress)
        prepare(stages)
        probe(target)
        with lock(target, wait):
            if different(target, made.config):
                _clear(target)
            write_text(target / "config.yaml", spec.dump(made.config))
            return _carry_out(stages)


def read_sparsified(folder: str | Path) -> Sparsified:
    """A finished study, from its folder.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: its files are damaged.
    """
    target = Path(folder)
    path = target / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"a finished study of `sparsify` must hold {RECORD}, found none in {target}")
    with described(path, FORMAT, "a study of `sparsify`") as content:
        exported = content.pop("exported")
        records = [read_record(target / stage) for stage in ("search", "retrain", "compact")]
        return Sparsified(
            target, **content, records=records, report=report_of(target),
            exported=None if exported is None else target / exported,
        )  # fmt: skip


def is_sparsified(folder: str | Path) -> bool:
    """Whether a folder holds a finished study of `sparsify`."""
    return (Path(folder) / RECORD).is_file()


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with keys such as ``init_args.lr`` and words for values, as the command line gives them, made plain.

    >>> _nested({"optimizer": {"init_args": {"lr": 0.1}, "init_args.lr": 0.2}, "batch_size": "8"})
    {'optimizer': {'init_args': {'lr': 0.2}}, 'batch_size': 8}
    """
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        first, *rest = key.split(".", 1)
        inner = {rest[0]: value} if rest else value
        plain = spec.as_value(inner) if isinstance(inner, str) else inner
        nested = spec.merge(nested, {first: _nested(plain) if isinstance(plain, Mapping) else plain})
    return nested


def _settings(section: Mapping[str, Any]) -> Sparsify:
    sharing = section["sharing"]
    return Sparsify(**{**section, "sharing": None if sharing is None else Affinity(**sharing)})


def _search_epochs(settings: Sparsify, epochs: int) -> int:
    at_least("epochs", epochs, 2)
    chosen = epochs // 2 if settings.search_epochs is None else settings.search_epochs
    if not 1 <= chosen < epochs:
        raise ValueError(
            f"`search_epochs` must be from 1 to {epochs - 1}, so that some of the {epochs} `epochs` are left to "
            f"retrain, found {chosen}"
        )
    return chosen


def _chebyshev(settings: Sparsify, base: spec.Config) -> dict[str, Any]:
    """The search's balancer and objectives."""
    trainer = spec.build(base).trainer
    others = [*trainer.tasks, *trainer.objectives]
    preference = settings.preference
    if preference is None:
        preference = {PENALTY: DEFAULT_WEIGHT} | {name: (1 - DEFAULT_WEIGHT) / len(others) for name in others}
    names = ("pattern", "beta1", "beta2", "tau", "granularity", "select")
    penalty = {"name": PENALTY} | {name: getattr(settings, name) for name in names}
    return {
        "balancer": {"class_path": "Chebyshev", "init_args": {"preference": preference, "normalise": [PENALTY]}},
        "objectives": [*base["trainer"]["objectives"], {"class_path": "GrOWL", "init_args": penalty}],
    }


def _stage(name: str, config: spec.Config, changes: Mapping[str, Any]) -> spec.Config:
    with _named(name):
        return spec.resolve(spec.merge(config, {"trainer": changes}))


def prepare(stages: Stages) -> None:
    """Loads the data; what objects refuse, and what the caps do not allow, is told before anything is written."""
    made, settings = stages.plan, stages.plan.settings
    if settings.export is not None:
        check_packages(settings.export)
    with _named("search"):
        searching = spec.build(made.search)
        removal = settings.removal(searching.trainer)
        _set_up(searching.trainer)
    with _named("retrain"):
        retraining = spec.build(made.retrain).trainer
        _set_up(retraining)
    _keep_weights(retraining)
    stages.splits = splits_of(searching)
    layers = layers_in_play(searching.trainer.model, stages.example, settings.granularity, settings.select)
    if not settings.controlled:
        removal.sparsity = settings.sparsity  # what the penalty cannot reach is refused all the same
    removal.check(layers)


def _set_up(trainer: Trainer) -> None:
    trainer.balancer.setup([*trainer.tasks, *trainer.objectives])


def _keep_weights(retraining: Trainer) -> None:
    """Refuses callbacks under which the retraining would not start from what the search found."""
    for callback in retraining.callbacks:
        if callback.initialises:
            name = type(callback).__name__
            raise ValueError(
                f"`trainer.callbacks` of a sparse study act on the retraining, where {name} would overwrite the sparse "
                "weights: put it in `sparsify.search.callbacks`"
            )


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"`sparsify.{stage}`: {in_words(error)}") from error


def _carry_out(stages: Stages) -> Sparsified:
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages.names, 1):
        if stages.done(stage):
            logger.info("stage %d of %d: %s, done before", number, len(stages.names), stage)
            continue
        logger.info("stage %d of %d: %s", number, len(stages.names), stages.ahead(stage))
        begin = time.perf_counter()
        found = stages.make(stage)
        seconds[stage] = time.perf_counter() - begin
        logger.info("%s took %.1f s: %s", stage, seconds[stage], found)
    return _finish(stages, seconds)


def _finish(stages: Stages, seconds: dict[str, float]) -> Sparsified:
    wanted, (epoch, found) = stages.plan.settings.sparsity, stages.selected()
    reached = found >= wanted - 1e-9
    content = {
        "format": FORMAT, "wanted": wanted, "found": report_of(stages.folder)["rates"]["sparsity"], "reached": reached,
        "epoch": epoch, "exported": stages.exported, "seconds": seconds,
    }  # fmt: skip
    if not reached:
        logger.warning("no epoch of the search had %.4g of the rows dead: the sparsest was kept, %.4g", wanted, found)
    write_text(stages.folder / RECORD, json.dumps(content, indent=2) + "\n")
    return read_sparsified(stages.folder)


def _clear(folder: Path) -> None:
    """Removes a study's own files, and nothing else."""
    (folder / RECORD).unlink(missing_ok=True)
    for stage in STAGES:
        clear(folder / stage)
        for name in FILES:
            (folder / stage / name).unlink(missing_ok=True)
