"""Bad input is refused at the door, with the rule and what was found."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import NAN, SaveAll, Stream, Whole, data, heads, network, same, trainer, trunk, weights
from torch import nn
from torch.utils.data import DataLoader

import polytask as pt

X, Y = data()
ATE = pt.schedules.AlternateEpochs
lr = torch.optim.lr_scheduler


def _with(name: str, row: int, value: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x, y = data()
    (x if name == "x" else y[name])[row] = value
    return x, y


def _frozen(*blocks: str) -> pt.models.Model:
    model = network()
    for block in blocks:
        getattr(model, block).requires_grad_(False)
    return model


class Penalty(pt.Objective):
    def forward(self, context: Any) -> torch.Tensor:
        return context.model.trunk[0].weight.square().sum()


class Extra(pt.models.Model):
    """Has a parameter in no block."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.top, self.stray, self.task_names = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(1, 1), ("a",)

    def features(self, inputs: Any, source: str = "") -> Any:
        return self.trunk(inputs)

    def head(self, task: str, features: Any, inputs: Any) -> Any:
        return self.top(features)

    def blocks(self) -> pt.models.Blocks:
        return pt.models.Blocks(pt.models.Block.of(self.trunk), {"a": pt.models.Block.of(self.top)})


class Stranger(pt.schedules.Schedule):
    def phase(self, epoch: int) -> str:
        return "strange"

    def updates(self, epoch: int, step: int) -> tuple[pt.schedules.Update, ...]:
        return (pt.schedules.Update(True, frozenset({"aa"})),)


CASES: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown task": (lambda: trainer().fit((X, {"a": Y["a"], "bb": Y["b"]}), epochs=1), ValueError, "train: targets for an unknown task `bb`: did you mean `b`?"),
    "no head": (lambda: trainer(names="abc", model=network()), ValueError, "every task must have a head, found none for task `c`: known: `a`, `b`"),
    "no task": (lambda: trainer(names="a", model=network()), ValueError, "every head must have a task, found a head `b`: known: `a`"),
    "head width": (lambda: trainer(pt.models.HardSharing(trunk(), {"a": heads()["a"], "b": nn.Linear(6, 4)})).fit((X, Y), epochs=1), ValueError, "a head must give 3 outputs per example for task `b`, found shape (8, 4) for 8 examples"),
    "label range": (lambda: trainer().fit(_with("b", 5, 3), epochs=1), ValueError, "task `b`, train: class targets must be 0..2 or -100 (missing), found 3"),
    "label range, validation": (lambda: trainer().fit((X, Y), _with("a", 5, 0.5), epochs=1), ValueError, "task `a`, validation: binary targets must be 0, 1 or missing (NaN), found 0.5"),
    "nothing shared": (lambda: trainer(network(form="single"), schedule=ATE(1, 1)).fit((X, Y), epochs=2), ValueError, "an update must touch at least one trainable parameter, found none in the shared block (0 shared parameters)"),
    "nothing shared, by batches": (lambda: trainer(network(form="single"), schedule=pt.schedules.AlternateBatches()).fit((X, Y), epochs=1), ValueError, "found none in the shared block"),
    "all frozen": (lambda: trainer(_frozen("trunk", "heads")).fit((X, Y), epochs=1), ValueError, "at least one trainable parameter, found none in the blocks of ['a', 'b']"),
    "heads frozen": (lambda: trainer(_frozen("heads"), schedule=ATE(1, 1)).fit((X, Y), epochs=2), ValueError, "found none in the blocks of ['a', 'b']"),
    "trunk frozen": (lambda: trainer(_frozen("trunk"), schedule=ATE(1, 1)).fit((X, Y), epochs=2), ValueError, "found none in the shared block"),
    "no epochs": (lambda: ATE(0, 0), ValueError, "found shared=0 and specific=0"),
    "epochs": (lambda: trainer().fit((X, Y), epochs=0), ValueError, "`epochs` must be at least 1, found 0"),
    "batch size": (lambda: trainer(batch_size=0), ValueError, "`batch_size` must be at least 1, found 0"),
    "evaluation batch size": (lambda: trainer(evaluation_batch_size=0), ValueError, "`evaluation_batch_size` must be at least 1, found 0"),
    "NaN input": (lambda: trainer().fit(_with("x", 4, NAN), epochs=1), ValueError, "train: inputs must be finite, found nan in example 4"),
    "NaN input to predict": (lambda: trainer().predict(_with("x", 4, NAN)[0]), ValueError, "inputs: inputs must be finite, found nan in example 4"),
    "infinite input": (lambda: trainer().evaluate(_with("x", 4, -torch.inf)), ValueError, "evaluation: inputs must be finite, found -inf in example 4"),
    "infinite input to predict": (lambda: trainer().predict(_with("x", 4, torch.inf)[0]), ValueError, "inputs: inputs must be finite, found inf in example 4"),
    "a DataLoader to predict": (lambda: trainer().predict(DataLoader(X)), TypeError, "inputs must be a tensor, an array, or a tuple or dictionary of them, found DataLoader"),
    "a Dataset to predict": (lambda: trainer().predict(Stream(X, Y)), TypeError, "or dictionary of them, found Stream"),
    "words to predict": (lambda: trainer().predict({"x": X, "y": "abc"}), TypeError, "or dictionary of them, found str"),
    "nothing to predict": (lambda: trainer().predict(None), TypeError, "or dictionary of them, found NoneType"),
    "no arrays": (lambda: trainer().fit((lambda: X, Y), epochs=1), TypeError, "or dictionary of them, found function"),
    "lengths": (lambda: trainer().fit((X[:20], Y), epochs=1), ValueError, "train: inputs and targets must have the same length, found 20 inputs and 24 targets of task `a`"),
    "empty": (lambda: trainer().fit((X[:0], {k: v[:0] for k, v in Y.items()}), epochs=1), ValueError, "train: a split must hold at least one example, found none"),
    "empty validation": (lambda: trainer().fit((X, Y), (X[:0], {k: v[:0] for k, v in Y.items()}), epochs=1), ValueError, "validation: a split must hold at least one example, found none"),
    "empty stream": (lambda: trainer().fit(DataLoader(Stream(X[:0], Y)), epochs=1), ValueError, "train: an epoch must hold at least one batch, found none"),
    "no target": (lambda: trainer().fit((X, {"a": Y["a"]}), epochs=1), ValueError, "train: every task must have at least one target, found none for `b`"),
    "all targets missing": (lambda: trainer().fit((X, {"a": Y["a"] * NAN, "b": Y["b"]}), epochs=1), ValueError, "train: a task must have at least one target, found none for task `a` in 24 examples"),
    "early stopping without validation": (lambda: trainer(callbacks=[pt.callbacks.EarlyStopping()]).fit((X, Y), epochs=1), ValueError, "monitoring `validation/loss` needs validation data, found none: pass them to `fit`"),
    "plateau without validation": (lambda: trainer(callbacks=[pt.callbacks.ReduceLROnPlateau()]).fit((X, Y), epochs=1), ValueError, "needs validation data, found none"),
    "unknown column": (lambda: trainer(callbacks=[pt.callbacks.EarlyStopping("train/a/acuracy")]).fit((X, Y), epochs=1), ValueError, "unknown column `train/a/acuracy` to monitor: did you mean `train/a/accuracy`?"),
    "columns of two directions": (lambda: trainer(callbacks=[pt.callbacks.EarlyStopping("train/a/*")]).fit((X, Y), epochs=1), ValueError, "columns monitored together must all be better when higher, or all when lower, found ['train/a/loss', 'train/a/accuracy']"),
    "optimizer is none": (lambda: trainer(optimizer=torch.optim.SGD(network().parameters(), lr=0.1)), TypeError, "`optimizer` must be a function that makes it"),
    "specific optimizer": (lambda: trainer(specific_optimizer="adam"), TypeError, "`specific_optimizer` must be a function that makes it, such as `lambda p: torch.optim.SGD(p, lr=0.1)`, found str"),
    "scheduler": (lambda: trainer(scheduler=3), TypeError, "`scheduler` must be a function that makes it"),
    "factory returns none": (lambda: trainer(optimizer=lambda p: None).fit((X, Y), epochs=1), TypeError, "the optimizer factory must return a torch optimizer, found NoneType"),
    "LBFGS": (lambda: trainer(optimizer=torch.optim.LBFGS).fit((X, Y), epochs=1), ValueError, "the optimizer must not need a closure (each update computes its losses once), found LBFGS"),
    "torch's plateau": (lambda: trainer(scheduler=lr.ReduceLROnPlateau).fit((X, Y), epochs=1), ValueError, "found torch's ReduceLROnPlateau: use the callback polytask.callbacks.ReduceLROnPlateau"),
    "scheduler interval": (lambda: trainer(scheduler_interval="batch"), ValueError, "`scheduler_interval` must be one of 'epoch', 'step', found 'batch'"),
    "warm-up": (lambda: trainer(warmup=-1), ValueError, "`warmup` must be at least 0, found -1"),
    "clip norm": (lambda: trainer(clip_norm=0.0), ValueError, "`clip_norm` must be above 0, found 0.0"),
    "clip value": (lambda: trainer(clip_value=-1.0), ValueError, "`clip_value` must be above 0, found -1.0"),
    "group": (lambda: trainer(groups={"trnk": {"lr": 1}}).fit((X, Y), epochs=1), ValueError, "a parameter group must match a parameter, found `trnk`: did you mean `trunk`?"),
    "duplicate tasks": (lambda: trainer(tasks=[pt.binary("a"), pt.binary("a")]), ValueError, "tasks must have different names, found ['a', 'a']"),
    "task and objective": (lambda: trainer(objectives=[Penalty("a")]), ValueError, "tasks and objectives must have different names, found ['a', 'b', 'a']"),
    "two objectives": (lambda: trainer(objectives=[Penalty("p"), Penalty("p")]), ValueError, "different names, found ['a', 'b', 'p', 'p']"),
    "objective weight": (lambda: Penalty("p", weight=-1.0), ValueError, "an objective's `weight` must be above 0, found -1.0 for `p`"),
    "foreign model": (lambda: trainer(Whole(trunk(), heads())), TypeError, "`model` must be a polytask model, found Whole: wrap a module of your own in polytask.models.Partitioned"),
    "foreign schedule": (lambda: trainer(schedule="joint"), TypeError, "`schedule` must be a polytask schedule, found 'joint'"),
    "foreign balancer": (lambda: trainer(balancer=pt.aggregation.MGDA), TypeError, "`balancer` must be a polytask balancer, found"),
    "foreign callback": (lambda: trainer(callbacks=[print]), TypeError, "`callbacks` must hold polytask callbacks, found <built-in function print>"),
    "foreign objective": (lambda: trainer(objectives=[abs]), TypeError, "`objectives` must hold polytask objectives"),
    "task weight": (lambda: pt.binary("a", weight=-2.0), ValueError, "a task's `weight` must be above 0, found -2.0 for task `a`"),
    "precision": (lambda: trainer(precision="16"), ValueError, "`precision` must be one of '32-true', 'bf16-mixed', found '16'"),
    "cache limit": (lambda: trainer(cache_limit=-1), ValueError, "`cache_limit` must be at least 0, found -1"),
    "foreign data": (lambda: trainer().fit([X, Y], epochs=1), TypeError, "train data must be a Source, a DataLoader, a Dataset, (inputs, {task: targets}) or a mapping of source names to them, found list"),
    "foreign validation": (lambda: trainer().fit((X, Y), (X, Y["a"]), epochs=1), TypeError, "validation data must be a Source"),
    "foreign test data": (lambda: trainer().evaluate(X), TypeError, "evaluation data must be a Source"),
    "stray parameter": (lambda: trainer(Extra(), "a").fit((X, {"a": Y["a"]}), epochs=1), ValueError, "every parameter must belong to a block, found `stray.weight` in none"),
    "strange schedule": (lambda: trainer(schedule=Stranger()).fit((X, Y), epochs=1), ValueError, "the schedule updates an unknown task `aa`: did you mean `a`?"),
    "checkpoint without folder": (lambda: trainer(callbacks=[pt.callbacks.Checkpoint()]).fit((X, Y), epochs=1), ValueError, "`Checkpoint` must know a folder, found none"),
    "checkpoint every": (lambda: pt.callbacks.Checkpoint("x", every=0), ValueError, "`every` must be at least 1, found 0"),
    "patience": (lambda: pt.callbacks.EarlyStopping(patience=0), ValueError, "`patience` must be at least 1, found 0"),
    "min_delta": (lambda: pt.callbacks.EarlyStopping(min_delta=-1), ValueError, "`min_delta` must be at least 0, found -1"),
    "by": (lambda: pt.callbacks.EarlyStopping(by="batch"), ValueError, "`by` must be one of 'cycle', 'epoch', found 'batch'"),
    "factor": (lambda: pt.callbacks.ReduceLROnPlateau(factor=1.0), ValueError, "`factor` must be between 0 and 1, found 1.0"),
    "look": (lambda: pt.callbacks.StopOnNonFinite(every=0), ValueError, "`every` must be at least 1, found 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused(case: str):
    act, kind, message = CASES[case]
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_first_loss_that_is_not_finite_names_its_task_and_moves_nothing(name: str, value: float):
    model = network()
    with torch.no_grad():
        model.heads[name][-1].bias.fill_(value)
    before = weights(model)
    with pytest.raises(ValueError, match=rf"the first loss of every task must be finite, found (nan|inf) for `{name}`"):
        trainer(model).fit((X, Y), epochs=1)
    assert same(weights(model), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_first_loss_of_a_task_that_comes_later_is_looked_at_too():
    model = network()
    with torch.no_grad():
        model.heads["b"][-1].bias.fill_(NAN)
    x, y = data()
    y["b"][:8] = -100
    with pytest.raises(ValueError, match="found nan for `b`"):
        trainer(model, objectives=[Penalty("p")]).fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)


def _checkpoint(folder: Path, **options: Any) -> Path:
    trainer(callbacks=[SaveAll(folder)], **options).fit((X, Y), epochs=1)
    return folder / "1.ckpt"


def _resume(path: Any, **options: Any) -> str:
    epochs = options.pop("epochs", 2)
    source = options.pop("source", (X, Y))
    model = options.pop("model", None) or network()
    before = weights(model)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        trainer(model, callbacks=[SaveAll()], **options).fit(source, epochs=epochs, resume=path)
    assert same(weights(model), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path):
    assert "a checkpoint to resume from must exist, found no file" in _resume(tmp_path / "none.ckpt")
    good = _checkpoint(tmp_path).read_bytes()
    bad = tmp_path / "bad.ckpt"
    for content in (b"", b"hello", b"\x80\x04.", good[:100], good[: len(good) // 2], good[:-30], good[200:]):
        bad.write_bytes(content)
        assert "must be a polytask checkpoint, found a damaged or foreign file" in _resume(bad)
    torch.save({"weights": torch.zeros(3)}, bad)
    assert "must be a polytask checkpoint, found another kind of file" in _resume(bad)
    torch.save([1, 2], bad)
    assert "found another kind of file" in _resume(bad)
    torch.save(network(), bad)  # pickled code is not run
    assert "found a damaged or foreign file" in _resume(bad)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path):
    content = torch.load(_checkpoint(tmp_path), weights_only=True)
    torch.save(content | {"version": 99}, tmp_path / "new.ckpt")
    assert re.search(
        r"must have format version \d+ or lower, found 99: .* newer polytask", _resume(tmp_path / "new.ckpt")
    )


def test_a_checkpoint_of_another_run_is_refused_and_every_difference_named(tmp_path: Path):
    path = _checkpoint(tmp_path)
    wide = pt.models.HardSharing(trunk(width=7), heads(width=7))
    differences: dict[str, dict[str, Any]] = {
        "weights": {"model": wide},
        "tasks": {"tasks": [pt.binary("a", weight=2.0), pt.classification("b", 3)]},
        "schedule": {"schedule": ATE(1, 1)},
        "balancer": {"balancer": pt.aggregation.MGDA()},
        "optimizers": {"optimizer": torch.optim.Adam},
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 4},
        "examples": {"source": (X[:16], {k: v[:16] for k, v in Y.items()})},
        "objectives": {"objectives": [Penalty("p")]},
        "lr_schedulers": {"scheduler": lambda o: lr.StepLR(o, 1)},
    }
    for name, options in differences.items():
        message = _resume(path, **options)
        assert "must come from the same model, data, settings, versions and threads; different: " in message
        assert name in message.split("different: ")[1], name
    torch.set_num_threads(2)
    assert "threads: saved 1, found 2" in _resume(path)


def test_weights_go_around(tmp_path: Path):
    one = trainer(network("norm"))
    one.fit((X, Y), epochs=2)
    folder = one.save(tmp_path / "run")
    assert {p.name for p in folder.iterdir()} >= {"weights.safetensors", "tasks.json", "history.csv"}
    assert not list(folder.glob("*.part"))
    for place in (folder, folder / "weights.safetensors", str(folder)):
        other = trainer(network("norm", seed=5))
        other.load_weights(place)
        assert same(weights(other.model), weights(one.model))


def test_damaged_and_foreign_weights_are_refused_and_change_nothing(tmp_path: Path):
    one = trainer()
    one.save(tmp_path)
    file = tmp_path / "weights.safetensors"
    content = file.read_bytes()
    before = weights(one.model)
    for bad in (content[:50], content[:-5], b"", b"\xff" * 100):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="must be a safetensors file, found a damaged one"):
            one.load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="weights to load must exist, found no file"):
        one.load_weights(tmp_path / "nowhere")
    other = trainer(pt.models.HardSharing(trunk(width=7), heads(width=7)))
    other.save(tmp_path / "other")
    with pytest.raises(
        ValueError,
        match=r"must hold this model's weights, found others: trunk.0.weight: saved \(7, 3\), wanted \(6, 3\)",
    ):
        one.load_weights(tmp_path / "other")
    assert same(weights(one.model), before)


def test_a_stream_without_a_task_is_refused_after_its_first_epoch():
    """A foreign loader cannot tell beforehand; the task's block has not moved by then."""
    x, y = data()
    run = trainer()
    before = weights(run.model.heads["b"])
    with pytest.raises(ValueError, match="every task must have at least one target, found none for `b` in an epoch"):
        run.fit(Stream(x, {"a": y["a"]}), epochs=1)
    assert same(weights(run.model.heads["b"]), before)
