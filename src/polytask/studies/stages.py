"""The stages of `polytask.studies.sparsify`: each reads what the stages before it left, and leaves its own on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from polytask.batch import map_inputs, tensors_of
from polytask.callback import Callback
from polytask.data.arrays import as_tensors
from polytask.data.base import Splits, only_split
from polytask.errors import plural
from polytask.export import SUFFIX
from polytask.models.base import Model
from polytask.sparsity.compact import TOLERANCE, Compacted, compact
from polytask.sparsity.layers import layers_in_play
from polytask.sparsity.rates import cost_of, overall, rates_of
from polytask.sparsity.removal import KeepDead
from polytask.sparsity.selection import COLUMN, BestSparse
from polytask.sparsity.sharing import find_sharing, tie, untie
from polytask.studies import spec
from polytask.studies.loading import load
from polytask.studies.machine import versions
from polytask.studies.run import cost_of_training, run
from polytask.studies.run_folder import LAYOUT, finished, write_fitted
from polytask.studies.store import RunRecord, read_history, read_record, write_record, write_text
from polytask.studies.trained_runs import export_run
from polytask.training.callbacks.progress import Progress, in_hours
from polytask.training.run import Run
from polytask.training.trainer import Trainer

if TYPE_CHECKING:
    from polytask.studies.sparsify import Plan

STAGES = ("search", "share", "retrain", "compact", "export")
SHARING = "sharing.json"
REPORT = "compaction.json"
LOG_SECONDS = 30.0
"""Between two lines of the log while a stage trains, where there is no terminal."""
FILES = (SHARING, REPORT, *(f"model{suffix}{part}" for suffix in SUFFIX.values() for part in ("", ".json")))
"""What stages leave beside the files of a run."""


class Stages:
    """The stages of one study.

    Args:
        plan: what is wanted.
        folder: the study's.
        progress: show a display on a terminal.

    Attributes:
        splits: the data, loaded once for all stages; to be set before a stage is made.
        names: the stages that this study has, in order.
    """

    splits: Splits

    def __init__(self, plan: Plan, folder: Path, progress: bool) -> None:
        self.plan = plan
        self.folder = folder
        self.progress = progress
        wanted = {"share": plan.settings.sharing is not None, "export": plan.settings.export is not None}
        self.names = [name for name in STAGES if wanted.get(name, True)]

    @property
    def inputs(self) -> Any:
        """The validation data's inputs."""
        return only_split(self.splits.validation, "a sparse study").inputs

    @property
    def example(self) -> Any:
        """One example's inputs."""
        return map_inputs(lambda tensor: tensor[:1], as_tensors(self.inputs))

    def done(self, stage: str) -> bool:
        """Whether a stage has left its result."""
        if stage == "share":
            return (self.folder / stage / SHARING).is_file()
        if stage == "export":
            return self.exported is not None
        return finished(self.folder / stage)

    def make(self, stage: str) -> str:
        """Makes a stage; returns what it found, in words."""
        (self.folder / stage).mkdir(exist_ok=True)
        return getattr(self, f"_{stage}")()

    def ahead(self, stage: str) -> str:
        """A stage, what it takes and what comes after it, for the log."""
        epochs = {"search": self.plan.search["epochs"], "retrain": self.plan.retrain["epochs"]}
        texts = [f"{name} ({self._takes(name, epochs[name])})" if name in epochs else name for name in self.names]
        own, *later = texts[self.names.index(stage) :]
        return own + (f"; then {', '.join(later)}" if later else "")

    def _takes(self, stage: str, epochs: int) -> str:
        """The epochs of a stage, and the time they are likely to take once the search has told that of its own."""
        if stage == "search" or not self.done("search"):
            return plural(epochs, "epoch")
        record = read_record(self.folder / "search")
        return f"{plural(epochs, 'epoch')}, about {in_hours(epochs * record.seconds / max(record.epochs, 1))}"

    # Search

    def _search(self) -> str:
        record = self._train("search", self.plan.search, partial(_searching, self.plan))
        epoch, share = self.selected()
        return f"epoch {epoch} of {record.epochs} was kept, with {share:.4g} of the rows dead"

    def selected(self) -> tuple[int, float]:
        """The epoch of the search that was kept, and its share of dead rows."""
        epoch = read_record(self.folder / "search").selected_epoch
        history = read_history(self.folder / "search" / "history.csv")
        return epoch, history.column(COLUMN)[epoch - 1]

    def _train(self, stage: str, config: spec.Config, make: Any) -> RunRecord:
        before = 0 if stage == "search" else self.plan.search["epochs"]
        after = self.plan.retrain["epochs"] if stage == "search" else 0
        label = f"{self.names.index(stage) + 1}/{len(self.names)} {stage}: epoch"
        record = run(
            config, self.folder / stage, method=stage, make=make,
            progress=Progress(label=label, before=before, after=after, log_interval=LOG_SECONDS)
            if self.progress else False,
        )  # fmt: skip
        if record.state == "failed":
            raise ValueError(f"the stage `{stage}` must come to an end, found: {record.error}")
        return record

    # Share

    def _share(self) -> str:
        settings = self.plan.settings
        assert settings.sharing is not None
        model = load(self.folder / "search").model
        layers = layers_in_play(model, self.example, settings.granularity, settings.select)
        affinity = settings.sharing
        found = find_sharing(
            layers, affinity.preference, affinity.damping, affinity.iterations, self.plan.config["seed"]
        )
        content = {"labels": {name: label.tolist() for name, label in found.labels.items()}, "apart": found.apart}
        write_text(self.folder / "share" / SHARING, json.dumps(content) + "\n")
        live = sum(int((labels >= 0).sum()) for labels in found.labels.values())
        kinds = sum(int(labels.max()) + 1 for labels in found.labels.values())
        apart = f"; not shared: {', '.join(found.apart)}" if found.apart else ""
        return f"{live} live groups of rows in {kinds} clusters{apart}"

    # Retrain

    def _retrain(self) -> str:
        record = self._train("retrain", self.plan.retrain, partial(_retraining, self))
        return f"weights of epoch {record.selected_epoch} of {record.epochs} were kept"

    def labels(self) -> dict[str, Any]:
        """The clusters that the stage `share` found, none if there is no such stage."""
        return sharing_of(self.folder)["labels"] if "share" in self.names else {}

    # Compact

    def _compact(self) -> str:
        settings, place = self.plan.settings, self.folder / "compact"
        dense = load(self.folder / "retrain")
        made = compact(dense.model.cpu(), self.example, merge=settings.merge, padded=settings.padded)
        difference = largest_difference(dense.model, made.model, self.inputs)
        if not difference <= (tolerance := _tolerance(made.model)):
            raise ValueError(
                f"the compact network's outputs on the validation data must be equal to {tolerance:g} of the largest, "
                f"found {difference:.3g}"
            )
        config = spec.merge(self.plan.retrain, {"trainer": {"callbacks": [], "objectives": []}})
        built = spec.build(config, adapt=lambda model: made.model)
        trainer = built.trainer
        report = self._describe(dense, made, difference, trainer.device)
        write_text(place / "config.yaml", spec.dump(config))
        write_text(place / LAYOUT, json.dumps(made.layout) + "\n")
        write_text(place / REPORT, json.dumps(report, indent=2) + "\n")
        write_fitted(built.data, place)
        trainer.save(place)
        write_record(self._record(trainer, config["seed"]), place)  # last: it says that the stage is done
        before, after = report["before"], report["after"]
        return (
            f"{before['parameters']:,} to {after['parameters']:,} parameters, {1000 * before['latency']:.3g} to "
            f"{1000 * after['latency']:.3g} ms for {after['batch_size']} examples; outputs equal to {difference:.2g}"
        )

    def _describe(
        self, dense: Trainer, made: Compacted[Model], difference: float, device: torch.device
    ) -> dict[str, Any]:
        settings = self.plan.settings
        layers = layers_in_play(dense.model, self.example, "row", settings.select)
        by_layer = rates_of(layers)
        batch = map_inputs(
            lambda tensor: tensor[: settings.timed_batch].to(device),
            as_tensors(self.inputs),
        )
        costs = [
            cost_of(model.to(device), batch, settings.timed_batch).describe() for model in (dense.model, made.model)
        ]
        return {
            "granularity": settings.granularity,
            "rates": overall(by_layer).describe(),
            "layers": {name: rates.describe() for name, rates in by_layer.items()},
            "before": costs[0], "after": costs[1], "difference": max(difference, made.difference),
            "left_dense": made.left_dense, "apart": sharing_of(self.folder)["apart"],
        }  # fmt: skip

    def _record(self, trainer: Trainer, seed: int) -> RunRecord:
        return RunRecord(
            "compact", seed, "done", tasks=[task.describe() for task in trainer.tasks.values()],
            metrics={
                "validation": trainer.evaluate(self.splits.validation), "test": trainer.evaluate(self.splits.test),
            },
            cost=cost_of_training(trainer, self.splits.train), versions=versions(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip

    # Export

    @property
    def exported(self) -> str | None:
        """The exported file, relative to the study's folder; None if there is none."""
        kind = self.plan.settings.export
        if kind is None:
            return None
        path = Path("export") / f"model{SUFFIX[kind]}"
        return str(path) if (self.folder / path).is_file() else None

    def _export(self) -> str:
        kind = self.plan.settings.export
        assert kind is not None
        path = export_run(str(self.folder / "compact"), kind, str(self.folder / "export" / f"model{SUFFIX[kind]}"))
        return f"{path}, checked against PyTorch"


def report_of(folder: Path) -> dict[str, Any]:
    """What the stage `compact` measured.

    Returns:
        ``granularity``; ``rates``, over all layers in play, and ``layers``, by layer (see
        `polytask.sparsity.rates.Rates`); ``before`` and ``after``, what the network costs (see
        `polytask.sparsity.rates.Cost`); ``difference``, the largest difference of outputs, relative; ``left_dense`` and
        ``apart``: {layer: reason}.
    """
    return json.loads((folder / "compact" / REPORT).read_text())


def sharing_of(folder: Path) -> dict[str, Any]:
    """``labels`` and ``apart`` of a study's `polytask.sparsity.sharing.Sharing`; empty if nothing was to be shared."""
    path = folder / "share" / SHARING
    return json.loads(path.read_text()) if path.is_file() else {"labels": {}, "apart": {}}


@torch.no_grad()
def largest_difference(first: Model, second: Model, inputs: Any, chunk: int = 256) -> float:
    """How far the outputs of two networks are apart, relative to each task's largest output.

    Both run in eval mode, on the CPU and in their own precision, as accelerators round more coarsely than the
    difference that is looked for.

    Args:
        first: the network that is right.
        second: of the same tasks.
        inputs: N examples.
        chunk: examples per forward pass.
    """
    networks = [copy.deepcopy(network).cpu().eval() for network in (first, second)]
    tensors = as_tensors(inputs)
    largest, apart = dict.fromkeys(first.task_names, 0.0), dict.fromkeys(first.task_names, 0.0)
    for start in range(0, len(tensors_of(tensors)[0]), chunk):
        part = map_inputs(lambda tensor, start=start: tensor[start : start + chunk], tensors)
        expected, found = (network(part) for network in networks)
        for name in largest:
            largest[name] = max(largest[name], float(expected[name].abs().max()))
            apart[name] = max(apart[name], float((expected[name] - found[name]).abs().max()))
    return max(apart[name] / max(largest[name], 1e-30) for name in largest)


def _tolerance(model: nn.Module) -> float:
    return TOLERANCE.get(next(model.parameters()).dtype, 1e-5)


def _searching(plan: Plan, config: spec.Config, folder: Path, callbacks: Sequence[Callback]) -> spec.Built:
    built = spec.build(config, folder, callbacks)
    trainer = built.trainer
    removal = plan.settings.removal(trainer)
    trainer.callbacks = (removal, *trainer.callbacks, BestSparse(removal, plan.settings.sparsity))
    return built


def _retraining(stages: Stages, config: spec.Config, folder: Path, callbacks: Sequence[Callback]) -> spec.Built:
    built = spec.build(config, folder, callbacks)
    trainer = built.trainer
    trainer.load_weights(stages.folder / "search")
    labels = stages.labels()
    if labels:  # tied weights hold their dead rows at zero by themselves
        tie(trainer.model, labels)
        trainer.callbacks = (*trainer.callbacks, Untie())
    else:
        trainer.callbacks = (KeepDead(stages.plan.settings.select), *trainer.callbacks)
    return built


@final
class Untie(Callback):
    """Makes tied weights plain ones when a fit is over, so that its network is saved and loaded like any other."""

    def on_close(self, run: Run) -> None:
        untie(run.model)
